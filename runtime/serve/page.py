"""The page of `clipskip serve`, and what it asks beside the API: the settings in a picture. Knows no request's way."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache
from importlib.resources import files
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from clipskip import __version__
from clipskip import page as pages
from clipskip.axes import places
from clipskip.cells import Cells
from clipskip.engines.identify import clip_skip_of
from clipskip.errors import ClipskipError
from clipskip.ledger import Ledger
from clipskip.metadata import read_any
from clipskip.pipeline import Pipeline
from clipskip.request import FIELDS
from clipskip.resolve import DEEP_CLIP_SKIPS
from clipskip.samplers import SAMPLERS
from clipskip.schedules import SCHEDULES

from .foreign import AsciiResponse
from .service import Service

DEPTHS = {  # from this clip skip on, what to say beside the slider
    1: "no skip: the last layer",
    2: "the layer before the last; for models trained with it",
    **{limit + 1: f"above {limit} {what}" for limit, what in DEEP_CLIP_SKIPS},
    13: "only the embeddings are left",
}
CLOSED = "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'"


@lru_cache(maxsize=1)
def page() -> tuple[str, dict[str, str]]:
    """The page and the headers that close it: nothing runs but its own script, which asks this server alone."""
    text = files(__package__).joinpath("page.html").read_text("utf-8")
    plain = {name: {"default": row.default, "low": row.low, "high": row.high} for name, row in FIELDS.items()}
    names = {"samplers": [each.name for each in SAMPLERS], "schedules": ["automatic", *SCHEDULES]}
    data = json.dumps({"fields": plain, "depths": DEPTHS, "version": __version__, **names}).replace("<", "\\u003c")
    parts = {"/*STYLE*/": pages.STYLE, "<!--VIEWER-->": pages.VIEWER, "/*SCRIPT*/": pages.SCRIPT, "/*DATA*/0": data}
    for mark, part in parts.items():
        text = text.replace(mark, part)
    own = {name: digest(text.partition(f"<{name}>")[2].partition(f"</{name}>")[0]) for name in ("style", "script")}
    policy = f"{CLOSED}; style-src {own['style']}; script-src {own['script']}; frame-ancestors 'none'"
    return text, {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}


def digest(text: str) -> str:
    """How a policy names a text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


async def home(http: HttpRequest) -> Response:
    """GET /: the page; it asks for the token itself, where there is one."""
    text, headers = page()
    return HTMLResponse(text, headers=headers)


async def png_info(http: HttpRequest) -> Response:
    """POST /v1/png-info?model=NAME: the settings in the picture that the body is, and what cannot be honoured here."""
    service: Service = http.app.state.service
    data = await http.body()
    async with service.reading:
        return JSONResponse(await service.models.ask(http.query_params.get("model"), told, data))


async def adapters(http: HttpRequest) -> Response:
    """GET /v1/adapters?model=NAME: what prompts may call by name, and the clip skip that each was trained at, if known.

    LoRAs as they lie in their folders now; embeddings as they did when the model was opened, and that fit it.
    """
    return AsciiResponse(await http.app.state.service.models.ask(http.query_params.get("model"), offered))


def offered(pipe: Pipeline) -> dict[str, Any]:
    """The LoRAs and embeddings of a pipeline by name."""
    depths = {name: clip_skip_of(metadata.get("ss_clip_skip", "")) for name, metadata in pipe.loras().items()}
    loras = [{"name": name, "clip_skip": depth} for name, depth in depths.items()]
    learnt = pipe.embeddings
    names = [{"name": name, "clip_skip": learnt.clip_skips.get(name)} for name in sorted(learnt.spans)]
    return {"loras": loras, "embeddings": names}


def told(pipe: Pipeline, data: bytes) -> dict[str, Any]:
    """Of a picture its settings, of a sheet those of every cell. CheckpointError where there are none."""
    info = read_any(data)
    if isinstance(info, Ledger):
        return {"program": info.program, "cells": [{"cell": None, **_account(info, pipe)}]}
    return {"program": "clipskip", "cells": [{"cell": cell, **_account(each, pipe)} for cell, each in made_cells(info)]}


def made_cells(cells: Cells) -> Iterator[tuple[Sequence[int], Ledger]]:
    """Where each cell is that was made, counted from 1, and its settings."""
    for place, truth in zip(places(cells.axes), cells.truths, strict=True):
        if truth is not None:
            yield (cell := [at + 1 for at in place]), cells.ledger(cell)


def _account(ledger: Ledger, pipe: Pipeline) -> dict[str, Any]:
    """The request, its fields with their defaults left out, and how far this model can repeat it."""
    honoured, refused = ledger.checked()
    try:
        pipe.check(ledger)
    except ClipskipError as error:
        refused = {error.field or "request": error, **refused}  # type: ignore[dict-item]
    request = {name: value for name, value in asdict(ledger.request).items() if value != FIELDS[name].default}
    return {
        "request": request,
        "model": ledger.model,
        "honoured": honoured,
        "ignored": ledger.ignored,
        "notes": ledger.notes(pipe.model),
        "refused": {name: {"message": error.message, "hint": error.hint} for name, error in refused.items()},
    }


ROUTES = [
    Route("/", home, methods=["GET"]),
    Route("/v1/adapters", adapters, methods=["GET"]),
    Route("/v1/png-info", png_info, methods=["POST"]),
]
