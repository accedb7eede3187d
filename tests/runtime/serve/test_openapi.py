"""The OpenAPI document: its own shape, that it is all that is served, and that what it says of defaults is so."""

import base64
import json
import re
from io import BytesIO

import PIL.Image
import pytest
from serving import asked
from starlette.routing import Route

from clipskip.request import FIELDS
from clipskip.serve import openai
from clipskip.serve.a1111_fields import KNOWN, SETTINGS
from clipskip.serve.app import create_app
from clipskip.serve.models import Models
from clipskip.serve.service import OPTIONS, Settings

SMALL = {"prompt": "a ring", "width": 64, "height": 64, "steps": 1, "seed": 7}
TYPES = {"string", "number", "integer", "boolean", "array", "object", "null"}
PYTHON = {"string": str, "number": (int, float), "integer": int, "boolean": bool, "array": list, "object": dict}


@pytest.fixture(scope="module")
def app(sample_store, pipe):
    return create_app(Models([sample_store], lambda path: pipe), Settings())


@pytest.fixture(scope="module")
def document(app):
    return asked(app, "GET", "/openapi.json").json()


def inside(value):
    """Every object in it."""
    if isinstance(value, dict):
        yield value
        value = [*value.values()]
    for each in value if isinstance(value, list) else ():
        yield from inside(each)


def rows(document, name):
    return document["components"]["schemas"][name]["properties"]


def test_every_reference_resolves_and_every_schema_is_used(document):
    named = {each["$ref"] for each in inside(document) if "$ref" in each}
    there = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert named == there


def test_every_type_is_json_schemas_and_every_default_is_of_its_type(document):
    for each in inside(document["components"]["schemas"]):
        if isinstance(each.get("type"), str | list) and "in" not in each:
            types = [each["type"]] if isinstance(each["type"], str) else each["type"]
            assert {*types} <= TYPES
            if "default" in each:
                assert any(isinstance(each["default"], PYTHON[kind]) for kind in types), each
                assert each["default"] in each.get("enum", [each["default"]])
        if "properties" in each:
            assert {*each.get("required", ())} <= each["properties"].keys()


def test_it_is_what_is_served_and_nothing_else(app, document):
    served = {(route.path, method) for route in app.routes for method in {*route.methods} - {"HEAD"}}
    assert all(isinstance(route, Route) for route in app.routes)
    assert served == {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    for path, methods in document["paths"].items():
        for told in methods.values():
            places = [each["name"] for each in told["parameters"] if each["in"] == "path"]
            assert places == re.findall(r"{(\w+)}", path)
            assert told["summary"]
            assert any(status[0] == "2" for status in told["responses"])


def test_fields_are_those_that_each_form_reads(document):
    theirs = {**rows(document, "Txt2Img"), **rows(document, "Img2Img")}
    assert theirs.keys() == KNOWN
    assert rows(document, "Settings").keys() == {*SETTINGS, "sd_model_checkpoint", "sd_vae"}
    assert (theirs["cfg_scale"]["default"], theirs["cfg_scale"]["maximum"], theirs["steps"]["default"]) == (7, 100, 50)
    image = rows(document, "ImageRequest")
    own = {*openai.OWN} & OPTIONS.keys()
    assert image.keys() == {*FIELDS, *openai.FIELDS, *openai.UNUSED, *own, "lora_alphas"}


def defaults(document, name):
    return {field: row["default"] for field, row in rows(document, name).items() if "default" in row}


@pytest.mark.parametrize(
    ("path", "schema"),
    [
        ("/v1/generate", "Request"),
        ("/v1/images/generations", "ImageRequest"),
        ("/sdapi/v1/txt2img", "Txt2Img"),
        ("/sdapi/v1/img2img", "Img2Img"),
    ],
)
def test_what_is_told_as_a_default_is_what_is_taken_where_nothing_is_given(app, pipe, document, path, schema):
    small, head = dict(SMALL), {"accept": "application/json"}
    if schema == "Img2Img":
        pipe(**SMALL).images[0].save(data := BytesIO(), "PNG")
        small["init_images"] = [base64.b64encode(data.getvalue()).decode()]
        PIL.Image.new("L", (64, 64), 255).save(mask := BytesIO(), "PNG")
        small["mask"] = base64.b64encode(mask.getvalue()).decode()

    def pictures(body):
        answer = asked(app, "POST", path, json=body, headers=head)
        assert answer.status_code == 200, answer.text
        found = answer.json()
        return [each["b64_json"] for each in found["data"]] if "data" in found else json.dumps(found["images"])

    assert pictures({**defaults(document, schema), **small}) == pictures(small)
