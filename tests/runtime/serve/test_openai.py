"""OpenAI's routes on a running server: the openai package, unmodified, and bodies that are none."""

import base64
import json
from io import BytesIO

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import asked, until

from clipskip.metadata import read_request
from clipskip.serve.app import create_app
from clipskip.serve.models import Models
from clipskip.serve.service import Settings

EXTRA = {"num_inference_steps": 2, "seed": 7, "sampler": "Euler"}
SAME = {"width": 64, "height": 64, "steps": 2, "seed": 7, "sampler": "Euler"}


@pytest.fixture
def openai(client):
    package = pytest.importorskip("openai", reason="openai is no dependency of the suite: pip install it")
    with package.OpenAI(base_url=f"http://127.0.0.1:{client.port}/v1", api_key="none") as openai:
        yield openai


def decoded(text):
    return PIL.Image.open(BytesIO(base64.b64decode(text)))


def opened(image):
    return decoded(image.b64_json)


def pixels(image):
    return np.asarray(image.convert("RGB"))


def png(image):
    image.save(encoded := BytesIO(), "PNG")
    return encoded.getvalue()


def test_the_package_makes_pictures_with_our_fields(openai, pipe):
    extra = {**EXTRA, "clip_skip": 2, "guidance_scale": 5, "negative_prompt": "blurry"}
    made = openai.images.generate(prompt="a ring", size="64x64", n=2, quality="low", user="me", extra_body=extra)
    same = pipe("a ring", clip_skip=2, cfg=5, negative_prompt="blurry", batch=2, **SAME)
    for image, alone in zip(made.data, same.images, strict=True):
        np.testing.assert_array_equal(pixels(opened(image)), pixels(alone))
    assert (made.size, made.output_format) == ("64x64", "png")
    assert read_request(opened(made.data[1])).seed == 8
    assert openai.models.list().data[0].id == "test-store-sample"


def test_a_line_of_render_is_a_prompt_whose_commands_come_first(openai, pipe):
    extra = {**EXTRA, "clip_skip": 5}
    made = openai.images.generate(prompt="/render /clipskip:2 /size:64x64 a ring", size="128x128", extra_body=extra)
    np.testing.assert_array_equal(pixels(opened(made.data[0])), pixels(pipe("a ring", clip_skip=2, **SAME).images[0]))


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_formats_are_smaller_the_more_they_are_compressed(openai, kind):
    sizes = []
    for quality in (90, 10):
        how = {"output_format": kind, "output_compression": quality}
        made = openai.images.generate(prompt="a ring", size="64x64", extra_body=EXTRA, **how)
        assert opened(made.data[0]).format == kind.upper()
        assert read_request(opened(made.data[0])).seed == 7
        sizes.append(len(made.data[0].b64_json))
    assert sizes[1] < sizes[0]


def test_a_stream_shows_pictures_in_the_making_and_ends_with_the_finished_one(openai, pipe):
    extra = {**EXTRA, "num_inference_steps": 40}
    told = list(openai.images.generate(prompt="a ring", size="64x64", stream=True, partial_images=2, extra_body=extra))
    assert [each.type for each in told[:-1]] == ["image_generation.partial_image"] * (len(told) - 1)
    assert [each.partial_image_index for each in told[:-1]] == list(range(len(told) - 1))
    assert 1 <= len(told) - 1 <= 2
    assert told[-1].type == "image_generation.completed"
    assert "parameters" not in opened(told[0]).info
    same = pipe("a ring", **{**SAME, "steps": 40}).images[0]
    np.testing.assert_array_equal(pixels(opened(told[-1])), pixels(same))
    (only,) = openai.images.generate(prompt="a ring", size="64x64", stream=True, extra_body=EXTRA)
    assert (only.usage.total_tokens, only.size) == (0, "64x64")


def test_edits_paint_where_the_mask_is_transparent(openai, pipe):
    first = pipe("a ring", **SAME).images[0]
    mask = PIL.Image.new("RGBA", (64, 64), "black")
    mask.paste((0, 0, 0, 0), (0, 0, 32, 64))
    how = {"prompt": "a star", "extra_body": {"steps": "4", "mask_blur": "0", "strength": "1", "seed": "7"}}
    made = openai.images.edit(image=("a.png", png(first)), mask=("m.png", png(mask)), size="64x64", n=1, **how)
    change = np.abs(pixels(opened(made.data[0])).astype(int) - pixels(first))
    assert change[:, 32:].max() == 0
    assert change[:, :32].mean() > 5
    (event,) = openai.images.edit(image=("a.png", png(first)), stream=True, **how)
    assert event.type == "image_edit.completed"


def test_errors_are_in_openais_form(openai):
    package = pytest.importorskip("openai")
    with pytest.raises(package.BadRequestError) as told:
        openai.images.generate(prompt="a ring", size="64x64", extra_body={"clip_skip": 14})
    assert told.value.param == "clip_skip"
    assert "clip_skip must be 1..13, not 14: it counts from 1" in told.value.message
    with pytest.raises(package.NotFoundError, match="known: test-store-sample"):
        openai.images.generate(prompt="a ring", model="gpt-image-1")


def test_without_the_package_the_bodies_are_what_it_reads(client, pipe):
    body = {"prompt": "a ring", "size": "64x64", "clip_skip": 2, **EXTRA}
    made = client.post("/v1/images/generations", json=body).json()
    same = pixels(pipe("a ring", clip_skip=2, **SAME).images[0])
    assert made.keys() >= {"created", "data", "output_format", "size"}
    np.testing.assert_array_equal(pixels(decoded(made["data"][0]["b64_json"])), same)
    text = client.post("/v1/images/generations", json={**body, "stream": True, "partial_images": 1}).text
    told = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
    assert text.startswith("event: image_generation.")
    assert told[-1].keys() >= {
        "type",
        "b64_json",
        "created_at",
        "size",
        "quality",
        "background",
        "output_format",
        "usage",
    }
    np.testing.assert_array_equal(pixels(decoded(told[-1]["b64_json"])), same)
    form = {"prompt": "a star", "steps": "4", "strength": "1", "rng_seed": "7", "priority": "2", "mask_blur": "0"}
    mask = PIL.Image.new("RGBA", (64, 64), "black")
    mask.paste((0, 0, 0, 0), (0, 0, 32, 64))
    files = {"image[]": ("a.png", png(PIL.Image.fromarray(same))), "mask": ("m.png", png(mask))}
    edited = pixels(decoded(client.post("/v1/images/edits", data=form, files=files).json()["data"][0]["b64_json"]))
    np.testing.assert_array_equal(edited[:, 32:], same[:, 32:])
    assert np.abs(edited[:, :32].astype(int) - same[:, :32]).mean() > 5


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": "url"}, "response_format"),
        ({"output_format": "gif"}, "output_format"),
        ({"output_compression": 101}, "output_compression"),
        ({"n": 11}, "n"),
        ({"size": "large"}, "size"),
        ({"stream": "yes"}, "stream"),
        ({"partial_images": 4, "stream": True}, "partial_images"),
        ({"guidence": 7}, "guidence"),
        ({"image": "/etc/passwd"}, "image"),
        ({"lora_alphas": ["a"]}, "lora_alphas"),
        ({"prompt": "/render /image:/etc/passwd a ring"}, "image"),
        ({"clip_skip": 14, "stream": True}, "clip_skip"),
    ],
)
def test_what_is_no_request_is_a_400_that_names_the_field(client, fields, param):
    answer = client.post("/v1/images/generations", json={"prompt": "a ring", "size": "64x64", **EXTRA, **fields})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")


def test_a_form_without_a_picture_with_two_or_with_a_path_is_refused(client):
    part = ("a.png", b"x", "image/png")
    bodies = [{"data": {"prompt": "a"}}, {"data": {"image": "/etc/passwd"}}, {"files": [("image[]", part)] * 2}]
    bodies += [{"files": {"image": part}}, {"content": b"x", "headers": {"content-type": "multipart/form-data"}}]
    PIL.Image.new("1", (9000, 9000)).save(bomb := BytesIO(), "PNG")
    bodies += [{"files": {"image": ("a.png", png(PIL.Image.new("L", (8, 8)))), "mask": bomb}, "data": {"prompt": "a"}}]
    bodies += [{"json": {}}, {"files": {"image": part}, "data": {"mask": "/etc/passwd"}}]
    for body in bodies:
        answer = client.post("/v1/images/edits", **body)
        assert answer.status_code == 400, (body, answer.text)
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize(("route", "status"), [("/v1/images/generations", 400), ("/v1/generate", 422)])
def test_a_field_named_by_half_a_character_is_told_back_as_a_code(client, route, status):
    head = {"content-type": "application/json"}
    answer = client.post(route, content=b'{"prompt": "a ring", "\\ud800": 1}', headers=head)
    assert answer.status_code == status
    assert "ud800" in answer.json()["error"]["message"]


def test_the_work_of_a_stream_that_is_closed_stops(client, openai):
    extra = {**EXTRA, "num_inference_steps": 900}
    stream = openai.images.generate(prompt="a ring", size="128x128", stream=True, partial_images=3, extra_body=extra)
    until(lambda: client.service.running)
    stream.close()
    until(lambda: not client.service.running)


TEXT = st.text("a1 /:,\0\N{SNOWMAN}\ud800", max_size=9)  # halves of characters as well
ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.sampled_from([[1], {"a": 1}])
FIELDS = ["prompt", "n", "size", "model", "stream", "partial_images", "output_format", "output_compression", "seed"]
FIELDS += ["lora_alphas", "rng_seed", "image", "mask", "timeout", "quality", "clip_skip", "sampler", "\ud800"]


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), ANYTHING, max_size=5), st.booleans())
def test_no_body_is_our_fault(sample_store, pipe, fields, form):
    tight = Settings(max_pixels=64 * 64, max_calls=2)
    app = create_app(Models([sample_store], lambda path: pipe), tight)
    body = {"prompt": "a", "size": "64x64", **EXTRA, **fields}
    if form:
        texts = {name: str(value).encode("utf-8", "replace").decode() for name, value in body.items() if name.isascii()}
        parts = {"data": {**texts, "\N{SNOWMAN}": "1"}, "files": {"image": ("a", b"GIF89a")}}
        answer = asked(app, "POST", "/v1/images/edits", **parts)
    else:
        parts = {"content": json.dumps(body), "headers": {"content-type": "application/json"}}
        answer = asked(app, "POST", "/v1/images/generations", **parts)
    assert answer.status_code in (200, 400, 404, 504), (fields, answer.text)
