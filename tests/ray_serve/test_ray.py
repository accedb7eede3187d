"""The application on Ray Serve with two replicas on the CPU, under load and when one is killed: `make test-ray`."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import pytest

import clipskip
from clipskip.metadata import read_request

if "CLIPSKIP_TEST_RAY" not in os.environ:
    pytest.skip("`make test-ray` runs these: they install Ray, start it and take minutes", allow_module_level=True)

HERE = Path(__file__).parent
CONFIG = HERE.parents[1] / "docs" / "serve-ray.yaml"
SAMPLERS = ("Euler", "DPM++ 2M", "Euler a", "Heun")
PROMPTS = ("a red circle", "a blue star", "a [ring|square], green background", "a white (triangle:1.3)")
LONG = {"prompt": "a ring", "width": 128, "height": 128, "steps": 300, "sampler": "Euler"}


class Served:
    """A running application; `ask` may be called by many threads."""

    def __init__(self, port, folder):
        self.folder = folder
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=600, limits=httpx.Limits(max_connections=64)
        )

    def ask(self, path, body=None, method=None, **headers):
        return self.http.request(method or ("GET" if body is None else "POST"), path, json=body, headers=headers)

    def events(self, body):
        """The events of a stream, each as its name and data."""
        headers = {"Accept": "text/event-stream"}
        with self.http.stream("POST", "/v1/generate", json=body, headers=headers) as answer:
            name = None
            for line in answer.iter_lines():
                kind, _, value = line.partition(": ")
                name = value if kind == "event" else name
                if kind == "data":
                    yield name, json.loads(value)

    def figures(self, name):
        """A figure by replica."""
        lines = [line for line in self.ask("/metrics").text.splitlines() if line.startswith(f"clipskip_{name}{{")]
        sums = {}
        for line in lines:
            replica = line.partition('replica="')[2].partition('"')[0]
            sums[replica] = sums.get(replica, 0) + float(line.rpartition(" ")[2])
        return sums

    def painters(self):
        """The processes of the replicas."""
        found = []
        for each in Path("/proc").glob("[0-9]*"):
            try:
                ours = str(self.folder).encode() in (each / "environ").read_bytes()
                if ours and (each / "cmdline").read_bytes().startswith(b"ray::ServeReplica:clipskip:Painter"):
                    found.append(int(each.name))
            except OSError:
                continue  # it ended, or is not ours
        return found

    def until(self, true, seconds=240):
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def ready(self):
        """Whether both replicas take requests."""
        try:
            return self.ask("/readyz").status_code == 200 and len(self.figures("queued_requests")) == 2
        except httpx.TransportError:
            return False


@pytest.fixture(scope="module")
def served(sample_store):
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: it has sockets
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = folder / "served.yaml"
    config.write_text(CONFIG.read_text().replace("build/sample", str(sample_store)).replace("7860", str(port)))
    own = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "CLIPSKIP_TEST_RAY_FOLDER": str(folder)}
    command = [sys.executable, str(HERE / "start.py"), str(config), str(folder / "ray")]
    served = Served(port, folder)
    try:
        for _ in range(3):  # Ray gives its own processes 30 s to start, which a busy machine may not keep
            with (folder / "log").open("w") as log:
                process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | own)
            served.until(lambda: served.ready() or process.poll() is not None, 400)  # noqa: B023
            if process.poll() is None:
                break
        assert process.poll() is None, (folder / "log").read_text()[-5000:]
        yield served
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
        assert " a bug:" not in (folder / "log").read_text()
    finally:
        process.kill()
        served.http.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def pipe(sample_store):
    with clipskip.open(sample_store) as pipe:
        yield pipe


def mixed(number, steps=4):
    """One of many requests that differ in everything."""
    return {
        "prompt": PROMPTS[number % 4],
        "clip_skip": 1 + number % 13,
        "sampler": SAMPLERS[number // 4 % 4],
        "steps": steps + number % 3,
        "seed": number,
        "width": 64,
        "height": 64,
    }


def alone(pipe, request):
    return pipe(clipskip.Request.from_json(request)).png()


def test_mixed_requests_of_many_clients_give_the_bytes_of_each_alone_from_both_replicas(served, pipe):
    requests = [mixed(number) for number in range(32)]
    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(lambda request: served.ask("/v1/generate", request), requests))
    assert [answer.status_code for answer in answers] == [200] * 32
    assert [answer.content for answer in answers] == [alone(pipe, request) for request in requests]
    made = served.figures("pictures_total")
    assert len(made) == 2
    assert min(made.values()) >= 4


def test_a_replica_is_killed_under_load_and_every_request_is_answered_with_its_picture(served, pipe):
    requests = [mixed(number, steps=120) for number in range(16)]

    def ask(request):
        if request["seed"] % 2:
            return served.ask("/v1/generate", request).content, []
        events = list(served.events({**request, "preview": 0.5}))
        (image,) = events[-1][1]["images"]
        return image["b64_json"], events

    before = served.painters()
    assert len(before) == 2
    with ThreadPoolExecutor(16) as clients:
        answers = [clients.submit(ask, request) for request in requests]
        served.until(lambda: min(served.figures("running_requests").values(), default=0) >= 2)
        os.kill(before[0], signal.SIGKILL)
        answers = [answer.result() for answer in answers]
    log = (served.folder / "log").read_text()
    assert "is sent again" in log
    for request, (content, events) in zip(requests, answers, strict=True):
        png = alone(pipe, request)
        assert content == png if isinstance(content, bytes) else content == base64_of(png)
        names = [name for name, _ in events]
        assert names.count("queued") == names.count("result") == len(events) // max(len(events), 1)
        calls = [data["call"] for name, data in events if name == "progress" and "call" in data]
        assert calls == sorted(calls)
        states = [data["state"] for name, data in events if "state" in data]
        assert "queued" not in states[states.index("running") if "running" in states else len(states) :]
    served.until(served.ready)
    assert len(set(served.painters()) - set(before)) == 1
    assert served.ask("/v1/generate", mixed(3)).content == alone(pipe, mixed(3))


def base64_of(data):
    import base64

    return base64.b64encode(data).decode()


def test_events_and_clean_previews_come_while_the_picture_is_made(served):
    events = list(served.events({**LONG, "seed": 1, "preview": 0.1, "id": "mine"}))
    names = [name for name, _ in events]
    assert (names[0], names[-1]) == ("queued", "result")
    assert events[0][1]["id"] == "mine"
    assert names.count("progress") > 2
    assert "preview" in names


def test_a_refusal_keeps_its_status_its_field_and_its_sentence(served):
    answer = served.ask("/v1/generate", {**LONG, "clip_skip": 14})
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert (error["code"], error["field"]) == ("request", "clip_skip")
    assert error["message"].startswith("clip_skip must be 1..13, not 14")
    assert "clip_skip_diffusers" in error["hint"]
    late = served.ask("/v1/generate", {**LONG, "timeout": 0.2})
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline")


def test_clip_skip_2_by_override_settings_is_the_picture_of_clip_skip_2(served, pipe, tmp_path):
    import base64

    body = {"prompt": "a red circle", "seed": 7, "steps": 4, "width": 64, "height": 64}
    settings = {"override_settings": {"CLIP_stop_at_last_layers": 2}}
    answer = served.ask("/sdapi/v1/txt2img", {**body, **settings}).json()
    (tmp_path / "a.png").write_bytes(base64.b64decode(answer["images"][0]))
    request = read_request(tmp_path / "a.png")
    assert request.clip_skip == 2
    assert (tmp_path / "a.png").read_bytes() == pipe(request).png()


def test_an_interrupted_request_in_a1111s_form_ends_with_its_picture_as_far_as_it_is(served):
    with ThreadPoolExecutor(1) as client:
        answer = client.submit(served.ask, "/sdapi/v1/txt2img", {**LONG, "steps": 900})
        served.until(lambda: served.ask("/sdapi/v1/progress").json()["current_image"])
        served.ask("/sdapi/v1/interrupt", {})
        made = answer.result().json()
    assert len(made["images"]) == 1
    assert "interrupted" in json.loads(made["info"])["warnings"][-1]
    served.until(lambda: not any(served.figures("running_requests").values()))


def test_who_cancels_or_hangs_up_stops_the_work_in_the_replica(served):
    with ThreadPoolExecutor(1) as client:
        answer = client.submit(served.ask, "/v1/generate", {**LONG, "steps": 900, "id": "long"})
        served.until(lambda: any(served.figures("running_requests").values()))
        assert served.ask("/v1/generate/long", method="DELETE").status_code == 204
        assert answer.result().status_code == 409
    served.until(lambda: not any(served.figures("running_requests").values()), 10)
    events = served.events({**LONG, "steps": 900})
    assert next(events)[0] == "queued"
    served.until(lambda: any(served.figures("running_requests").values()))
    events.close()
    served.until(lambda: not any(served.figures("running_requests").values()), 10)
    with pytest.raises(httpx.TimeoutException):
        served.http.post("/v1/generate", json={**LONG, "steps": 900}, timeout=1)
    served.until(lambda: not any(served.figures("running_requests").values()), 10)


def test_a_sheet_openais_route_the_page_and_the_settings_in_a_picture_come_as_without_ray(served, pipe):
    body = {"prompt": "a ring", "seed": 7, "steps": 3, "width": 64, "height": 64}
    sheet = served.ask("/v1/sheets", {**body, "x": "clip_skip=1,2,12"})
    assert (sheet.status_code, sheet.headers["content-type"]) == (200, "image/png")
    refused = served.ask("/v1/sheets", {**body, "x": "clip_skip=1,14"}).json()["error"]
    assert refused["message"].startswith("clip_skip=14: clip_skip must be 1..13") or "1..13" in refused["message"]
    made = served.ask("/v1/images/generations", {"prompt": "/render /clipskip:2 a ring", "size": "64x64", "seed": 7})
    assert made.json()["data"][0]["b64_json"]
    info = served.http.post("/v1/png-info", content=alone(pipe, {**body, "clip_skip": 2})).json()
    assert info["cells"][0]["request"]["clip_skip"] == 2
    assert "<html" in served.ask("/").text
    assert served.ask("/v1/models").json()["data"][0]["recommended_clip_skip"] == pipe.model.recommended_clip_skip
    assert served.ask("/healthz").status_code == 200
