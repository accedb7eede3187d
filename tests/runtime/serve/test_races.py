"""Clients that do the same at once, that leave early, and that send what nobody sends by mistake."""

import asyncio
import base64
import os
import shutil
import threading
import time
from io import BytesIO
from types import SimpleNamespace

import httpx2 as httpx
import PIL.Image
import pytest

from clipskip.engines.store import read_manifest
from clipskip.errors import DeviceLost, NumericalError
from clipskip.serve import server, service
from clipskip.serve.app import create_app
from clipskip.serve.models import Models, size_of
from clipskip.serve.service import Settings

SMALL = {"prompt": "a ring", "width": 64, "height": 64, "steps": 2, "seed": 7}
EVENTS = {"Accept": "text/event-stream"}


@pytest.fixture
def app(sample_store, pipe):
    return create_app(Models([sample_store], lambda path: pipe), Settings(max_pixels=1 << 14))


def together(app, *asked):
    """What several coroutine functions, each given a client, make at the same time."""

    async def main():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=120) as client:
            return await asyncio.gather(*(each(client) for each in asked))

    return asyncio.run(main())


def posting(body, path="/v1/generate", **headers):
    return lambda client: client.post(path, json=body, headers=headers)


def test_of_two_requests_that_take_one_id_at_once_one_is_a_409_and_none_a_bug(app):
    answers = together(app, *[posting({**SMALL, "id": "same"})] * 3)
    assert sorted(each.status_code for each in answers) == [200, 409, 409]
    assert not app.state.service.running


def test_a_stream_that_is_cancelled_before_it_begins_is_a_409(app, pipe, monkeypatch):
    check, free = pipe.check, threading.Event()
    monkeypatch.setattr(pipe, "check", lambda asked: (free.wait(60), check(asked))[1])

    async def cancel(client):
        while "early" not in app.state.service.running:
            await asyncio.sleep(0.01)
        answer = await client.delete("/v1/generate/early")
        free.set()
        return answer

    answers = together(app, posting({**SMALL, "id": "early"}, **EVENTS), cancel)
    assert [each.status_code for each in answers] == [409, 204]
    assert answers[0].json()["error"]["message"] == "this request was cancelled"


def test_a_device_that_is_lost_during_a_stream_shows_in_the_health(app, pipe, monkeypatch):
    def lost(work):
        raise DeviceLost("the GPU fell off")

    monkeypatch.setattr(pipe, "finish", lost)
    for path, body in (("/v1/generate", SMALL), ("/v1/sheets", {**SMALL, "x": "clip_skip=1-2"})):
        app.state.service.models.lost = None
        (answer,) = together(app, posting(body, path, **EVENTS))
        assert "device_lost" in answer.text
        (health,) = together(app, lambda client: client.get("/healthz"))
        assert health.status_code == 503


def test_previews_that_cannot_be_made_do_not_end_their_picture(app, pipe, monkeypatch):
    def fails(images, done):
        raise NumericalError("not finite yet")

    monkeypatch.setattr(pipe, "previews", fails)
    (answer,) = together(app, posting({**SMALL, "preview": 0}, **EVENTS))
    assert ("event: result" in answer.text, "not finite" in answer.text) == (True, False)
    streaming = {"prompt": "a ring", "size": "64x64", "steps": 2, "stream": True, "partial_images": 1}
    (answer,) = together(app, posting(streaming, "/v1/images/generations"))
    assert ("image_generation.completed" in answer.text, "not finite" in answer.text) == (True, False)


def test_a_timeout_of_nothing_is_no_timeout_left_out(app):
    (answer,) = together(app, posting({**SMALL, "timeout": 0}))
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline")


def test_schedules_of_clip_skips_are_counted_together(app, pipe):
    together(app, *[posting({**SMALL, "clip_skip": f"[1:2:0.{part}]"}) for part in (4, 5)])
    assert set(pipe.scheduler.done.pictures) <= {*map(str, range(1, 14)), "schedule"}
    assert pipe.scheduler.done.pictures["schedule"] == 2


def test_a_client_s_address_is_written_into_the_log_as_an_address(app, caplog):
    async def main():
        transport = httpx.ASGITransport(app, client=("evil 200 \x9b31m", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            await client.get("/healthz")

    with caplog.at_level("INFO", "clipskip.serve"):
        asyncio.run(main())
    assert "evil?200??31m GET /healthz 200" in caplog.text


def test_names_that_clients_invent_are_counted_within_bounds_and_the_figures_can_be_read(app, monkeypatch):
    monkeypatch.setattr(service, "KINDS", 3)
    bodies = [f'{{"prompt": "a", "{name}": 1}}' for name in ("\\ud800", "x" * 10_000, "a", "b", "c", "d")]
    json = {"Content-Type": "application/json"}
    for body in bodies:
        (answer,) = together(app, lambda client, body=body: client.post("/v1/generate", content=body, headers=json))
        assert answer.status_code == 422
    counted = app.state.service.refused
    assert (len(counted), counted["request", "others"], max(len(name) for _, name in counted)) == (4, 3, 60)
    (figures,) = together(app, lambda client: client.get("/metrics"))
    assert figures.status_code == 200
    assert 'field="others"} 3.0' in figures.text


@pytest.mark.parametrize("headers", [{"Host": "["}, {"Host": "[::1"}, {"Origin": "http://["}])
def test_a_host_or_an_origin_that_is_no_address_is_a_400(app, headers):
    (answer,) = together(app, posting(SMALL, **headers))
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request")


def test_a_token_may_have_any_characters(sample_store, pipe):
    app = create_app(Models([sample_store], lambda path: pipe), Settings(token="schlüssel"))
    headers = {"Authorization": "Bearer schlüssel".encode()}
    (answer,) = together(app, lambda client: client.get("/v1/models", headers=headers))
    assert answer.status_code == 200


def test_a_given_picture_of_a_sheet_is_refused_by_its_head_as_that_of_a_request(app):
    PIL.Image.new("L", (2000, 2000)).save(encoded := BytesIO(), "PNG")
    url = f"data:image/png;base64,{base64.b64encode(encoded.getvalue()).decode()}"
    for body in ({**SMALL, "image": url, "x": "clip_skip=1-2"}, {**SMALL, "x": f'image="{url}"'}):
        (answer,) = together(app, posting(body, "/v1/sheets"))
        assert "2000x2000 pixels" in answer.json()["error"]["message"]


def stores(sample_store, folder, names):
    for name in names:
        (folder / name).mkdir()
        shutil.copy(sample_store / "manifest.json", folder / name)
    return [folder / name for name in names]


def nothing(path):
    return SimpleNamespace(path=path, close=lambda: None)


def test_who_asks_for_an_open_store_does_not_wait_for_one_that_is_being_opened(sample_store, tmp_path):
    free = threading.Event()

    def opener(path):
        assert path.name == "a" or free.wait(60)
        return nothing(path)

    async def main():
        models = Models(stores(sample_store, tmp_path, "ab"), opener)

        async def use(name):
            async with models.use(name) as pipe:
                return pipe.path.name

        first = await use("a")
        opening = asyncio.create_task(use("b"))
        await asyncio.sleep(0)
        assert await asyncio.wait_for(use("a"), 30) == first == "a"
        free.set()
        assert await opening == "b"

    try:
        asyncio.run(main())
    finally:
        free.set()


def test_a_store_built_anew_for_which_there_was_no_room_is_opened_when_there_is(sample_store, tmp_path):
    async def main():
        own = stores(sample_store, tmp_path, "ab")
        size = size_of(read_manifest(own[0]))
        models = Models(own, nothing, budget=2 * size)
        async with models.use("a") as old, models.use("b"):
            models._budget = size
            os.utime(own[0] / "manifest.json", ns=(1, 1))
            async with models.use("a") as again:
                assert again is old
        async with models.use("a") as new:
            assert new is not old

    asyncio.run(main())


def test_a_call_that_ends_while_the_readiness_is_asked_for_is_no_bug(sample_store):
    class Tally:
        seen = 0

        @property
        def since(self):
            self.seen += 1
            return time.perf_counter() if self.seen == 1 else None

    models = Models([sample_store], nothing)
    models.loaded["a"] = SimpleNamespace(pipe=SimpleNamespace(driver=SimpleNamespace(tally=Tally())))
    assert models.trouble() is None


def test_a_server_that_is_told_twice_to_end_does_not_say_that_all_was_answered(sample_store, monkeypatch, caplog):
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: setattr(self, "force_exit", True))
    with caplog.at_level("INFO", "clipskip.serve"):
        server.serve(Models([sample_store], nothing), Settings(), None)
    assert "ended without waiting" in caplog.text
    assert "answered" not in caplog.text
