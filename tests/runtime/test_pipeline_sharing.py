"""One pipeline under many threads and many requests: same bits, no growth."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clipskip
from clipskip.backends import Engine
from clipskip.backends.onnxruntime import OnnxRuntime
from clipskip.engines.manifest import Artefact

SMALL = {"width": 64, "height": 64}


@pytest.fixture(scope="module")
def pipe(sample_store: Path) -> Iterator[clipskip.Pipeline]:
    # a budget below one text engine, so that the threads also open and close engines under each other
    with clipskip.open(sample_store, backend=OnnxRuntime(threads=2), text_engine_budget=1) as pipe:
        yield pipe


def picture(pipe: clipskip.Pipeline, request: clipskip.Request) -> np.ndarray:
    return np.asarray(pipe(request).images[0])


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_eight_threads_on_one_pipeline_give_the_serial_pictures_bit_for_bit_e1(pipe: clipskip.Pipeline) -> None:
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


def test_a_request_that_was_abandoned_half_way_leaves_the_others_as_they_are_e3(pipe: clipskip.Pipeline) -> None:
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


LONG = "a large red circle beside a small blue star, " * 10


def mixed(number: int, prompt: str) -> clipskip.Request:
    """Requests of one size that differ in everything else."""
    return clipskip.Request(
        prompt=prompt,
        negative_prompt="blue" if number % 3 else "",
        clip_skip=1 + number * 5 % 13,
        cfg=(7.0, 1.0, 3.5)[number % 3],
        sampler=("Euler", "Euler a", "DPM++ 2M", "DPM++ 2M SDE", "DDIM", "Heun")[number % 6],
        steps=2 + number % 4,
        seed=number,
        rng=("cpu", "nv")[number % 2],
        **SMALL,
    )


class Counting(OnnxRuntime):
    """ONNX Runtime that counts the calls of the step engine, and for how many slots each was."""

    calls = 0
    slots: tuple[int, ...] = ()

    def open(self, artefact: Artefact, path: Path) -> Engine:
        engine = super().open(artefact, path)
        loop = engine.loop

        def counted(feeds: Any, feedback: Any) -> Any:
            made = loop(feeds, feedback)
            run = made.run

            def run_and_count(changes: Any) -> None:
                self.calls += 1
                self.slots += (len(feeds["state"]),)
                run(changes)

            made.run = run_and_count  # type: ignore[method-assign]
            return made

        engine.loop = counted  # type: ignore[method-assign]
        return engine


@pytest.mark.parametrize(("prompts", "most"), [(["a red circle", "a (blue:1.3) star"], 0.25), (["a ring", LONG], 0.5)])
def test_sixty_four_requests_from_eight_threads_share_calls_and_are_what_they_are_alone_e2(
    sample_store: Path, prompts: list[str], most: float
) -> None:
    requests = [mixed(number, prompts[number % 2]) for number in range(64)]
    backend = Counting(threads=2)  # of which each computes a part that depends on the batch
    with clipskip.open(sample_store, backend=backend) as pipe:
        alone = [picture(pipe, request) for request in requests]
        one_by_one, backend.calls = backend.calls, 0
        with ThreadPoolExecutor(8) as threads:
            together = list(threads.map(lambda request: picture(pipe, request), requests))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)
    assert backend.calls <= most * one_by_one


def test_lengths_share_calls_when_asked_to_and_the_result_says_so(sample_store: Path) -> None:
    requests = [mixed(number, prompt) for number, prompt in enumerate([LONG, "a ring", LONG, "a star"])]
    with clipskip.open(sample_store) as pipe:
        alone = [picture(pipe, request).astype(int) for request in requests]
    with clipskip.open(sample_store, share_lengths=True) as pipe:
        results = pipe.run(requests)
    for one, result in zip(alone, results, strict=True):
        assert np.abs(np.asarray(result.images[0]) - one).max() <= 1
    assert [any("share_lengths" in warning for warning in result.warnings) for result in results] == [False, True] * 2


def test_cancelling_one_of_several_images_leaves_the_others_running(sample_store: Path) -> None:
    requests = [mixed(number, "a ring") for number in range(3)]
    with clipskip.open(sample_store) as pipe:
        alone = [picture(pipe, request) for request in requests]
        running = [pipe.steps(request) for request in requests]
        for steps in running:
            next(steps)
        running[1].close()
        for number in (0, 2):
            *_, last = running[number]
            np.testing.assert_array_equal(np.asarray(last.results[0].images[0]), alone[number])


def test_warm_opens_everything_that_the_first_request_needs(sample_store: Path) -> None:
    opened: list[str] = []

    class Noting(OnnxRuntime):
        def open(self, artefact: Artefact, path: Path) -> Engine:
            opened.append(str(artefact.role))
            return super().open(artefact, path)

    with clipskip.open(sample_store, backend=Noting(), warm=[(64, 64, 1)]) as pipe:
        assert sorted(opened) == ["decode", "step", "text-11"]
        opened.clear()
        pipe("a red circle", steps=1, **SMALL)
        assert not opened


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads resident memory from /proc")
def test_hundreds_of_requests_leave_no_memory_behind_e15(sample_store: Path) -> None:
    prompts = ["a red circle", "a (blue:1.2) star", "a [red:green:1] ring", "a cross AND a square"]
    resident = []
    with clipskip.open(sample_store) as pipe:
        for number in range(200):
            pipe(prompts[number % 4], negative_prompt="small", clip_skip=1 + number % 3, seed=number, steps=1, **SMALL)
            if number >= 60 and number % 10 == 0:
                resident.append(resident_bytes())
    slope = np.polyfit(np.arange(len(resident)) * 10, resident, 1)[0]
    assert slope < 4096, f"{slope:.0f} bytes a request"


def test_nothing_is_computed_for_a_request_that_was_cancelled_and_all_it_held_is_free_e3(sample_store: Path) -> None:
    one = clipskip.Request(prompt="a red circle", sampler="DPM++ 2M", steps=6, seed=3, **SMALL)
    other = clipskip.Request(prompt="a green ring", sampler="Euler a", steps=5, seed=4, **SMALL)
    backend = Counting()
    with clipskip.open(sample_store, backend=backend) as pipe:
        alone = [picture(pipe, request) for request in (one, other)]
        backend.slots = ()
        cancelled = pipe.steps(one)
        next(cancelled)
        cancelled.close()
        assert backend.slots == (1,), "one call was made before"
        assert not pipe.driver._batches, "the batch and its loop are given back"
        cancelled, running = pipe.steps(one), pipe.steps(other)
        next(cancelled)
        next(running)
        assert backend.slots[-1] == 2, "they shared a call"
        calls = len(backend.slots)
        cancelled.close()
        *_, last = running
        assert set(backend.slots[calls:]) == {1}, "from the next call on it is not there"
        assert len(backend.slots) - calls == 4
        np.testing.assert_array_equal(np.asarray(last.results[0].images[0]), alone[1])
        np.testing.assert_array_equal(picture(pipe, one), alone[0])
