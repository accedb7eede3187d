"""How many calls of the network a set of requests costs: counted at the step engine, which does not run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from recording import Recording

import clipskip

SMALL = {"width": 64, "height": 64}


@pytest.fixture
def seen() -> Recording:
    return Recording()


@pytest.fixture
def pipe(sample_store: Path, seen: Recording) -> Iterator[clipskip.Pipeline]:
    with clipskip.open(sample_store, backend=seen) as pipe:
        yield pipe


def shapes(seen: Recording) -> list[tuple[int, int]]:
    """Images and rows of each call."""
    return [(int(feeds["mix"].any(axis=1).sum()), feeds["mix"].shape[1]) for feeds in seen.calls]


def test_two_pictures_with_two_and_parts_cost_one_call_a_step(pipe: clipskip.Pipeline, seen: Recording) -> None:
    pipe("a circle AND a star", batch=2, steps=4, sampler="Euler", **SMALL)
    assert shapes(seen) == [(2, 6)] * 4


def test_without_guidance_each_picture_is_one_row(pipe: clipskip.Pipeline, seen: Recording) -> None:
    pipe("a circle", negative_prompt="a star", cfg=1, batch=3, steps=2, sampler="Euler", **SMALL)
    assert shapes(seen) == [(3, 3)] * 2


def test_pictures_that_are_done_leave_the_batch(pipe: clipskip.Pipeline, seen: Recording) -> None:
    shared = {"prompt": "a circle", **SMALL}
    pipe.run(
        [
            clipskip.Request(sampler="Euler", steps=2, **shared),
            clipskip.Request(sampler="Heun", steps=3, cfg=1, **shared),
            clipskip.Request(sampler="DDIM", steps=3, **shared),
        ]
    )
    assert shapes(seen) == [(3, 5)] * 2 + [(2, 3)] + [(1, 1)] * 2
    assert all(feeds["rows"].shape[0] == feeds["context"].shape[0] == feeds["mix"].shape[1] for feeds in seen.calls)
