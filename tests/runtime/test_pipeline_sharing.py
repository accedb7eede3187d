"""One pipeline under many threads and many requests: same bits, no growth."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
import pytest

import clipskip

SMALL = {"width": 64, "height": 64}


@pytest.fixture(scope="module")
def pipe(sample_store: Path) -> Iterator[clipskip.Pipeline]:
    # a budget below one text engine, so that the threads also open and close engines under each other
    with clipskip.open(sample_store, text_engine_budget=1) as pipe:
        yield pipe


def picture(pipe: clipskip.Pipeline, request: clipskip.Request) -> np.ndarray:
    return np.asarray(pipe(request).images[0])


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_eight_threads_on_one_pipeline_give_the_serial_pictures_bit_for_bit(pipe: clipskip.Pipeline) -> None:
    requests = [
        clipskip.Request(prompt=prompt, clip_skip=skip, sampler=sampler, steps=3, seed=seed, **SMALL)
        for seed, (prompt, skip, sampler) in enumerate(
            product(["a red circle", "a blue star AND [a:b:2]"], [1, 2, 7, 13], ["Euler a", "DPM++ 2M", "Heun"])
        )
    ]
    serial = [picture(pipe, request) for request in requests]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda request: picture(pipe, request), requests * 2))
    for one, other in zip(together, serial * 2, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_request_that_was_abandoned_half_way_leaves_the_others_as_they_are(pipe: clipskip.Pipeline) -> None:
    one = clipskip.Request(prompt="a red circle", sampler="DPM++ 2M", steps=6, seed=3, **SMALL)
    before = picture(pipe, one)
    unfinished = pipe.steps(one)
    next(unfinished)
    other = pipe.steps(clipskip.Request(prompt="a green ring", sampler="Heun", steps=4, seed=4, **SMALL))
    next(other)
    unfinished.close()
    np.testing.assert_array_equal(picture(pipe, one), before)
    *_, last = other
    assert len(last.results) == 1


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads resident memory from /proc")
def test_hundreds_of_requests_leave_no_memory_behind(sample_store: Path) -> None:
    prompts = ["a red circle", "a (blue:1.2) star", "a [red:green:1] ring", "a cross AND a square"]
    resident = []
    with clipskip.open(sample_store) as pipe:
        for number in range(200):
            pipe(prompts[number % 4], negative_prompt="small", clip_skip=1 + number % 3, seed=number, steps=1, **SMALL)
            if number >= 60 and number % 10 == 0:
                resident.append(resident_bytes())
    slope = np.polyfit(np.arange(len(resident)) * 10, resident, 1)[0]
    assert slope < 4096, f"{slope:.0f} bytes a request"
