"""Whole pictures of the runtime against transformers' and diffusers' networks driven by independent samplers.

24 of the 192 pictures of the full product run by default: they hold every triple of settings. All of them:
CLIPSKIP_ALL_PICTURES=1 pytest tests/test_pictures.py (about 4 minutes on two cores).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import reference
from reference import Reference, Wanted
from reference_text import Part

import clipskip

SAMPLERS = ["Euler", "DDIM", "DPM++ 2M"]
SKIPS = [1, 2, 7, 13]
PAIRS = [
    ("uniform", "karras"),
    ("", "blue, small"),
    (6.0, 1.0),
    ((128, 128), (192, 128)),
]
# One code for each sampler and skip: its bits choose from PAIRS, and the picture with the opposite choices runs too.
# Found by search: 12 codes and their complements hold every triple.
CODES = [0o2, 0o7, 0o4, 0o0, 0o4, 0o2, 0o1, 0o5, 0o7, 0o1, 0o2, 0o6]
PROMPTS = ["a large red circle on a green background", "a small yellow star left of a large purple square"]
LIMIT = 2  # of 255, anywhere

Setting = tuple[str, int, str, str, float, tuple[int, int]]


def covering() -> list[Setting]:
    """24 settings that hold every triple of values."""
    codes = zip(product(SAMPLERS, SKIPS), CODES, strict=True)
    return [(*pair, *chosen) for pair, code in codes for chosen in (_choose(code), _choose(code ^ 0o17))]


def _choose(code: int) -> tuple[str, str, float, tuple[int, int]]:
    schedule, negative, cfg, size = (pair[code >> bit & 1] for bit, pair in enumerate(PAIRS))
    return schedule, negative, cfg, size  # type: ignore[return-value]


ALL = list(product(SAMPLERS, SKIPS, *PAIRS))
SETTINGS = ALL if os.environ.get("CLIPSKIP_ALL_PICTURES") else covering()


def wanted(number: int, setting: Setting) -> Wanted:
    sampler, skip, schedule, negative, cfg, (width, height) = setting
    return Wanted(
        prompt=PROMPTS[number % 2],
        negative=negative,
        clip_skip=skip,
        seed=1000 + number,
        steps=8,
        cfg=cfg,
        sampler=sampler,
        schedule=schedule,
        width=width,
        height=height,
    )


def request(one: Wanted, **fields: object) -> clipskip.Request:
    """The runtime's request for a picture; prompts with syntax are given in `fields` as a user writes them."""
    shared = ["clip_skip", "negative_clip_skip", "seed", "steps", "cfg", "sampler", "schedule", "width", "height"]
    same = {name: getattr(one, name) for name in shared}
    prompts = {"prompt": one.prompt, "negative_prompt": one.negative}
    return clipskip.Request(**{**prompts, **same, **fields})  # type: ignore[arg-type]


def run(pipe: clipskip.Pipeline, requests: Sequence[clipskip.Request]) -> list[np.ndarray]:
    return [np.asarray(result.images[0]) for result in pipe.run(requests)]


def distance(one: np.ndarray, other: np.ndarray) -> int:
    assert one.shape == other.shape
    assert one.std() > 3, "a picture without content proves nothing"
    return int(np.abs(one.astype(int) - other.astype(int)).max())


@pytest.fixture(scope="module")
def pipe(sample_store: Path) -> Iterator[clipskip.Pipeline]:
    with clipskip.open(sample_store) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def truth(sample_checkpoint: Path) -> Reference:
    return reference.load(sample_checkpoint)


@pytest.fixture(scope="module")
def differences(pipe: clipskip.Pipeline, truth: Reference) -> dict[Setting, int]:
    """Of all settings at once: both sides are faster in batches."""
    pictures = [wanted(number, setting) for number, setting in enumerate(SETTINGS)]
    made = run(pipe, [request(one) for one in pictures])
    pairs = zip(made, truth.pictures(pictures), strict=True)
    return {setting: distance(*pair) for setting, pair in zip(SETTINGS, pairs, strict=True)}


def test_the_chosen_pictures_hold_every_triple_of_settings() -> None:
    axes = [SAMPLERS, SKIPS, *PAIRS]
    for columns in combinations(range(6), 3):
        seen = {tuple(setting[column] for column in columns) for setting in covering()}
        assert seen == set(product(*(axes[column] for column in columns)))


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_pictures_equal_the_reference(setting: Setting, differences: dict[Setting, int]) -> None:
    assert differences[setting] <= LIMIT


STOCHASTIC = [
    Wanted(prompt=PROMPTS[1], sampler=sampler, schedule=schedule, steps=12, seed=2**32 + 5, clip_skip=2)
    for sampler, schedule in [("Euler a", "uniform"), ("DPM++ 2M SDE", "exponential"), ("Heun", "sgm_uniform")]
]


@pytest.mark.parametrize("one", STOCHASTIC, ids=lambda one: one.sampler)
def test_the_other_samplers_and_schedules_equal_the_reference(
    one: Wanted, pipe: clipskip.Pipeline, truth: Reference
) -> None:
    assert distance(*run(pipe, [request(one)]), *truth.pictures([one])) <= LIMIT


def test_every_image_of_a_request_has_the_noise_of_its_own_seed(pipe: clipskip.Pipeline, truth: Reference) -> None:
    one = Wanted(prompt=PROMPTS[0], sampler="Euler a", steps=6, seed=41)
    images = pipe(request(one, batch=3)).images
    expected = truth.pictures([replace(one, seed=41 + i) for i in range(3)])
    for image, picture in zip(images, expected, strict=True):
        assert distance(np.asarray(image), picture) <= LIMIT


def test_the_negative_prompt_can_have_a_depth_of_its_own(pipe: clipskip.Pipeline, truth: Reference) -> None:
    one = Wanted(prompt=PROMPTS[0], negative="red", clip_skip=2, negative_clip_skip=9, steps=8, seed=4)
    assert distance(*run(pipe, [request(one)]), *truth.pictures([one])) <= LIMIT


@pytest.mark.parametrize("steps", [2, 10, 30])
def test_ddim_equals_the_reference(pipe: clipskip.Pipeline, truth: Reference, steps: int) -> None:
    one = Wanted(prompt=PROMPTS[0], negative="blue", clip_skip=2, steps=steps, seed=3, cfg=5, sampler="DDIM")
    assert distance(*run(pipe, [request(one)]), *truth.pictures([one])) <= 1


@pytest.mark.parametrize("cfg", [0, 0.5, 1])
def test_a_cfg_below_1_equals_the_reference(pipe: clipskip.Pipeline, truth: Reference, cfg: float) -> None:
    one = Wanted(prompt=PROMPTS[0], negative="blue", clip_skip=2, steps=8, seed=3, cfg=cfg)
    assert distance(*run(pipe, [request(one)]), *truth.pictures([one])) <= 1


def test_step_noise_from_another_seed_equals_the_reference(pipe: clipskip.Pipeline, truth: Reference) -> None:
    one = Wanted(prompt=PROMPTS[0], negative="blue", clip_skip=2, steps=8, seed=2**64 - 5, sampler="Euler a")
    other = replace(one, seed=7, ensd=31337)
    made = run(pipe, [request(other, eta_noise_seed_delta=31337), request(one, eta_noise_seed_delta=5 - 2**64)])
    assert distance(made[0], *truth.pictures([other])) <= LIMIT
    assert distance(made[1], *truth.pictures([replace(one, ensd=5 - 2**64)])) <= LIMIT


@pytest.mark.parametrize(("width", "height"), [(136, 128), (128, 184), (120, 232)])
def test_sizes_that_the_network_does_not_halve_evenly_equal_the_reference(
    pipe: clipskip.Pipeline, truth: Reference, width: int, height: int
) -> None:
    one = Wanted(prompt=PROMPTS[0], clip_skip=2, steps=8, seed=8, cfg=5, width=width, height=height)
    assert distance(*run(pipe, [request(one)]), *truth.pictures([one])) <= 1


LONG = ", ".join(f"a {size} {colour} circle" for size in ("small", "large") for colour in ("red", "blue", "green")) * 7


def test_a_prompt_of_three_chunks_equals_the_reference(pipe: clipskip.Pipeline, truth: Reference) -> None:
    one = Wanted(prompt=LONG, negative="blue", clip_skip=2, steps=8, seed=9)
    assert len(truth.text.chunks(((LONG, 1.0),))) == 3
    assert distance(*run(pipe, [request(one)]), *truth.pictures([one])) <= LIMIT


def test_a_negative_prompt_longer_than_the_prompt_equals_the_reference(
    pipe: clipskip.Pipeline, truth: Reference
) -> None:
    one = Wanted(prompt=PROMPTS[0], negative=LONG, clip_skip=3, steps=8, seed=10)
    assert distance(*run(pipe, [request(one)]), *truth.pictures([one])) <= LIMIT


def test_a_prompt_with_all_of_the_grammar_equals_the_reference(pipe: clipskip.Pipeline, truth: Reference) -> None:
    """5 steps of Heun are 9 calls of the network, scheduled as 10: 0.4 is after call 4."""
    red, green = ((("a ", 1.0), (colour, 1.3), (" circle", 1.0)) for colour in ("red", "green"))
    parts = [Part(((4, red), (10, green))), Part(((10, (("striped background", 1 / 1.1),)),), weight=0.6)]
    one = Wanted(prompt=parts, negative="small", clip_skip=2, steps=5, seed=6, sampler="Heun", schedule="karras")
    prompt = "a ([red:green:0.4]:1.3) circle AND [striped background] :0.6"
    assert distance(*run(pipe, [request(one, prompt=prompt)]), *truth.pictures([one])) <= LIMIT


MIXED = [  # 7, 9 and 12 calls of the network: the first two end while the third goes on; the last has a longer context
    Wanted(prompt=PROMPTS[0], clip_skip=1, cfg=7, sampler="DPM++ 2M SDE", schedule="karras", steps=7, seed=1),
    Wanted(prompt=PROMPTS[1], clip_skip=7, cfg=1, sampler="Heun", schedule="uniform", steps=5, seed=2),
    Wanted(prompt=PROMPTS[0], negative="green", clip_skip=13, cfg=3, sampler="Euler a", steps=12, seed=3),
    Wanted(prompt=LONG, negative="blue", clip_skip=2, cfg=5, sampler="DPM++ 2M", steps=4, seed=4),
]


def test_a_batch_of_different_requests_gives_the_pictures_of_single_ones(
    pipe: clipskip.Pipeline, truth: Reference
) -> None:
    requests = [request(one) for one in MIXED]
    together, alone = run(pipe, requests), [run(pipe, [one])[0] for one in requests]
    for one, other, picture in zip(together, alone, truth.pictures(MIXED), strict=True):
        np.testing.assert_array_equal(one, other)
        assert distance(one, picture) <= LIMIT


def test_a_picture_does_not_depend_on_its_place_in_the_batch(pipe: clipskip.Pipeline) -> None:
    one = request(Wanted(prompt=PROMPTS[0], sampler="Euler a", steps=6, seed=77))
    others = [request(Wanted(prompt=PROMPTS[1], sampler="Euler a", steps=6, seed=seed)) for seed in (1, 2, 3)]
    np.testing.assert_array_equal(run(pipe, [one])[0], run(pipe, [*others[:2], one, others[2]])[2])
