"""Pictures made by other processes: what is sent again, and what is told meanwhile. Without Ray, by a fake handle."""

import asyncio
import json
import pickle
from types import SimpleNamespace

import pytest
from serving import asked

import clipskip
from clipskip import errors
from clipskip.errors import BackendUnavailable, Busy, ClipskipError, DeviceLost, RequestError
from clipskip.serve import replicas
from clipskip.serve.answers import Refusal
from clipskip.serve.app import create_app
from clipskip.serve.models import Models
from clipskip.serve.replicas import Remote, Replica, Replicas, Told, Transport
from clipskip.serve.service import Settings

SMALL = {"prompt": "a ring", "width": 64, "height": 64, "steps": 3}


class Died(Exception):
    """A replica was killed."""


class Full(Exception):
    """Too many wait for replicas."""


def wired(value):
    """What arrives of a value that is sent to another process."""
    return pickle.loads(pickle.dumps(value))


class Answers:
    """The answers of one replica to one request, and whether it was told to stop."""

    def __init__(self, source):
        self.source, self.cancelled = source, False

    async def __aiter__(self):
        async for each in self.source:
            yield wired(each)

    def cancel(self):
        self.cancelled = True


async def scripted(script):
    for each in script:
        await asyncio.sleep(0.01)
        if isinstance(each, type) or (isinstance(each, Exception) and not isinstance(each, ClipskipError)):
            raise each
        if each is WAITS:
            await asyncio.sleep(60)
        yield each


WAITS = object()


class Handle:
    """Replicas as scripts: what each request that is sent is answered, in turn. `sent` are those requests."""

    def __init__(self, *scripts):
        self.scripts, self.sent, self.streams, self.looks = list(scripts), [], [], []
        self.generate = SimpleNamespace(remote=self._generate)

    def options(self, stream):
        assert stream
        return self

    def _generate(self, request, options):
        self.sent.append(wired((request, options)))
        self.streams.append(Answers(scripted(self.scripts.pop(0))))
        return self.streams[-1]

    def broadcast(self, method, *about):
        self.looks.append((method, *about))
        return SimpleNamespace(results=lambda timeout_s, return_exceptions: [None, Died(), ["a picture"]])


def told(call, results=(), calls=4):
    return Told(call, calls, "running" if call else "queued", 4.0 - call, results)


@pytest.fixture
def no_pause(monkeypatch):
    monkeypatch.setattr(replicas, "PAUSES", (0.0, 0.0, 0.0))


def followed(handle, request, during=lambda generation, progress: None):
    """The calls that are told of a request, and its result or error."""

    async def follow():
        remote = Remote("sample", Transport(handle, (Died,), Full, lambda: 1), 2)
        generation, calls = remote.submit(request), []
        try:
            async for progress in generation:
                calls.append(progress.call)
                during(generation, progress)
            return calls, progress.results[0]
        except (ClipskipError, asyncio.CancelledError) as error:
            return calls, error
        finally:
            await asyncio.sleep(0)
            assert remote.queued == remote.running == 0
            remote.close()

    return asyncio.run(follow())


def test_a_request_whose_replica_dies_is_sent_again_with_the_seeds_that_were_drawn_once(no_pause):
    handle = Handle([told(0), Died], [Died], [told(0), told(4, ("made",))])
    request = clipskip.Request(prompt="a ring", subseed_strength=0.5)
    assert followed(handle, request)[1] == "made"
    sent = [each for each, _ in handle.sent]
    assert len(sent) == 3
    assert sent[0] == sent[1] == sent[2]
    assert sent[0].seed >= 0
    assert sent[0].subseed >= 0
    names = {options.id for _, options in handle.sent}
    assert len(names) == 3  # an attempt that is still on its way somewhere has its name


def test_what_was_told_is_not_told_again_nor_taken_back(no_pause):
    first, again = [told(0), told(1), told(3), Died], [told(0), told(2), told(3), told(4), told(4, ("made",))]
    states = []
    calls, result = followed(
        Handle(first, again), clipskip.Request(prompt="a ring"), lambda generation, _: states.append(generation.state)
    )
    assert (calls, result) == ([0, 1, 3, 4, 4], "made")
    assert states[:2] == ["queued", "running"]
    assert "queued" not in states[1:]


def test_a_repetition_has_no_preview_until_it_is_as_far_as_what_was_told(no_pause):
    async def main():
        handle = Handle([told(0), told(3), Died], [told(1), WAITS])
        remote = Remote("sample", Transport(handle, (Died,), Full, lambda: 1), 2)
        generation = remote.submit(clipskip.Request(prompt="a ring"))
        while len(handle.sent) < 2:
            await asyncio.sleep(0)
        early = await generation.preview()
        remote._ways[generation].call = 3
        late = await generation.preview()
        generation.cancel()
        await asyncio.sleep(0.01)
        assert handle.streams[-1].cancelled
        return early, late, handle

    early, late, handle = asyncio.run(main())
    assert (early, late) == ([], ["a picture"])
    assert handle.looks == [("look", handle.sent[-1][1].id, "preview")]


@pytest.mark.parametrize("gone", [Died, DeviceLost("the GPU fell off"), errors.Closed("it ends"), None])
def test_replicas_that_are_gone_one_after_the_other_end_a_request_in_the_end(no_pause, gone):
    handle = Handle(*[[told(0), *[gone] * (gone is not None)]] * 4)
    calls, error = followed(handle, clipskip.Request(prompt="a ring"))
    assert calls == [0]
    assert isinstance(error, BackendUnavailable)
    assert error.message.startswith("4 replicas in a row")
    assert len(handle.sent) == 4


def test_errors_of_the_request_are_told_and_not_tried_again():
    refusal = RequestError("clip_skip must be 1..13", field="clip_skip", hint="a number")
    handle = Handle([refusal])
    error = followed(handle, clipskip.Request(prompt="a ring"))[1]
    assert (error.message, error.field, error.hint) == (refusal.message, "clip_skip", "a number")
    assert len(handle.sent) == 1
    assert isinstance(followed(Handle([Full()]), clipskip.Request(prompt="a ring"))[1], Busy)


def test_who_cancels_or_runs_out_of_time_stops_the_replica():
    handle = Handle([told(0), WAITS])
    followed(handle, clipskip.Request(prompt="a ring"), lambda generation, _: generation.cancel())
    assert handle.streams[0].cancelled

    async def late():
        handle = Handle([told(0), WAITS])
        remote = Remote("sample", Transport(handle, (Died,), Full, lambda: 1), 1)
        generation = remote.submit(clipskip.Request(prompt="a ring"), timeout=0.05)
        with pytest.raises(Busy, match="wait already"):
            remote.submit(clipskip.Request(prompt="another"))
        with pytest.raises(errors.DeadlineExceeded):
            await generation
        await asyncio.sleep(0.01)
        return handle

    assert asyncio.run(late()).streams[0].cancelled


def test_every_error_that_a_replica_may_tell_arrives_with_all_that_it_says():
    busy = Busy("full", hint="later")
    busy.retry_after = 7.0
    kinds = [getattr(errors, name)("what", path="where", field="f", hint="do") for name in errors.__all__]
    for error in [busy, Refusal(409, "taken", field="id", hint="another"), *kinds]:
        arrived = wired(error)
        assert type(arrived) is type(error)
        assert vars(arrived) == vars(error)
        assert str(arrived) == str(error)
        assert arrived.code == error.code


class Here:
    """A handle of one replica in this process; everything is pickled on its way."""

    def __init__(self, replica):
        self.replica = replica
        self.generate = SimpleNamespace(remote=lambda *given: Answers(replica.generate(*wired(given))))
        self.ask = SimpleNamespace(remote=self._ask)

    def options(self, stream):
        return self

    async def _ask(self, *given):
        return wired(await self.replica.ask(*wired(given)))

    def broadcast(self, method, *about):
        def results(timeout_s, return_exceptions):
            return [wired(asyncio.run(getattr(self.replica, method)(*about)))]

        return SimpleNamespace(results=results)


@pytest.fixture
def both(sample_store, pipe):
    """The application in front of its models, and the same in front of a replica."""

    def models():
        return Models([sample_store], lambda path: pipe)

    handle = Here(Replica(models(), Settings(), "one"))
    transport = Transport(handle, (Died,), Full, lambda: 1)
    return create_app(models(), Settings()), create_app(Replicas([sample_store], transport, 64), Settings())


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/generate", {**SMALL, "seed": 7, "clip_skip": 2}),
        ("/v1/generate", {**SMALL, "clip_skip": 14}),
        ("/v1/generate", {**SMALL, "steps": 2000}),
        ("/v1/generate", {**SMALL, "model": "other"}),
        ("/v1/sheets", {**SMALL, "seed": 7, "x": "clip_skip=1,2"}),
        ("/v1/sheets", {**SMALL, "x": "clip_skip=1,14"}),
        ("/v1/sheets", {**SMALL, "x": "steps=1,2000"}),
        ("/sdapi/v1/txt2img", {**SMALL, "override_settings": {"CLIP_stop_at_last_layers": 14}}),
        ("/v1/images/generations", {**SMALL, "seed": 1, "size": "64x64", "model": "nothing"}),
    ],
)
def test_an_answer_is_the_same_bytes_whether_a_replica_gives_it_or_this_process(both, path, body):
    plain, remote = (asked(app, "POST", path, json=body) for app in both)
    assert remote.status_code == plain.status_code
    assert remote.content == plain.content
    ours = {"x-clipskip-seed", "x-clipskip-notes", "content-type"} & {*plain.headers}
    assert {name: remote.headers[name] for name in ours} == {name: plain.headers[name] for name in ours}


def test_settings_in_a_picture_events_and_readiness_come_from_a_replica_as_well(both):
    _, app = both
    made = asked(app, "POST", "/v1/generate", json={**SMALL, "seed": 7})
    info = asked(app, "POST", "/v1/png-info", content=made.content)
    assert info.json()["cells"][0]["request"]["seed"] == 7
    stream = asked(app, "POST", "/v1/generate", json=SMALL, headers={"Accept": "text/event-stream"}).text
    events = [block.partition("\n")[0] for block in stream.split("\n\n") if block]
    assert (events[0], events[-1]) == ("event: queued", "event: result")
    assert json.loads(stream.rpartition("data: ")[2])["images"][0]["b64_json"]
    assert asked(app, "GET", "/readyz").json() == {"ready": True, "trouble": None}
    assert asked(app, "GET", "/v1/models").json()["data"][0]["loaded"]


def test_figures_of_replicas_are_told_apart_and_each_family_stands_once(both):
    _, app = both
    asked(app, "POST", "/v1/generate", json={**SMALL, "clip_skip": 14})
    lines = asked(app, "GET", "/metrics").text.splitlines()
    types = [line for line in lines if line.startswith("# TYPE")]
    assert len(types) == len({*types})
    assert 'clipskip_refused_total{code="request",field="clip_skip"} 1.0' in lines
    assert any(line.startswith("clipskip_queued_requests{") and 'replica="one"' in line for line in lines)


def test_without_a_replica_the_server_is_not_ready_and_a_lost_device_makes_a_replica_unhealthy(sample_store, pipe):
    stores = Replicas([sample_store], Transport(Handle(), (Died,), Full, lambda: 0), 64)
    answer = asked(create_app(stores, Settings()), "GET", "/readyz")
    assert (answer.status_code, answer.json()["trouble"]) == (503, "no replica is running")
    replica = Replica(Models([sample_store], lambda path: pipe), Settings(), "one")
    asyncio.run(replica.check_health())
    replica.service.models.lost = "the GPU fell off"
    with pytest.raises(DeviceLost, match="fell off"):
        asyncio.run(replica.check_health())
