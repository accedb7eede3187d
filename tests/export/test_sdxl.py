"""A tiny random SDXL: what proves that a family is one file. Its pictures are those of diffusers' own pipeline."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import pytest
import tiny_families
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from clipskip import Pipeline, Request
from clipskip.batch import Batch
from clipskip.engines import gates, trials
from clipskip.engines.manifest import STEP, Role
from clipskip.engines.store import Store
from clipskip.errors import CheckpointError, UnsupportedModelError
from clipskip.export import onnxfile
from clipskip.export.checkpoint import open_checkpoint
from clipskip.export.families import facts
from clipskip.export.graphs import step_graph
from clipskip.export.models import load

SIGMAS = (14.6, 5.0, 2.0, 0.7, 0.2)
PROMPT, NEGATIVE, CFG, SEED, SIZE = "a cat", "dog, red", 5.0, 5, (96, 64)
HALVES = "context", "pooled"
LIMIT = 2  # of 255, anywhere


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_families.sdxl(tmp_path_factory.mktemp("models") / "xl")


@pytest.fixture(scope="module")
def diffusers(folder: Path) -> Callable[[int | None], np.ndarray]:
    """The picture at a clip skip in diffusers' numbering."""
    tokenizers = [
        CLIPTokenizer.from_pretrained(folder / name, pad_token=padding, model_max_length=77)
        for name, padding in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!"))
    ]
    pipe = StableDiffusionXLPipeline(
        AutoencoderKL.from_pretrained(folder / "vae"), CLIPTextModel.from_pretrained(folder / "text_encoder"),
        CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2"), *tokenizers,
        UNet2DConditionModel.from_pretrained(folder / "unet"),
        EulerDiscreteScheduler.from_pretrained(folder / "scheduler"), add_watermarker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)

    def picture(clip_skip: int | None) -> np.ndarray:
        noise = torch.randn((1, 4, SIZE[1] // 8, SIZE[0] // 8), generator=torch.Generator().manual_seed(SEED))
        made = pipe(
            PROMPT, negative_prompt=NEGATIVE, clip_skip=clip_skip, latents=noise, width=SIZE[0], height=SIZE[1],
            sigmas=[*SIGMAS, 0.0], guidance_scale=CFG, output_type="np",
        )  # fmt: skip
        return np.asarray(made.images[0] * 255)

    return picture


def picture(opened: Pipeline, **fields: Any) -> np.ndarray:
    (width, height), prompts = SIZE, {"prompt": PROMPT, "negative_prompt": NEGATIVE}
    common = {"seed": SEED, "rng": "cpu", "sampler": "Euler", "sigmas": SIGMAS, "cfg": CFG}
    # diffusers encodes the negative prompt to the penultimate layer whatever clip skip says
    result = opened(**prompts, **common, width=width, height=height, negative_clip_skip=1, **fields)
    return np.asarray(result.images[0], dtype=float)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of numpy, in diffusers
@pytest.mark.parametrize(("clip_skip", "theirs"), [(1, None), (2, None), (3, 1)])
def test_pictures_are_diffusers_own_at_every_clip_skip(
    opened: Pipeline, diffusers: Callable[[int | None], np.ndarray], clip_skip: int, theirs: int | None
) -> None:
    assert np.abs(picture(opened, clip_skip=clip_skip) - diffusers(theirs)).max() <= LIMIT


def test_clip_skip_1_and_2_are_the_penultimate_layer_and_3_is_another_picture(opened: Pipeline) -> None:
    assert opened.model.clip_skips == (2, 2, 1, 0)
    first, second, third = (picture(opened, clip_skip=skip) for skip in (1, 2, 3))
    assert np.array_equal(first, second)
    assert np.abs(first - third).max() > 10


@pytest.mark.parametrize("name", ["size_ids", "pooled"])
def test_the_size_and_the_pooled_vector_are_seen_by_the_network(
    opened: Pipeline, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    honest, put = picture(opened), Batch._put

    def without(batch: Batch, key: str, place: int, value: Any) -> None:
        put(batch, key, place, np.zeros_like(value) if key == name else value)

    monkeypatch.setattr(Batch, "_put", without)
    assert np.abs(picture(opened) - honest).max() > LIMIT


def test_emphasis_keeps_the_mean_of_each_encoder_as_in_a1111(opened: Pipeline) -> None:
    texts = [Request(prompt="a cat", cfg=1), Request(prompt="a (cat:1.5)", cfg=1)]
    (plain,), (emphasised,) = opened._text.rows([opened.check(text) for text in texts])
    contexts = [row.feeds(0)["context"].astype(float) for row in (plain, emphasised)]
    for part in (slice(32), slice(32, None)):
        assert contexts[1][:, part].mean() == pytest.approx(contexts[0][:, part].mean(), rel=1e-4)
    weighted = contexts[1] / contexts[0]
    assert weighted[2] == pytest.approx(1.5 * weighted[1], rel=1e-4)  # "cat" beside "a"
    assert np.array_equal(plain.feeds(0)["pooled"], emphasised.feeds(0)["pooled"])


def test_an_inversion_is_as_wide_as_both_encoders(exported: Store) -> None:
    artefact = exported.find(Role("text", 2), "onnx", "fp32")
    assert [port.shape[-1] for port in artefact.inputs if port.name == "concepts"] == [32 + 16]


def test_an_encoder_that_is_missing_or_too_narrow_is_refused(folder: Path, tmp_path: Path) -> None:
    alone = shutil.copytree(folder, tmp_path / "alone")
    shutil.rmtree(alone / "text_encoder")  # as in SDXL's refiner
    with pytest.raises(UnsupportedModelError, match="has 1 text encoders, and SDXL has 2"):
        facts(open_checkpoint(alone))
    narrow = shutil.copytree(folder, tmp_path / "narrow")
    path = narrow / "unet" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"projection_class_embeddings_input_dim": 80}))
    with pytest.raises(UnsupportedModelError, match="a pooled of width 32, the text encoder gives 24"):
        facts(open_checkpoint(narrow))
    path.write_text(json.dumps(config | {"addition_time_embed_dim": None}))
    with pytest.raises(UnsupportedModelError, match="does not say how wide its pooled vector is"):
        facts(open_checkpoint(narrow))


def test_two_tokenizers_that_differ_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / "tokenizer_2" / "vocab.json"
    swapped = {"a": "b", "b": "a"}
    path.write_text(json.dumps({swapped.get(token, token): i for token, i in json.loads(path.read_text()).items()}))
    with pytest.raises(CheckpointError, match="another tokenizer than"):
        open_checkpoint(copy)


def test_the_step_in_fp16_runs_with_sizes_in_fp32_beside_it(folder: Path, exported: Store, tmp_path: Path) -> None:
    networks, model = load(open_checkpoint(folder)), exported.manifest().model
    graph = step_graph(networks, model, "fp16")
    graph.module.half()
    onnx_ir.save(onnxfile.trace(graph, {}), tmp_path / "step.onnx")
    feeds = trials.of(STEP, model, True, graph.inputs)[:1]
    (given,), exact = gates.run(tmp_path / "step.onnx", feeds), exported.find(STEP, "onnx", "fp32")
    (right,) = gates.run(exported.verify(exact), [{**feeds[0], **{n: feeds[0][n].astype("f4") for n in HALVES}}])
    assert gates.relative_l2(given["next_state"], right["next_state"]) < 0.02
