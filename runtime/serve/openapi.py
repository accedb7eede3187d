"""The OpenAPI document, made from the table of fields. Knows what the routes take, not what they do."""

from __future__ import annotations

from typing import Any

from clipskip import __version__, fields
from clipskip.fields import Field, Kind
from clipskip.request import FIELDS

from .answers import STATUS
from .service import OPTIONS

NUMBER, STRING = {"type": "number"}, {"type": "string"}
TYPES: dict[str, dict[str, Any]] = {  # by what a kind says that it is
    fields.TEXT.what: STRING,
    fields.WHOLE.what: {"type": "integer"},
    fields.FRACTION.what: NUMBER,
    fields.FLAG.what: {"type": "boolean"},
    fields.NUMBERS.what: {"type": "array", "items": NUMBER},
    fields.NAMES.what: {"type": "array", "items": STRING},
    fields.PICTURE.what: {**STRING, "pattern": "^data:", "description": "a data URL; paths are refused"},
}


def document() -> dict[str, Any]:
    """OpenAPI 3.1 of the server's own routes."""
    picture = {f"image/{name}": {"schema": {**STRING, "format": "binary"}} for name in ("png", "jpeg", "webp")}
    answers = {**picture, "application/json": {}, "text/event-stream": {}}
    errors = {str(status): {"description": "see `code`", "content": _json("Error")} for status in {*STATUS.values()}}
    made = {"200": {"description": "pictures, as Accept says", "content": answers}, **errors}
    generate = {"requestBody": {"required": True, "content": _json("Request")}, "responses": made}
    sheet = {"requestBody": {"required": True, "content": _json("SheetRequest")}, "responses": made}
    told = {
        "requestBody": {"required": True, "content": picture},
        "responses": {"200": {"description": "done"}, **errors},
    }
    identity = {"name": "id", "in": "path", "required": True, "schema": STRING}
    done = {"description": "done"}
    cancel = {"parameters": [identity], "responses": {"204": done, "404": {"description": "no such request"}}}
    paths: dict[str, Any] = {
        "/v1/generate": {"post": {"summary": "make pictures", **generate}},
        "/v1/generate/{id}": {"delete": {"summary": "cancel a request", **cancel}},
        "/v1/sheets": {"post": {"summary": "a request along the axes x, y, z", **sheet}},
        "/v1/png-info": {"post": {"summary": "the settings in a picture, which is the body", **told}},
    }
    for path, summary in READING.items():
        paths[path] = {"get": {"summary": summary, "responses": {"200": done}}}
    facts = {name: {"type": ["string", "null"]} for name in ("code", "message", "field", "hint")}
    error = {"type": "object", "properties": {"error": {"type": "object", "properties": facts}}}
    axes = {name: {**STRING, "description": "an axis, such as clip_skip=1-13"} for name in "xyz"}
    request = request_schema()
    sheet_request = {**request, "required": ["prompt", "x"], "properties": {**request["properties"], **axes}}
    schemas = {"Request": request, "SheetRequest": sheet_request, "Error": error}
    secured = {"bearer": {"type": "http", "scheme": "bearer"}, "basic": {"type": "http", "scheme": "basic"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "clipskip", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": secured},
    }


READING = {
    "/v1/models": "the models",
    "/healthz": "whether the server can make pictures at all",
    "/readyz": "whether it should be sent requests",
    "/metrics": "figures, in Prometheus' form",
}


def request_schema() -> dict[str, Any]:
    """The JSON schema of a request: a row for each field and option, aliases told in its description."""
    own = {name: {**_type(kind), "description": text} for name, (kind, text) in OPTIONS.items()}
    rows = {name: _row(field) for name, field in FIELDS.items()}
    return {"type": "object", "required": ["prompt"], "properties": {**rows, **own}, "additionalProperties": False}


def _row(field: Field) -> dict[str, Any]:
    also = f"; also {', '.join(field.aliases)}" if field.aliases else ""
    row = {**_type(field.kind), "description": f"{field.help}{also}"}
    if field.choices:
        row["enum"] = list(field.choices)
    row |= {name: side for name, side in (("minimum", field.low), ("maximum", field.high)) if side is not None}
    return row if field.default is None else {**row, "default": field.default}


def _type(kind: Kind) -> dict[str, Any]:
    """A kind's JSON type; a clip skip is a number, or a schedule of several as a text."""
    return TYPES.get(kind.what, {"type": ["number", "string"]})


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
