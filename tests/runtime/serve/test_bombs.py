"""What is small on the way and large when it is unpacked, on every route that takes a picture or JSON."""

import base64
import zlib
from io import BytesIO

import PIL.Image
import PIL.PngImagePlugin
import pytest
from serving import asked

from clipskip.serve.app import create_app
from clipskip.serve.models import Models
from clipskip.serve.service import Settings

SMALL = {"prompt": "a ring", "width": 64, "height": 64, "steps": 1, "seed": 7}
JSON = {"content-type": "application/json"}
PIXELS = {"within Pillow's limit": 9_000, "beyond Pillow's limit": 20_000}


@pytest.fixture
def post(sample_store, pipe):
    app = create_app(Models([sample_store], lambda path: pipe), Settings())
    return lambda path, **parts: asked(app, "POST", path, **parts)


def bomb(side):
    """A PNG of one colour: a few kilobytes that are side x side pixels."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    packer = zlib.compressobj()
    row = bytes(1 + side // 8)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    head = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.fixture(scope="module", params=PIXELS.values(), ids=PIXELS)
def large(request):
    return bomb(request.param)


def test_no_route_unpacks_a_picture_of_too_many_pixels(post, pipe, large):
    calls, text = pipe.driver.tally.calls, base64.b64encode(large).decode()
    small = base64.b64encode(bomb(64)).decode()
    own, theirs = {**SMALL, "image": f"data:;base64,{text}"}, {**SMALL, "init_images": [text]}
    masked = {**SMALL, "init_images": [small], "mask": text}
    refused = [
        post("/v1/generate", json=own),
        post("/v1/sheets", json={**own, "x": "clip_skip=1,2"}),
        post("/v1/png-info", content=large),
        post("/sdapi/v1/img2img", json=theirs),
        post("/sdapi/v1/img2img", json=masked),
        post("/v1/images/generations", json=own),
        post("/v1/images/edits", data={"prompt": "a"}, files={"image": ("a.png", large)}),
    ]
    assert [answer.status_code for answer in refused] == [422] * 5 + [400] * 2
    assert post("/sdapi/v1/png-info", json={"image": text}).status_code in (200, 422)  # its texts alone are read
    assert pipe.driver.tally.calls == calls


def test_a_text_of_many_megabytes_in_a_small_picture_is_not_unpacked(post):
    info = PIL.PngImagePlugin.PngInfo()
    info.add_text("parameters", "x" * (20 << 20), zip=True)
    PIL.Image.new("L", (8, 8)).save(data := BytesIO(), "PNG", pnginfo=info)
    assert len(data.getvalue()) < 100_000
    assert post("/v1/png-info", content=data.getvalue()).status_code == 422
    answer = post("/sdapi/v1/png-info", json={"image": base64.b64encode(data.getvalue()).decode()})
    assert answer.status_code in (200, 422)
    assert len(answer.content) < 10_000


@pytest.mark.parametrize("path", ["/v1/generate", "/v1/sheets", "/sdapi/v1/txt2img", "/sdapi/v1/options"])
@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"prompt":' * 100_000, b'{"steps": ' + b"9" * 100_000 + b"}"])
def test_json_without_end_is_refused(post, path, body):
    assert post(path, content=body, headers=JSON).status_code in (413, 422)
    assert post("/v1/images/generations", content=body, headers=JSON).status_code in (400, 413)


@pytest.mark.parametrize(("sent", "taken", "kept"), [(250, 250, True), (5000, 401, False)])
def test_of_a_body_that_is_too_large_some_is_taken_so_that_its_sender_hears_why(sample_store, pipe, sent, taken, kept):
    app = create_app(Models([sample_store], lambda path: pipe), Settings(max_body=100_000))
    parts = []

    async def body():
        for _ in range(sent):
            parts.append(b" " * 1000)
            yield parts[-1]

    answer = asked(app, "POST", "/v1/generate", content=body(), headers=JSON)
    assert (answer.status_code, len(parts)) == (413, taken)
    assert ("connection" not in answer.headers) == kept
    told = asked(app, "POST", "/v1/generate", content=b" " * 250_000, headers=JSON)
    assert (told.status_code, "connection" in told.headers) == (413, False)
    told = asked(app, "POST", "/v1/generate", content=b"", headers={**JSON, "content-length": str(1 << 30)})
    assert (told.status_code, told.headers["connection"]) == (413, "close")
