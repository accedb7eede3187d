"""The OpenAPI document, made from the routes that are served and from the tables that their bodies are read by."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from starlette.routing import BaseRoute, Route

from clipskip import __version__, fields
from clipskip.errors import ClipskipError
from clipskip.fields import Field, Kind
from clipskip.request import ALIASES, FIELDS

from . import a1111, openai
from .a1111_fields import CHECKPOINT, OF_IMAGE, READ, REFUSED, SETTINGS, UNUSED
from .answers import facts
from .service import OPTIONS

NUMBER, STRING = {"type": "number"}, {"type": "string"}
BINARY = {**STRING, "format": "binary"}
TYPES: dict[str, dict[str, Any]] = {  # by what a kind says that it is
    fields.TEXT.what: STRING,
    fields.WHOLE.what: {"type": "integer"},
    fields.FRACTION.what: NUMBER,
    fields.FLAG.what: {"type": "boolean"},
    fields.NUMBERS.what: {"type": "array", "items": NUMBER},
    fields.NAMES.what: {"type": "array", "items": STRING},
    fields.PICTURE.what: {**STRING, "pattern": "^data:", "description": "a data URL; paths are refused"},
}
PLAIN = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
PICTURE = {f"image/{name}": {"schema": BINARY} for name in ("png", "jpeg", "webp")}


def _json(schema: str, kind: str = "application/json") -> dict[str, Any]:
    return {kind: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


BODIES = {
    "/v1/generate": _json("Request"),
    "/v1/sheets": _json("SheetRequest"),
    "/v1/png-info": PICTURE,
    "/v1/images/generations": _json("ImageRequest"),
    "/v1/images/edits": _json("ImageEdit", "multipart/form-data"),
    "/sdapi/v1/txt2img": _json("Txt2Img"),
    "/sdapi/v1/img2img": _json("Img2Img"),
    "/sdapi/v1/options": _json("Settings"),
    "/sdapi/v1/png-info": _json("PngInfo"),
}
MADE = {
    "description": "as Accept says",
    "content": {**PICTURE, "text/html": {}, "application/json": {}, "text/event-stream": {}},
}
DONE = {"description": "done"}
QUERIES = {"/v1/png-info": "model", "/v1/adapters": "model", "/sdapi/v1/progress": "skip_current_image"}
FORMS = {"/v1/images/": "OpenAIError", "/sdapi/": "A1111Error", "": "Error"}  # of refusals, by a path's beginning


def document(routes: Iterable[BaseRoute]) -> dict[str, Any]:
    """OpenAPI 3.1 of these routes."""
    paths: dict[str, Any] = {}
    for route in (each for each in routes if isinstance(each, Route)):
        for method in sorted({*(route.methods or ())} - {"HEAD"}):
            paths.setdefault(route.path, {})[method.lower()] = operation(route, method)
    secured = {"bearer": {"type": "http", "scheme": "bearer"}, "basic": {"type": "http", "scheme": "basic"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "clipskip", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas(), "securitySchemes": secured},
    }


def operation(route: Route, method: str) -> dict[str, Any]:
    """One method of a path: what it does in its handler's words, what it takes, and how it refuses."""
    path, said = route.path, (route.endpoint.__doc__ or "").partition("\n")[0]
    form = next(form for start, form in FORMS.items() if path.startswith(start))
    inside = [(name, "path") for name in re.findall(r"{(\w+)}", path)]
    named = [*inside, *([(QUERIES[path], "query")] if path in QUERIES else [])]
    places = [{"name": name, "in": place, "required": place == "path", "schema": STRING} for name, place in named]
    takes = {"requestBody": {"required": True, "content": BODIES[path]}} if method == "POST" and path in BODIES else {}
    done = {"204" if method == "DELETE" else "200": MADE if path in ("/v1/generate", "/v1/sheets") else DONE}
    refused = {"default": {"description": "why, by `code`; before a route is reached: Error", "content": _json(form)}}
    summary = said.partition(": ")[2] or said
    return {"summary": summary, "parameters": places, **takes, "responses": {**done, **refused}}


def schemas() -> dict[str, Any]:
    """Of every body that is read, and of the three forms of a refusal."""
    own = {name: {**_type(kind), "description": text} for name, (kind, text) in OPTIONS.items()}
    rows, error = {name: _row(field) for name, field in FIELDS.items()}, ClipskipError("")
    axes = {name: {**STRING, "description": "an axis, such as clip_skip=1-13"} for name in "xyz"}
    image = {**rows, **{name: own[name] for name in openai.OWN}, **{name: {} for name in openai.UNUSED}}
    image |= {**{name: _row(row) for name, row in openai.FIELDS.items()}, "lora_alphas": {"type": "object"}}
    settings = {name: _theirs(name, None) for name in SETTINGS} | dict.fromkeys((CHECKPOINT, "sd_vae"), STRING)
    theirs = {name: _theirs(name, default) for name, default in READ.items()}
    theirs |= {name: _theirs(name, off, "on is refused") for name, off in REFUSED.items()}
    theirs |= {**{name: {} for name in UNUSED}, "override_settings": {"$ref": "#/components/schemas/Settings"}}
    from_image = {name: _theirs(name, default) for name, default in OF_IMAGE.items()}
    return {
        "Request": {**_object({**rows, **own}, "prompt"), "additionalProperties": False},
        "SheetRequest": {**_object({**rows, **own, **axes}, "prompt", "x"), "additionalProperties": False},
        "ImageRequest": _object(image, "prompt"),
        "ImageEdit": _object({**image, "image": BINARY, "mask": BINARY}, "prompt", "image"),
        "Settings": _object(settings),
        "Txt2Img": _object(theirs),
        "Img2Img": _object({**theirs, **from_image}, "init_images"),
        "PngInfo": _object({"image": STRING}, "image"),
        "Error": _like({"error": facts(error)}),
        "OpenAIError": _like(openai.refusal(error)[1]),
        "A1111Error": _like(a1111.refusal(error)[1]),
    }


def _object(rows: Mapping[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", **({"required": required} if required else {}), "properties": rows}


def _row(field: Field) -> dict[str, Any]:
    """A field's type, range and default; aliases are told in its description."""
    also = f"; also {', '.join(field.aliases)}" if field.aliases else ""
    row = {**_type(field.kind), "description": f"{field.help}{also}"}
    if field.choices:
        row["enum"] = list(field.choices)
    row |= {name: side for name, side in (("minimum", field.low), ("maximum", field.high)) if side is not None}
    return row if field.default is None else {**row, "default": field.default}


def _theirs(name: str, default: object, said: str = "as AUTOMATIC1111's") -> dict[str, Any]:
    """A field in A1111's form: as ours, where it means one and its default is one's value; else as its default is."""
    field = FIELDS.get(SETTINGS.get(name, ALIASES.get(name, name)))
    row = {} if default is None else {"type": PLAIN[type(default)], "default": default}
    if field is None or field.kind is fields.PICTURE or (default is not None and field.kind.take(default) is None):
        return {**row, "description": said}
    ours = {key: value for key, value in _row(field).items() if key not in ("default", "enum")}
    whole = {"type": "integer"} if field.kind is fields.CLIP_SKIPS else {}  # without schedules
    return {**ours, **row, "type": ours["type"], **whole}


def _type(kind: Kind) -> dict[str, Any]:
    """A kind's JSON type; a clip skip is a number, or a schedule of several as a text."""
    return TYPES.get(kind.what, {"type": ["number", "string"]})


def _like(told: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of an object with these names, whose values are texts, or objects likewise."""
    text = {"type": ["string", "null"]}
    return _object({name: _like(each) if isinstance(each, Mapping) else text for name, each in told.items()})
