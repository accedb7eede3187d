"""AUTOMATIC1111's lists: checkpoints, samplers, schedules, and what clipskip has none of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from clipskip.engines.manifest import ModelFacts
from clipskip.metadata import label
from clipskip.request import UPSCALERS
from clipskip.samplers import SAMPLERS, SCHEDULE_ALIASES
from clipskip.schedules import SCHEDULES

RHO = {"karras": 7.0, "polyexponential": 1.0}
NO_SCRIPTS: dict[str, list[str]] = {"txt2img": [], "img2img": []}


def digest(model: ModelFacts) -> str:
    """The SHA-256 that tells a checkpoint: of its file, or over the files of a folder."""
    files = list(model.sources.values())
    return files[0] if len(files) == 1 else model.model_sha256


def title(name: str, model: ModelFacts) -> str:
    """What clients show, and send back."""
    return f"{name} [{digest(model)[:10]}]"


def checkpoint(name: str, model: ModelFacts) -> dict[str, Any]:
    """A row of sd-models; no path of this machine is in it."""
    row = {"title": title(name, model), "model_name": name, "filename": name, "config": None}
    return {**row, "hash": digest(model)[:10], "sha256": digest(model)}


def _samplers() -> list[dict[str, Any]]:
    return [
        {"name": each.name, "aliases": list(each.aliases), "options": {"scheduler": each.automatic}}
        for each in SAMPLERS
    ]


def _schedulers() -> list[dict[str, Any]]:
    aliases = {name: [alias for alias, meant in SCHEDULE_ALIASES.items() if meant == name] for name in SCHEDULES}
    aliases = {"automatic": [], **aliases}
    return [
        {
            "name": name,
            "label": label(name),
            "aliases": also,
            "default_rho": RHO.get(name, -1),
            "need_inner_model": False,
        }
        for name, also in aliases.items()
    ]


def _upscaler(name: str) -> dict[str, Any]:
    return {"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4}


LISTS: dict[str, Callable[[], Any]] = {
    "samplers": _samplers,
    "schedulers": _schedulers,
    "upscalers": lambda: [_upscaler(name) for name in UPSCALERS if not name.startswith("Latent")],
    "latent-upscale-modes": lambda: [{"name": name} for name in UPSCALERS if name.startswith("Latent")],
    "embeddings": lambda: {"loaded": {}, "skipped": {}},
    "scripts": lambda: NO_SCRIPTS,
    "memory": lambda: {"ram": {}, "cuda": {}},
    "cmd-flags": dict,
    **dict.fromkeys(("sd-vae", "loras", "hypernetworks", "prompt-styles", "face-restorers", "script-info"), list),
    "realesrgan-models": list,
}
REFRESHED = ("refresh-checkpoints", "refresh-vae", "refresh-loras")  # stores are looked at anew without being asked


async def _told(answer: Callable[[], Any], http: HttpRequest) -> Response:
    return JSONResponse(answer())


def _route(name: str, answer: Callable[[], Any], method: str) -> Route:
    handler: Callable[[HttpRequest], Awaitable[Response]] = partial(_told, answer)
    return Route(f"/sdapi/v1/{name}", handler, methods=[method])


ROUTES = [
    *(_route(name, answer, "GET") for name, answer in LISTS.items()),
    *(_route(name, lambda: None, "POST") for name in REFRESHED),
]
