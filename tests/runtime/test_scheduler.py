"""Many requests at once for asyncio: what they give, who waits, who is refused, what becomes of those that leave."""

import asyncio
import threading
import time

import numpy as np
import pytest

import clipskip
from clipskip.errors import Busy, Closed, DeadlineExceeded, RequestError

SMALL = {"width": 64, "height": 64, "cfg": 4.0}


@pytest.fixture(scope="module")
def pipe(sample_store):
    with clipskip.open(sample_store) as pipe:
        yield pipe


def mixed(client, number):
    """One of many requests that differ in everything."""
    seed = 100 * client + number
    samplers = ("Euler", "DPM++ 2M", "Euler a", "Heun")
    prompts = ("a red circle", "a blue star", "a [ring|square], green background", "a white (triangle:1.3)")
    fields = {"clip_skip": 1 + seed % 13, "sampler": samplers[number], "steps": 2 + client % 4, "seed": seed, **SMALL}
    return clipskip.Request(prompt=prompts[client % 4], **fields)


def test_sixteen_clients_of_four_mixed_requests_get_what_each_request_gives_alone(pipe):
    requests = [mixed(client, number) for client in range(16) for number in range(4)]

    async def client(own):
        return [await pipe.generate(each) for each in own]

    async def all_clients():
        return await asyncio.gather(*(client(requests[4 * each : 4 * each + 4]) for each in range(16)))

    results = [result for each in asyncio.run(all_clients()) for result in each]
    assert [result.seeds[0] for result in results] == [request.seed for request in requests]
    assert sum(thread.name.startswith("clipskip-") for thread in threading.enumerate()) <= 3
    for request, result in zip(requests, results, strict=True):
        np.testing.assert_array_equal(np.asarray(result.images[0]), np.asarray(pipe(request).images[0]))


def test_progress_comes_in_order_and_ends_with_the_result_and_previews_are_pictures(pipe):
    async def watch():
        generation, seen, previews = pipe.generate("a ring", steps=4, seed=1, **SMALL), [], []
        async for progress in generation:
            seen.append(progress)
            previews += await generation.preview()
        return seen, previews

    seen, previews = asyncio.run(watch())
    assert [each.call for each in seen] == sorted(each.call for each in seen)
    assert (seen[-1].call, seen[-1].calls, len(seen[-1].results)) == (4, 4, 1)
    assert {picture.size for picture in previews} == {(64, 64)}


def test_a_second_pass_and_a_request_without_any_call_are_made_as_alone(pipe):
    picture = pipe("a ring", seed=1, steps=2, **SMALL).images[0]
    enlarged = clipskip.Request(prompt="a star", seed=2, steps=2, hires_scale=2, hires_upscaler="Lanczos", **SMALL)
    untouched = clipskip.Request(prompt="a ring", image=picture, strength=0, steps=2, seed=3, **SMALL)

    async def both():
        return await asyncio.gather(pipe.generate(enlarged), pipe.generate(untouched))

    for request, result in zip((enlarged, untouched), asyncio.run(both()), strict=True):
        np.testing.assert_array_equal(np.asarray(result.images[0]), np.asarray(pipe(request).images[0]))


def test_one_is_decoded_while_the_others_run_on(pipe, monkeypatch):
    finish, moved = pipe.finish, threading.Event()

    def decode(work):
        assert moved.wait(240), "the batch stands still"
        return finish(work)

    async def both():
        short, long = pipe.generate("a ring", steps=2, **SMALL), pipe.generate("a star", steps=400, **SMALL)
        while short.state != "decoding":
            await asyncio.sleep(0.01)
        call = long.progress.call
        monkeypatch.setattr(pipe, "finish", finish)
        while long.progress.call <= call:
            await asyncio.sleep(0.01)
        moved.set()
        await short
        long.cancel()

    monkeypatch.setattr(pipe, "finish", decode)
    asyncio.run(both())


def test_a_higher_priority_is_earlier_in_the_queue(sample_store):
    async def wait():
        with clipskip.open(sample_store, max_batch=1) as pipe:
            running = pipe.generate("a ring", steps=60, **SMALL)
            while running.state != "running":
                await asyncio.sleep(0.01)
            low, high = (pipe.generate("a star", steps=2, priority=level, **SMALL) for level in (0, 5))
            order = [low.position, high.position]
            ended = []
            for name, each in (("low", low), ("high", high)):
                each.future.add_done_callback(lambda future, name=name: ended.append(name))
            await asyncio.gather(running, low, high)
            return order, ended

    assert asyncio.run(wait()) == ([1, 0], ["high", "low"])


def test_a_refused_request_is_refused_as_by_the_pipeline_and_the_others_go_on(pipe):
    async def both():
        wrong, right = pipe.generate("a ring", clip_skip=99), pipe.generate("a ring", steps=2, **SMALL)
        return await asyncio.gather(wrong, right, return_exceptions=True)

    error, result = asyncio.run(both())
    assert isinstance(error, RequestError)
    with pytest.raises(RequestError) as alone:
        pipe("a ring", clip_skip=99)
    assert str(error) == str(alone.value)
    assert len(result.images) == 1


@pytest.mark.parametrize("how", ["cancel", "task"])
def test_a_cancelled_request_leaves_the_batch_within_a_call(pipe, how):
    async def leave():
        generation = pipe.generate("a ring", steps=5000, **SMALL)

        async def wait():
            return await generation

        task = asyncio.create_task(wait())
        while generation.progress is None or not generation.progress.call:
            await asyncio.sleep(0.01)
        generation.cancel() if how == "cancel" else task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await pipe.generate("a star", steps=2, **SMALL)
        return generation

    generation = asyncio.run(leave())
    assert generation.ended
    assert generation.work.making[0].image.call < 4000
    assert (pipe.scheduler.running, pipe.scheduler.queued) == (0, 0)


def test_leaving_the_loop_over_progress_cancels_the_work(pipe):
    async def leave():
        generation = pipe.generate("a ring", steps=5000, **SMALL)
        async for progress in generation:
            if progress.call:
                break
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return generation

    assert asyncio.run(leave()).ended


def test_a_request_that_is_not_done_in_time_ends_with_an_error_that_says_so_e14(pipe):
    async def late():
        start = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=r"not done within 0\.3 s"):
            await pipe.generate("a ring", steps=9000, timeout=0.3, **SMALL)
        return time.monotonic() - start

    assert asyncio.run(late()) < 60


def test_a_request_whose_driver_hangs_ends_in_time_all_the_same_e14(sample_store, monkeypatch):
    with clipskip.open(sample_store) as pipe:
        free = asyncio.run(_hang(pipe, monkeypatch))
        free.set()


async def _hang(pipe, monkeypatch):
    free = threading.Event()
    monkeypatch.setattr(pipe.driver, "advance", lambda images, calls: free.wait(100))
    with pytest.raises(DeadlineExceeded):
        await pipe.generate("a ring", steps=3, timeout=0.2, **SMALL)
    return free


def test_a_full_queue_is_busy_and_says_when_to_try_again(sample_store):
    async def crowd():
        with clipskip.open(sample_store, max_queue=2) as pipe:
            taken = [pipe.generate("a ring", steps=3, seed=seed, **SMALL) for seed in range(2)]
            with pytest.raises(Busy, match="2 requests wait already") as refused:
                await pipe.generate("one too many", **SMALL)
            assert 1 <= refused.value.retry_after <= 60
            assert [each.position for each in taken] == [0, 1]
            assert [len((await each).images) for each in taken] == [1, 1]
            assert pipe.scheduler.done.ended["done"] == 2

    asyncio.run(crowd())


def test_closing_the_pipeline_ends_what_is_on_its_way(sample_store):
    async def close():
        with clipskip.open(sample_store) as pipe:
            generation = pipe.generate("a ring", steps=5000, **SMALL)
        with pytest.raises(Closed):
            await generation
        with pytest.raises(Closed):
            await pipe.generate("a star")

    asyncio.run(close())


@pytest.mark.parametrize("field", ["timeout", "priority"])
def test_what_is_no_number_is_refused(pipe, field):
    async def wrong():
        with pytest.raises(RequestError, match=f"^{field} must be"):
            await pipe.generate("a ring", **{field: "soon"})

    asyncio.run(wrong())
