"""The sample checkpoint: its drawings, captions, checker, and the folder that ships."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

SAMPLE = Path(__file__).parents[2] / "export" / "sample"
WEIGHTS = (
    "text_encoder/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
)
MODULES = ("scenes", "captions", "checker", "words")


@pytest.fixture(scope="module")
def sample() -> Iterator[dict[str, ModuleType]]:
    """The scripts' modules, which are no package: found by path, and forgotten afterwards."""
    sys.path.insert(0, str(SAMPLE))
    yield {name: import_module(name) for name in MODULES}
    sys.path.remove(str(SAMPLE))
    for name in MODULES:
        sys.modules.pop(name, None)


def described(sample: dict[str, ModuleType], count: int, held_out: bool) -> list[tuple[object, object]]:
    """Scenes with captions that name everything."""
    rng = np.random.default_rng(11)
    writer = sample["captions"].Writer(rng, sample["captions"].EVERYTHING)
    scenes = [sample["scenes"].random_scene(rng, held_out) for _ in range(count)]
    return [(scene, writer.caption(scene)) for scene in scenes]


def test_the_checker_agrees_with_the_drawer(sample: dict[str, ModuleType]) -> None:
    rng = np.random.default_rng(12)
    pairs = described(sample, 60, held_out=False)
    right = [sample["checker"].check(sample["scenes"].draw(scene, rng), caption.named) for scene, caption in pairs]
    assert sum(all(facts.values()) for facts in right) >= 59


def test_the_checker_notices_every_wrong_fact(sample: dict[str, ModuleType]) -> None:
    captions, rng = sample["captions"], np.random.default_rng(13)
    for scene, caption in described(sample, 10, held_out=False):
        picture = sample["scenes"].draw(scene, rng)
        for name, value in caption.named.items():
            other = next(option for option in captions.ATTRIBUTES[name] if option != value)
            assert not sample["checker"].check(picture, caption.named | {name: other})[name]


def test_a_scene_and_a_seed_always_give_the_same_picture(sample: dict[str, ModuleType]) -> None:
    scene, _ = described(sample, 1, held_out=False)[0]
    first, second = (sample["scenes"].draw(scene, np.random.default_rng(5)) for _ in range(2))
    assert first.shape == (128, 128, 3)
    assert np.array_equal(first, second)


def test_held_out_prompts_are_never_written_for_training_scenes(sample: dict[str, ModuleType]) -> None:
    kept = {caption.text for _, caption in described(sample, 400, held_out=True)}
    rng = np.random.default_rng(14)
    writer = sample["captions"].Writer(rng)
    trained = {writer.caption(sample["scenes"].random_scene(rng)).text for _ in range(4000)}
    assert not kept & trained


def test_each_word_of_the_grammar_is_one_token(sample: dict[str, ModuleType]) -> None:
    tokenizer = sample["words"].Words(SAMPLE / "tokenizer").tokenizer
    for _, caption in described(sample, 100, held_out=False):
        words = caption.text.replace(",", " ,").split()
        assert len(tokenizer.encode(caption.text).ids) <= len(words) + 1  # "2shapes" is two
        assert len(words) <= 40


def test_unknown_words_fall_to_pieces_but_stay_whole(sample: dict[str, ModuleType]) -> None:
    tokenizer = sample["words"].Words(SAMPLE / "tokenizer").tokenizer
    pieces = tokenizer.encode("zweihänder").tokens
    assert 1 < len(pieces) <= 11
    assert pieces[-1].endswith("</w>")


def test_the_folder_has_the_parts_of_a_pipeline() -> None:
    index = json.loads((SAMPLE / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    for part in ("text_encoder", "unet", "vae"):
        assert (SAMPLE / part / "config.json").is_file()
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"):
        assert (SAMPLE / "tokenizer" / name).is_file()
    schedule = json.loads((SAMPLE / "scheduler" / "scheduler_config.json").read_text())
    assert (schedule["beta_schedule"], schedule["prediction_type"]) == ("scaled_linear", "epsilon")


def test_the_weights_are_finite_fp16_and_small() -> None:
    load_file = import_module("safetensors.numpy").load_file
    assert sum((SAMPLE / name).stat().st_size for name in WEIGHTS) <= 20e6
    for name in WEIGHTS:
        for key, value in load_file(SAMPLE / name).items():
            assert value.dtype == np.float16, key
            assert np.isfinite(value).all(), key


def test_the_text_encoder_has_twelve_layers_named_as_in_sd_1() -> None:
    keys = import_module("safetensors.numpy").load_file(SAMPLE / WEIGHTS[0])
    assert all(key.startswith("text_model.") for key in keys)
    assert len({key.split(".")[3] for key in keys if ".layers." in key}) == 12


def test_fidelity_is_measured_at_all_depths_and_deeper_is_better() -> None:
    report = json.loads((SAMPLE / "fidelity.json").read_text())
    rows = {row["clip_skip"]: row for row in report["by_clip_skip"]}
    assert sorted(rows) == list(range(1, 14))
    assert report["prompts"] >= 64
    for group in ("everything", "colours"):
        deep, shallow = (max(rows[skip][group]["mean"] for skip in skips) for skips in ((1, 2), (12, 13)))
        assert deep > shallow + 0.1
