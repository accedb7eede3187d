"""The page's own requests, as `make test-page` recorded them, sent to the application; sheets; dropped pictures."""

import asyncio
import base64
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import httpx2 as httpx
import numpy as np
import PIL.Image
import PIL.PngImagePlugin
import pytest

import clipskip
from clipskip.axes import MAX_CELLS, parse_axis
from clipskip.errors import RequestError
from clipskip.serve.app import create_app
from clipskip.serve.models import Models
from clipskip.serve.page import page
from clipskip.serve.service import Settings

SENT = json.loads((Path(__file__).parent / "data" / "page_requests.json").read_text())
SMALL = {"prompt": "a ring", "width": 64, "height": 64, "steps": 2, "seed": 7}
OLD = "a blue star\nNegative prompt: dull\nSteps: 9, Sampler: Euler a, CFG scale: 3, Seed: 5, Size: 64x64, Clip skip: 3"


@pytest.fixture
def ask(sample_store, pipe):
    """A function that sends one request to a server of these settings."""

    def asked(method, path, settings=None, **parts):
        app = create_app(Models([sample_store], lambda path: pipe), settings or Settings())

        async def send():
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:7860") as client:
                return await client.request(method, path, **parts)

        return asyncio.run(send())

    return asked


def events(answer):
    assert answer.status_code == 200, answer.text
    blocks = [block.split("\n") for block in answer.text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]


def replay(ask, name):
    """The answer to the first request that the page sent for this."""
    sent = SENT[name][0]
    return ask(sent["method"], sent["path"], headers=sent["headers"], content=sent["body"])


def decoded(text):
    return base64.b64decode(text, validate=True)


@pytest.mark.parametrize("name", ["a picture", "a large seed"])
def test_the_pages_request_for_a_picture_gives_the_pipelines_picture(ask, pipe, name):
    told = events(replay(ask, name))
    assert (told[0][0], told[-1][0]) == ("queued", "result")
    asked = json.loads(SENT[name][0]["body"])
    fields = {field: value for field, value in asked.items() if field not in ("model", "preview")}
    assert decoded(told[-1][1]["images"][0]["b64_json"]) == pipe(**fields).png()


@pytest.mark.parametrize(("name", "axes"), [("a strip", 1), ("depth by guidance", 2)])
def test_the_pages_request_for_a_strip_gives_every_cell_as_it_is_alone_and_the_whole_sheet(ask, pipe, name, axes):
    told = events(replay(ask, name))
    labels, cells = told[0][1]["labels"], [data for kind, data in told if kind == "cell"]
    assert len(cells) == len(labels[0]) * len(labels[1]) == 4
    for cell in cells:
        png = decoded(cell["images"][0]["b64_json"])
        assert pipe(clipskip.read_ledger(png).request).png() == png
        assert cell["name"] == ", ".join(labels[i][cell["cell"][i] - 1] for i in range(axes))
    calls = [data["call"] for kind, data in told if kind == "progress"]
    assert (calls, calls[-1]) == (sorted(calls), 16)
    assert len(clipskip.metadata.read_any(decoded(told[-1][1]["b64_json"])).truths) == 4


def old(text):
    info = PIL.PngImagePlugin.PngInfo()
    info.add_text("parameters", text)
    PIL.Image.new("RGB", (8, 8)).save(data := BytesIO(), "PNG", pnginfo=info)
    return data.getvalue()


def test_a_dropped_picture_gives_its_settings_and_what_cannot_be_honoured(ask):
    sent = SENT["a dropped picture"][0]
    answer = ask(sent["method"], sent["path"], headers=sent["headers"], content=old(f"{OLD}, Refiner: x, Eta: 0.5"))
    (cell,) = answer.json()["cells"]
    assert (cell["request"]["clip_skip"], cell["request"]["eta"], cell["request"]["sampler"]) == (3, 0.5, "Euler a")
    assert any("Refiner" in note for note in cell["notes"])
    assert cell["refused"] == {}


def test_of_a_dropped_picture_is_said_what_this_model_refuses(ask):
    answer = ask("POST", "/v1/png-info", content=old(f"{OLD}, CFG scale: 3".replace("64x64", "63x64")))
    (cell,) = answer.json()["cells"]
    assert "multiple" in cell["refused"]["width"]["message"]


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + bytes(40), old("no settings")[:60]])
def test_a_file_without_settings_is_refused_and_no_bug(ask, data):
    assert ask("POST", "/v1/png-info", content=data).status_code == 422


@pytest.mark.parametrize(("accept", "kind"), [("*/*", "image/png"), ("text/html", "text/html; charset=utf-8")])
def test_a_sheet_is_a_picture_or_the_page_of_grid_html(ask, accept, kind):
    answer = ask("POST", "/v1/sheets", json={**SMALL, "x": "clip_skip=1,2"}, headers={"accept": accept})
    assert (answer.status_code, answer.headers["content-type"]) == (200, kind)
    if kind == "image/png":
        info = ask("POST", "/v1/png-info", content=answer.content).json()
        assert [each["cell"] for each in info["cells"]] == [[1], [2]]
        assert [each["request"]["clip_skip"] for each in info["cells"]] == [1, 2]
    else:
        assert answer.text.count("<td><button") == 2


def test_a_sheet_as_json_has_its_cells_in_order_and_one_seed(ask):
    asked = {**SMALL, "seed": None, "x": "clip_skip=1,13", "y": "cfg=1,7"}
    made = ask("POST", "/v1/sheets", json=asked, headers={"accept": "application/json"}).json()
    assert [each["cell"] for each in made["cells"]] == [[1, 1, 1], [2, 1, 1], [1, 2, 1], [2, 2, 1]]
    assert len({each["images"][0]["seed"] for each in made["cells"]}) == 1
    pictures = [np.asarray(PIL.Image.open(BytesIO(decoded(each["images"][0]["b64_json"])))) for each in made["cells"]]
    assert not np.array_equal(pictures[2], pictures[3])


@pytest.mark.parametrize(
    ("asked", "field", "said"),
    [
        ({"x": "store=/etc"}, "x", "no axis here"),
        ({"x": "image=/etc/passwd,/etc/hosts"}, "image", "data URL"),
        ({"x": "clip_skip=1-14"}, "clip_skip", "14"),
        ({"x": "clip_skip=1,2", "y": "clip_skip=3,4"}, "x", "two axes"),
        ({}, "x", "one to three"),
        ({"x": None}, "x", "one to three"),
        ({"x": "seed=1-1000", "y": "cfg=1,2"}, "x", "1000 cells"),
        ({"x": ",".join(["seed=1-999"] + ["1-999"] * 9000)}, "x", "more values"),
        ({"x": "clip_skip=1,2", "y": "prompt=" + "a" * 70000}, "y", "characters"),
        ({"x": "clip_skip=1,2", "y": "steps"}, "y", "FIELD=VALUES"),
        ({"x": "clip_skip=1,2", "preview": 1}, "preview", "no preview"),
        ({"x": 3}, "x", "must be"),
    ],
)
def test_a_sheet_that_cannot_be_is_refused_before_any_work(ask, pipe, asked, field, said):
    calls = pipe.driver.tally.calls
    answer = ask("POST", "/v1/sheets", json={**SMALL, **asked})
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["field"] == field
    assert said in answer.json()["error"]["message"]
    assert pipe.driver.tally.calls == calls


def test_a_sheet_has_the_servers_limits_for_all_of_its_cells_together(ask):
    answer = ask("POST", "/v1/sheets", Settings(max_pixels=3 * 64 * 64), json={**SMALL, "x": "clip_skip=1-4"})
    assert answer.status_code == 422
    assert "16384 pixels" in answer.json()["error"]["message"]


def test_a_sheet_is_cancelled_by_its_id_and_leaves_nothing_running(sample_store, pipe):
    app = create_app(Models([sample_store], lambda path: pipe), Settings())
    asked = {**SMALL, "steps": 900, "sampler": "Euler", "x": "clip_skip=1-13", "id": "mine"}

    async def both():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:7860") as client:
            sheet = asyncio.ensure_future(client.post("/v1/sheets", json=asked))
            while "mine" not in app.state.service.running:
                await asyncio.sleep(0.01)
            twice = await client.post("/v1/sheets", json=asked)
            ended = await client.delete("/v1/generate/mine")
            return twice.status_code, ended.status_code, (await sheet).status_code

    assert asyncio.run(both()) == (409, 204, 409)
    assert app.state.service.running == {}
    assert pipe.scheduler.queued + pipe.scheduler.running == 0


def test_an_axis_is_refused_before_memory_is_full_of_its_values():
    with pytest.raises(RequestError, match=f"more values than a sheet has cells, {MAX_CELLS}"):
        parse_axis("seed=" + ",".join(["1-1000"] * 100_000))


class Handlers(HTMLParser):
    """Attributes that would run or load something."""

    def __init__(self, text):
        super().__init__()
        self.bad = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            loads = name in ("src", "href") and not value.startswith("data:")
            self.bad += [(tag, name)] * (name.startswith("on") or name == "style" or loads)


def test_the_page_loads_nothing_and_its_policy_lets_nothing_run_but_its_own_script(ask):
    answer = ask("GET", "/", Settings(token="secret"))
    assert answer.status_code == 200  # without the token: nothing in it is a secret
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
    assert (policy["connect-src"], policy["img-src"]) == ("'self'", "data:")
    for name in ("script", "style"):
        (text,) = re.findall(f"<{name}>(.*?)</{name}>", answer.text, re.DOTALL)
        assert policy[f"{name}-src"] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    assert Handlers(answer.text).bad == []
    assert not re.findall("https?://|innerHTML|insertAdjacent|document.write|eval\\(", answer.text)


def test_every_name_of_the_pages_script_has_an_element():
    text = page()[0]
    assert {*re.findall(r"\$\('(\w+)'\)", text)} <= {*re.findall(r"\bid=\"(\w+)\"", text)} | {"repeat"}


@pytest.mark.skipif(not shutil.which("node"), reason="node is not here to read the script")
def test_the_pages_script_is_valid(tmp_path):
    (script,) = re.findall("<script>(.*?)</script>", page()[0], re.DOTALL)
    (tmp_path / "page.js").write_text(script)
    subprocess.run(["node", "--check", tmp_path / "page.js"], check=True)
