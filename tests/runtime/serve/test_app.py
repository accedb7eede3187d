"""The server's own API, asked through the application alone: what it answers, refuses, counts and never does."""

import asyncio
import base64
import json
import logging
import os
import random
import time
from io import BytesIO

import httpx2 as httpx
import numpy as np
import PIL.Image
import pytest
from starlette.requests import ClientDisconnect

from clipskip import errors
from clipskip.request import FIELDS
from clipskip.serve.answers import STATUS, refused, status_of
from clipskip.serve.app import create_app
from clipskip.serve.guard import Guard
from clipskip.serve.models import Models
from clipskip.serve.service import OPTIONS, Settings

SMALL = {"width": 64, "height": 64, "steps": 2, "seed": 7}
JSON = {"content-type": "application/json"}


@pytest.fixture
def ask(sample_store, pipe):
    """A function that sends one request to a server of these settings; the server's `app` is among its attributes."""

    def asked(method, path, settings=None, base="http://127.0.0.1:7860", **parts):
        if settings is not None or not hasattr(asked, "app"):
            asked.app = create_app(Models([sample_store], lambda path: pipe), settings or Settings())

        async def send():
            transport = httpx.ASGITransport(asked.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url=base) as client:
                return await client.request(method, path, **parts)

        return asyncio.run(send())

    return asked


def picture(answer):
    assert answer.status_code == 200, answer.text
    return np.asarray(PIL.Image.open(BytesIO(answer.content)))


def error(answer, status):
    assert answer.status_code == status, answer.text
    assert set(answer.json()["error"]) == {"code", "message", "field", "hint"}
    return answer.json()["error"]


def test_a_png_carries_its_request_and_is_byte_for_byte_the_pipelines(ask, pipe):
    answer = ask("POST", "/v1/generate", json={"prompt": "a ring", "clip_skip": 2, **SMALL})
    assert answer.headers["content-type"] == "image/png"
    assert answer.content == pipe("a ring", clip_skip=2, **SMALL).png()
    assert answer.headers["x-clipskip-seed"] == "7"


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_accept_chooses_the_format(ask, kind):
    answer = ask("POST", "/v1/generate", json={"prompt": "a ring", **SMALL}, headers={"accept": f"image/{kind}"})
    assert PIL.Image.open(BytesIO(answer.content)).format == kind.upper()


def test_json_has_every_picture_of_a_batch_with_its_seed_and_the_request_with_all_defaults(ask, pipe):
    asked = {"prompt": "a ring", "batch": 2, **SMALL}
    made = ask("POST", "/v1/generate", json=asked, headers={"accept": "application/json"}).json()
    assert [each["seed"] for each in made["images"]] == [7, 8]
    for each, alone in zip(made["images"], pipe("a ring", batch=2, **SMALL).images, strict=True):
        decoded = PIL.Image.open(BytesIO(base64.b64decode(each["b64_json"])))
        np.testing.assert_array_equal(np.asarray(decoded), np.asarray(alone))
    assert made["request"]["sampler"] == "DPM++ 2M"
    assert made["request"].keys() == FIELDS.keys()


def events(answer):
    blocks = [block.split("\n") for block in answer.text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


def test_events_tell_the_queue_the_progress_and_the_result_with_previews_between(ask):
    asked = {"prompt": "a ring", **SMALL, "steps": 30, "preview": 0, "id": "mine"}
    told = events(ask("POST", "/v1/generate", json=asked, headers={"accept": "text/event-stream"}))
    names = [name for name, _ in told]
    assert (names[0], names[-1]) == ("queued", "result")
    assert {"progress", "preview"} <= set(names)
    assert told[0][1]["id"] == "mine"
    calls = [data["call"] for name, data in told if "call" in data]
    assert (calls, calls[-1]) == (sorted(calls), 30)
    shown = next(data["images"] for name, data in told if name == "preview" and data["images"])
    assert PIL.Image.open(BytesIO(base64.b64decode(shown[0]))).size == (64, 64)


def test_a_refused_request_is_an_error_also_where_events_were_asked_for(ask):
    asked, accept = {"prompt": "a ring", "clip_skip": 14}, {"accept": "text/event-stream"}
    assert error(ask("POST", "/v1/generate", json=asked, headers=accept), 422)["field"] == "clip_skip"


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"prompt": "a ring", "guidence": 7}, "guidence"),
        ({"prompt": "a ring", "image": "/etc/passwd"}, "image"),
        ({"prompt": "a ring", "image": "http://127.0.0.1/a.png"}, "image"),
        ({"prompt": "a ring", "mask": "file:///etc/passwd"}, "mask"),
        ({"prompt": "a ring", "loras": ["../../etc/passwd:1"]}, "loras"),
        ({"prompt": "a ring", "timeout": "soon"}, "timeout"),
        ({"prompt": "a ring", "priority": 101}, "priority"),
        ({"prompt": "a ring", "id": "../x"}, "id"),
        ({"prompt": "a ring", "format": "BMP"}, "format"),
        ({}, "prompt"),
    ],
)
def test_what_is_no_request_is_refused_by_the_name_of_its_field(ask, asked, field):
    assert error(ask("POST", "/v1/generate", json=asked), 422)["field"] == field


def test_limits_of_pixels_calls_and_bytes_and_bombs_are_refused_before_any_work(ask):
    tight = Settings(max_pixels=128 * 128, max_calls=50, max_body=100_000)
    large = error(ask("POST", "/v1/generate", tight, json={"prompt": "a", "width": 256, "height": 128}), 422)
    assert "32768 pixels are more than 16384" in large["message"]
    many = error(ask("POST", "/v1/generate", json={"prompt": "a", **SMALL, "batch": 5}), 422)
    assert many["field"] == "width"
    assert error(ask("POST", "/v1/generate", json={"prompt": "a", "width": 64, "height": 64, "steps": 51}), 422)
    body = b'{"prompt": "' + b"a" * 100_000 + b'"}'
    assert error(ask("POST", "/v1/generate", content=body, headers=JSON), 413)["code"] == "too_large"

    async def parts():
        for _ in range(1000):
            yield b" " * 1000

    assert error(ask("POST", "/v1/generate", content=parts(), headers=JSON), 413)
    PIL.Image.new("1", (4000, 4000)).save(bomb := BytesIO(), "PNG")
    url = "data:image/png;base64," + base64.b64encode(bomb.getvalue()).decode()
    assert len(url) < 10_000
    assert error(ask("POST", "/v1/generate", json={"prompt": "a", "image": url, **SMALL}), 422)["field"] == "image"
    assert ask.app.state.service.models.loaded["test-store-sample"].pipe.driver.waiting == 0


@pytest.mark.hypothesis  # so that `make fuzz` sends 10,000
def test_malformed_bodies_are_never_our_fault(ask):
    random.seed(1)
    whole = json.dumps({"prompt": "a ring", "steps": 1, "width": 64, "height": 64, "id": "x", "timeout": 0.01}).encode()
    bodies = [b"", b"[]", b"null", b'"x"', b"{", b"\xff\xfe", b"[" * 50_000, b'{"prompt": NaN}', b'{"prompt": 1e999}']
    bodies += [whole[:cut] for cut in range(0, len(whole), 9)]
    for _ in range(10_000 if "FUZZ" in os.environ else 150):
        broken = bytearray(whole)
        broken[random.randrange(len(broken))] = random.randrange(256)
        bodies.append(bytes(broken))
    for body in bodies:
        answer = ask("POST", "/v1/generate", content=body, headers=JSON)
        assert answer.status_code in (200, 413, 422, 504), (body, answer.text)


def test_a_body_that_is_not_said_to_be_json_is_refused(ask):
    assert error(ask("POST", "/v1/generate", content=b"{}", headers={"content-type": "text/plain"}), 415)


def test_models_are_in_openais_form_with_the_clip_skips_that_there_are(ask, pipe):
    (model,) = ask("GET", "/v1/models").json()["data"]
    assert (model["id"], model["object"], model["owned_by"]) == ("test-store-sample", "model", "clipskip")
    assert model["clip_skips"] == pipe.clip_skips
    hint = error(ask("POST", "/v1/generate", json={"prompt": "a", "model": "test-store-sampel"}), 404)["hint"]
    assert hint == "did you mean 'test-store-sample'?"


def test_unknown_routes_and_methods_are_json_too(ask):
    assert error(ask("GET", "/v2"), 404)["code"] == "not_found"
    assert error(ask("GET", "/v1/generate"), 405)["code"] == "method"
    assert error(ask("DELETE", "/v1/generate/nobody"), 404)["field"] == "id"


def test_the_document_of_the_api_lists_every_field_with_its_range(ask):
    document = ask("GET", "/openapi.json").json()
    rows = document["components"]["schemas"]["Request"]["properties"]
    assert rows.keys() == FIELDS.keys() | OPTIONS.keys()
    assert (rows["cfg"]["minimum"], rows["cfg"]["maximum"], rows["cfg"]["default"]) == (0, 100, 7.0)
    assert rows["rng"]["enum"] == ["cpu", "nv"]
    assert not FIELDS.keys() & OPTIONS.keys()


def test_metrics_count_pictures_by_clip_skip_calls_and_refusals_by_field(ask):
    ask("POST", "/v1/generate", json={"prompt": "a ring", **SMALL, "clip_skip": 13})
    ask("POST", "/v1/generate", json={"prompt": "a ring", "clip_skip": 14})
    text = ask("GET", "/metrics").text
    assert 'clipskip_pictures_total{clip_skip="13",model="test-store-sample"}' in text
    assert 'clipskip_refused_total{code="request",field="clip_skip"} 1.0' in text
    for name in ("queued_requests", "slot_calls_total", "joins_total", "step_seconds_sum", "stage_seconds_count"):
        assert f"clipskip_{name}" in text


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer secret", 200),
        ("bearer  secret", 200),
        ("Basic " + base64.b64encode(b"me:word").decode(), 200),
        ("Basic " + base64.b64encode(b"me:wrong").decode(), 401),
        ("Bearer wrong", 401),
        ("Basic !", 401),
        ("", 401),
    ],
)
def test_with_a_token_or_a_user_nobody_else_may(ask, header, status):
    settings = Settings(token="secret", user="me:word")
    answer = ask("GET", "/v1/models", settings, headers={"authorization": header})
    assert answer.status_code == status
    assert ask("GET", "/healthz").status_code == 200
    assert "secret" not in answer.text


@pytest.mark.parametrize("header", ["", "Basic ", "Basic " + base64.b64encode(b":").decode()])
def test_without_a_token_what_clients_send_for_none_is_taken(ask, header):
    assert ask("GET", "/v1/models", headers={"authorization": header}).status_code == 200


def test_pages_of_other_sites_and_names_that_were_bent_to_this_machine_are_refused(ask):
    asked = {"json": {"prompt": "a ring", **SMALL}}
    evil = {"origin": "http://evil.example"}
    assert "other sites" in error(ask("POST", "/v1/generate", headers=evil, **asked), 403)["message"]
    assert "Host" in error(ask("GET", "/v1/models", base="http://evil.example"), 403)["message"]
    assert ask("GET", "/v1/models", Settings(loopback=False), base="http://our.example").status_code == 200
    allowed = Settings(origins=("http://evil.example",))
    answer = ask("POST", "/v1/generate", allowed, headers=evil, **asked)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "http://evil.example")
    assert "X-Clipskip-Seed" in answer.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in ask("GET", "/v1/models", headers={"origin": "http://a.example"}).headers
    assert ask("POST", "/v1/generate", headers={"origin": "http://127.0.0.1:7860"}, **asked).status_code == 200


def test_the_log_has_ids_and_never_a_prompt_unless_asked(ask, caplog):
    caplog.set_level(logging.INFO, "clipskip.serve")
    asked = {"json": {"prompt": "my secret wish", **SMALL}, "headers": {"x-request-id": "abc.1"}}
    answer = ask("POST", "/v1/generate?key=hidden", **asked)
    assert answer.headers["x-request-id"] == "abc.1"
    assert "abc.1" in caplog.text
    assert "wish" not in caplog.text
    assert "hidden" not in caplog.text
    ask("POST", "/v1/generate", Settings(log_prompts=True), **asked)
    assert "my secret wish" in caplog.text
    ask("POST", "/v1/sheets", json={"prompt": "another wish", "x": "clip_skip=1", **SMALL})
    assert "another wish" in caplog.text
    forged = ask("GET", "/healthz", headers={"x-request-id": "a\tb"}).headers["x-request-id"]
    assert forged.isalnum()


def test_every_error_has_a_status_and_those_that_pass_say_when():
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert status_of(kind("x")) == STATUS.get(kind, status_of(kind("x")))
    assert status_of(errors.EngineMissing("x")) == 503
    assert status_of(errors.UnsafeFileError("x")) == 422
    busy = errors.Busy("full")
    busy.retry_after = 2.2
    assert (refused(busy).status_code, refused(busy).headers["retry-after"]) == (503, "3")
    assert refused(errors.DeviceOutOfMemory("x")).headers["retry-after"] == "1"
    assert "retry-after" not in refused(errors.StorageError("x")).headers


def test_a_full_queue_is_a_503_that_says_when_to_come_again(ask, pipe, monkeypatch):
    monkeypatch.setattr(pipe.scheduler, "_max_queue", 0)
    answer = ask("POST", "/v1/generate", json={"prompt": "a ring"})
    assert error(answer, 503)["code"] == "busy"
    assert 1 <= int(answer.headers["retry-after"]) <= 60


def test_a_request_that_is_late_is_a_504(ask):
    asked = {"prompt": "a ring", **SMALL, "steps": 900, "timeout": 0.2}
    assert error(ask("POST", "/v1/generate", json=asked), 504)["code"] == "deadline"


def test_a_preflight_needs_no_token_and_names_what_may_be_sent(ask):
    settings = Settings(token="secret", origins=("https://our.example",))
    head = {"origin": "https://our.example", "access-control-request-method": "POST"}
    answer = ask(
        "OPTIONS", "/v1/generate", settings, headers={**head, "access-control-request-headers": "authorization"}
    )
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://our.example")


def test_a_bug_is_a_500_that_tells_nothing(ask, monkeypatch, caplog):
    ask("GET", "/healthz")
    monkeypatch.setattr(ask.app.state.service, "generation", None)
    answer = ask("POST", "/v1/generate", json={"prompt": "a ring"})
    assert error(answer, 500)["code"] == "bug"
    assert "NoneType" not in answer.text
    assert "NoneType" in caplog.text


def test_a_hung_call_and_a_store_that_is_gone_show_in_the_readiness(ask, pipe, monkeypatch, tmp_path):
    ask("POST", "/v1/generate", json={"prompt": "a ring", **SMALL})
    assert ask("GET", "/readyz").json() == {"ready": True, "trouble": None}
    monkeypatch.setattr(pipe.driver.tally, "since", time.perf_counter() - 601)
    answer = ask("GET", "/readyz")
    assert (answer.status_code, "running for more than 600 s" in answer.text) == (503, True)
    monkeypatch.setattr(pipe.driver.tally, "since", None)
    monkeypatch.setitem(ask.app.state.service.models.paths, "test-store-sample", tmp_path)
    assert "no engine store" in ask("GET", "/readyz").json()["trouble"]
    assert "no engine store" in ask("GET", "/v1/models").json()["data"][0]["error"]["message"]


def test_a_client_that_takes_no_answer_is_given_up(ask, pipe):
    ask("GET", "/healthz")
    gone = []

    async def stuck(message):
        await asyncio.sleep(1000)

    async def app(scope, receive, send):
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        except BaseException as error:
            gone.append(type(error))
            raise

    async def main():
        service = ask.app.state.service
        service.settings = Settings(client_timeout=0.05)
        scope = {"type": "http", "method": "GET", "path": "/", "raw_path": b"/", "headers": [(b"host", b"localhost")]}
        await Guard(app, service)(scope, None, stuck)

    asyncio.run(main())
    assert gone == [ClientDisconnect]


def test_a_lost_device_shows_in_the_health(ask, pipe, monkeypatch):
    def lost(work):
        raise errors.DeviceLost("the GPU fell off")

    monkeypatch.setattr(pipe, "finish", lost)
    assert error(ask("POST", "/v1/generate", json={"prompt": "a ring", **SMALL}), 503)["code"] == "device_lost"
    assert ask("GET", "/healthz").status_code == 503
    assert ask("GET", "/readyz").status_code == 503
