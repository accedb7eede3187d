"""What a client hears about its own words: lines of /render, limits, names of fields and of axes, and secrets."""

import base64
import json

import pytest
from serving import asked

from clipskip.metadata import read_request
from clipskip.serve.app import create_app
from clipskip.serve.models import Models
from clipskip.serve.service import Settings

SMALL = {"width": 64, "height": 64, "steps": 1, "cfg": 1, "seed": 7}
LINE = "/render /clipskip:2 /steps:2 a ring"
THEIRS = {"prompt": LINE, "width": 64, "height": 64, "seed": 7, "cfg_scale": 1}


@pytest.fixture
def post(sample_store, pipe):
    def sent(path, body, settings=None, **parts):
        app = create_app(Models([sample_store], lambda path: pipe), settings or Settings())
        return asked(app, "POST", path, json=body, **parts)

    return sent


def error(answer, status=422):
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def decoded(text):
    return base64.b64decode(text)


@pytest.mark.parametrize(
    ("path", "body", "picture"),
    [
        ("/v1/generate", {"prompt": LINE, **SMALL, "clip_skip": 5}, lambda answer: answer.content),
        (
            "/sdapi/v1/txt2img",
            {**THEIRS, "override_settings": {"CLIP_stop_at_last_layers": 3}},
            lambda answer: decoded(answer.json()["images"][0]),
        ),
        (
            "/v1/images/generations",
            {"prompt": LINE, "size": "64x64", "cfg": 1, "clip_skip": 5},
            lambda answer: decoded(answer.json()["data"][0]["b64_json"]),
        ),
    ],
)
def test_what_a_line_of_render_says_comes_before_a_bodys_fields(post, path, body, picture):
    answer = post(path, body)
    assert answer.status_code == 200, answer.text
    request = read_request(picture(answer))
    assert (request.prompt, request.clip_skip, request.steps, request.width) == ("a ring", 2, 2, 64)


def test_a_form_and_a_sheet_read_a_line_of_render_as_well(post, pipe):
    form = {"prompt": "/render /strength:0.5 a star", "strength": "0.9", "steps": "2", "cfg": "1"}
    image = {"image": ("a.png", pipe("a ring", **SMALL).png())}
    made = post("/v1/images/edits", None, data=form, files=image).json()
    assert read_request(decoded(made["data"][0]["b64_json"])).strength == 0.5
    sheet = post("/v1/sheets", {"prompt": LINE, **SMALL, "x": "cfg=1"}, headers={"accept": "application/json"}).json()
    request = sheet["cells"][0]["request"]
    assert (request["prompt"], request["clip_skip"], request["steps"]) == ("a ring", 2, 2)


@pytest.mark.parametrize("path", ["/v1/generate", "/v1/sheets", "/sdapi/v1/txt2img"])
def test_a_line_that_is_none_is_refused_and_no_path_in_it_is_opened(post, path):
    for line, said in (("/render /clipskpi:2 a ring", "clipskpi"), ("/render /image:/etc/passwd a ring", "data URL")):
        answer = post(path, {"prompt": line, "x": "clip_skip=1"} if "sheets" in path else {"prompt": line})
        assert (answer.status_code, said in answer.text) == (422, True)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"size": "64x64", "width": 128}, "width"),
        ({"n": 1, "batch": 3}, "batch"),
        ({"seed": 7, "rng_seed": 9}, "seed"),
        ({"loras": ["ink:1"], "lora_alphas": {"ink": 0.5}}, "loras"),
    ],
)
def test_what_openais_name_and_ours_both_say_is_given_twice(post, fields, param):
    told = error(post("/v1/images/generations", {"prompt": "a ring", **fields}), 400)
    assert (told["param"], "given twice" in told["message"]) == (param, True)


@pytest.mark.parametrize(
    ("path", "name", "meant"),
    [
        ("/v1/generate", "timout", "timeout"),
        ("/v1/generate", "priorty", "priority"),
        ("/v1/sheets", "modle", "model"),
        ("/v1/images/generations", "partial_image", "partial_images"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_one_that_was_meant(post, path, name, meant):
    told = error(post(path, {"prompt": "a ring", name: 1}), 400 if "images" in path else 422)
    assert f"did you mean '{meant}'?" in json.dumps(told)


def test_a_limit_of_the_servers_is_told_from_the_clients_own(post):
    hasty, long = Settings(timeout=0.3), {**SMALL, "prompt": "a ring", "steps": 900}
    sheet = {**long, "x": "clip_skip=1,2", "timeout": 0.25}
    for path, body, said in (
        ("/v1/generate", {**long, "timeout": 60}, "not done within 0.3 s, which is this server's limit"),
        ("/v1/generate", {**long, "timeout": 0.2}, "not done within 0.2 s"),
        ("/v1/generate", {**long, "timeout": 0}, "not done within 0 s"),
        ("/v1/sheets", sheet, "not done within 0.25 s"),
    ):
        told = error(post(path, body, hasty), 504)
        assert told["message"] == said
        assert ("serve --timeout" in told["hint"]) == ("server's" in said)


def test_who_sends_a_wrong_secret_hears_that_it_is_wrong_and_what_is_asked_for(post):
    wrong, user = {"authorization": "Bearer wrong"}, Settings(user="me:word")
    told = error(post("/v1/generate", {}, Settings(token="secret"), headers=wrong), 401)
    assert told["message"] == "this server asks for its token, and what was sent is wrong"
    assert told["hint"] == "send the header Authorization: Bearer TOKEN"
    told = error(post("/v1/generate", {}, user, headers={"authorization": "Basic "}), 401)
    assert told["message"] == "this server asks for a name and its password"
    assert ("Basic" in told["hint"], "TOKEN" in told["hint"]) == (True, False)
    both = error(post("/v1/generate", {}, Settings(token="secret", user="me:word")), 401)
    assert "its token or a name and its password" in both["message"]


@pytest.mark.parametrize("fields", [{"override_settings": {"CLIP_stop_at_last_layers": 2.7}}, {"clip_skip": 14}])
def test_a_client_of_a1111_hears_of_no_field_that_its_form_has_not(post, fields):
    answer = post("/sdapi/v1/txt2img", {"prompt": "a ring", **fields})
    assert (answer.status_code, "clip_skip_diffusers" in answer.text) == (422, False)
    assert answer.json()["field"] == next(iter(fields.get("override_settings", fields)))
