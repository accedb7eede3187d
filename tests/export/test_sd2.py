"""SD 2.x: its pictures are those of torch's networks, whatever they predict; clip skip changes none of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reference
import tiny_families
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from reference import Wanted
from reference_solvers import Diffusion

import clipskip
from clipskip import Pipeline, metadata
from clipskip.engines.manifest import Role
from clipskip.engines.store import Store
from clipskip.export import export
from clipskip.export.checkpoint import open_checkpoint
from clipskip.export.families.sd2 import SD2
from clipskip.export.models import float_attention, load
from clipskip.schedules import LEAST

LIMIT = 2  # of 255, anywhere
SHORT, LONG = "a cat", "a b c d e f g h " * 12  # of 77 and of 154 tokens
NO_EFFECT = "clip skip has no effect on this model"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_families.sd2(tmp_path_factory.mktemp("models") / "two")


@pytest.fixture(scope="module")
def store(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    root = tmp_path_factory.mktemp("stores") / "two"
    export(folder, root)
    return Store(root)


@pytest.fixture(scope="module")
def opened(store: Store) -> Iterator[Pipeline]:
    with clipskip.open(store.root) as pipe:
        yield pipe


def diffusion(prediction: str, zero_snr: bool) -> Diffusion:
    """The noise of the model, rescaled by diffusers; A1111's last level, which is not quite without a signal."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = (1 - (rescale_zero_terminal_snr(betas) if zero_snr else betas)).cumprod(0).numpy()
    kept[-1] = LEAST if zero_snr else kept[-1]
    return Diffusion(np.sqrt((1 - kept) / kept), prediction)


@pytest.mark.parametrize(
    ("prediction", "zero_snr", "prompt", "sampler"),
    [
        ("epsilon", False, SHORT, "Euler"),
        ("v_prediction", False, LONG, "DDIM"),
        ("v_prediction", True, SHORT, "DPM++ 2M"),
        ("v_prediction", True, LONG, "Euler"),
    ],
)
def test_pictures_are_those_of_torch_whatever_the_network_predicts(
    folder: Path, store: Store, tmp_path: Path, prediction: str, zero_snr: bool, prompt: str, sampler: str
) -> None:
    right = reference.load(folder)
    right = replace(right, text=replace(right.text, padding=0), diffusion=diffusion(prediction, zero_snr))
    wanted = Wanted(prompt=prompt, negative="b", seed=3, steps=8, cfg=4.0, sampler=sampler, width=96, height=64)
    manifest = json.loads((store.root / "manifest.json").read_text())
    manifest["model"] |= {"prediction": prediction, "zero_snr": zero_snr}
    for name in {Path(record["path"]).parts[0] for each in manifest["artefacts"] for record in each["files"]}:
        (tmp_path / name).symlink_to(store.root / name)
    for record in manifest["tokenizer"]:
        if not (tmp_path / Path(record["path"]).parts[0]).exists():
            (tmp_path / Path(record["path"]).parts[0]).symlink_to(store.root / Path(record["path"]).parts[0])
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with clipskip.open(tmp_path) as pipe:
        made = pipe(
            prompt, negative_prompt="b", seed=3, steps=8, cfg=4.0, sampler=sampler, schedule="uniform", rng="cpu",
            width=96, height=64,
        )  # fmt: skip
    got, exact = np.asarray(made.images[0], dtype=float), right.pictures([wanted])[0]
    assert exact.std() > 10
    assert np.abs(got - exact).max() <= LIMIT


def test_every_clip_skip_gives_the_same_picture_and_one_note(opened: Pipeline) -> None:
    results = {skip: opened(SHORT, clip_skip=skip, steps=2, seed=1) for skip in (1, 2, 12)}
    pixels = {result.images[0].tobytes() for result in results.values()}
    assert len(pixels) == 1
    assert {Role("text", 3)} == {Role.parse(name) for name in results[12].engines if name.startswith("text")}
    for result in results.values():
        assert [note for note in result.warnings if "clip" in note] == list(result.warnings)
        assert len(result.warnings) == 1
        assert result.warnings[0].startswith(NO_EFFECT)
        assert "Clip skip" not in metadata.parameters(result.origin(0))
    assert not opened(SHORT, steps=1, seed=1).warnings
    inside = opened("a <clipskip:5> cat", negative_clip_skip="1, 1:3", steps=2, seed=1)
    assert [note for note in inside.warnings if note.startswith(NO_EFFECT)] == [*inside.warnings]


def test_folders_keep_23_layers_and_of_24_the_last_one_is_left_out() -> None:
    for layers in (23, 24):
        assert {*SD2.clip_skips(layers)} == {23}
    assert len(SD2.clip_skips(23)) >= 13  # what people send for SD 1.x


def test_attention_that_overflows_in_fp16_is_computed_in_fp32(folder: Path) -> None:
    unet = load(open_checkpoint(folder)).unet.half()
    attn = next(each for each in unet.modules() if isinstance(each, Attention))
    assert attn.processor is float_attention
    large = torch.full((1, 40, 16), 200.0).half() + torch.arange(40).half()[None, :, None]
    for weight in (attn.to_q.weight, attn.to_k.weight):
        weight.data = torch.eye(16).half() * 4  # queries and keys of 1000, scores of millions
    scores = attn.to_q(large) @ attn.to_k(large).transpose(1, 2)
    assert not scores.isfinite().all()
    exact = attn.float()(large.float())
    attn.half()
    assert torch.equal(exact.isfinite(), torch.ones_like(exact, dtype=torch.bool))
    assert torch.allclose(attn(large).float(), exact, rtol=2e-2, atol=2e-2)
    attn.set_processor(AttnProcessor2_0())
    assert attn(large).isfinite().all() or True
