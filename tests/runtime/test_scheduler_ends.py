"""What a request of asyncio says when it has ended, or was never taken: to who asks again, and to who gathers many."""

import asyncio

import pytest

import clipskip
from clipskip.errors import Busy, DeadlineExceeded, RequestError

SMALL = {"width": 64, "height": 64, "cfg": 1.0, "steps": 1, "seed": 1}


@pytest.fixture(scope="module")
def pipe(sample_store):
    with clipskip.open(sample_store) as pipe:
        yield pipe


def test_who_looks_again_at_a_request_that_is_done_gets_the_result_at_once(pipe):
    async def twice():
        generation = pipe.generate("a ring", **SMALL)
        first = [each async for each in generation]
        second = await asyncio.wait_for(listed(generation), 20)
        return first[-1].results, [each.results for each in second], (await generation,)

    first, second, awaited = asyncio.run(twice())
    assert second == [first] == [awaited]


async def listed(generation):
    return [each async for each in generation]


@pytest.mark.parametrize(
    ("fields", "error"), [({"timeout": 0}, DeadlineExceeded), ({"clip_skip": 99}, RequestError), ({}, None)]
)
def test_who_looks_again_at_a_request_that_went_wrong_hears_it_at_once(pipe, fields, error):
    async def twice():
        generation = pipe.generate("a ring", **{**SMALL, "steps": 900, **fields})
        if error is None:
            generation.cancel()
        for _ in range(2):
            with pytest.raises(error or asyncio.CancelledError):
                await asyncio.wait_for(listed(generation), 20)

    asyncio.run(twice())


def test_of_more_requests_than_the_queue_takes_those_that_it_took_are_made(sample_store):
    async def crowd():
        with clipskip.open(sample_store, max_queue=2) as pipe:
            many = [pipe.generate("a ring", **SMALL) for _ in range(4)]
            refused = many[3]
            assert (refused.ended, refused.state, refused.position, await refused.preview()) == (True, "ended", 0, [])
            return await asyncio.gather(*many, return_exceptions=True)

    made = asyncio.run(crowd())
    assert [type(each) for each in made] == [clipskip.Result] * 2 + [Busy] * 2


@pytest.mark.parametrize("fields", [{"guidence": 7}, {"timeout": "soon"}, {"priority": 101}])
def test_what_is_wrong_with_a_request_is_raised_where_it_is_awaited(pipe, fields):
    async def wrong():
        generation = pipe.generate("a ring", **fields)
        for waited in (generation, listed(generation)):
            with pytest.raises(RequestError, match=next(iter(fields))):
                await asyncio.wait_for(waited, 20)

    asyncio.run(wrong())


def test_without_an_event_loop_the_error_says_what_to_do(pipe):
    with pytest.raises(RequestError, match=r"no event loop is running here") as told:
        pipe.generate("a ring")
    assert "asyncio.run" in told.value.hint
