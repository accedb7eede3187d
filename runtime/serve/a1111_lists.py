"""AUTOMATIC1111's lists: checkpoints, samplers, schedules, and what clipskip has none of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from clipskip.engines.manifest import ModelFacts
from clipskip.inversions import SUFFIX
from clipskip.metadata import label
from clipskip.pipeline import Pipeline
from clipskip.request import UPSCALERS
from clipskip.samplers import SAMPLERS, SCHEDULE_ALIASES
from clipskip.schedules import SCHEDULES

RHO = {"karras": 7.0, "polyexponential": 1.0}


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


def lora(name: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    """A row of loras; a prompt calls it by its name alone, and its path is its file's name."""
    return {"name": name, "alias": name, "path": f"{name}{SUFFIX}", "metadata": metadata}


def embeddings(pipe: Pipeline) -> dict[str, Any]:
    """Those that prompts may call."""
    learnt = pipe.embeddings
    unknown = dict.fromkeys(("step", "sd_checkpoint", "sd_checkpoint_name"))
    width = learnt.vectors.shape[1]
    rows = {name: {**unknown, "shape": width, "vectors": len(rows)} for name, rows in learnt.spans.items()}
    return {"loaded": rows, "skipped": {}}


def _route(name: str, told: object, method: str = "GET") -> Route:
    async def answer(http: HttpRequest) -> Response:
        """The same for every request: what there is, if anything."""
        return JSONResponse(told)

    return Route(f"/sdapi/v1/{name}", answer, methods=[method])


LISTS: dict[str, Any] = {
    "samplers": [
        {"name": each.name, "aliases": each.aliases, "options": {"scheduler": each.automatic}} for each in SAMPLERS
    ],
    "schedulers": [
        {
            "name": name,
            "label": label(name),
            "aliases": [alias for alias, meant in SCHEDULE_ALIASES.items() if meant == name],
            "default_rho": RHO.get(name, -1),
            "need_inner_model": False,
        }
        for name in ("automatic", *SCHEDULES)
    ],
    "upscalers": [
        {"name": name, "scale": 4, **dict.fromkeys(("model_name", "model_path", "model_url"))}
        for name in UPSCALERS
        if not name.startswith("Latent")
    ],
    "latent-upscale-modes": [{"name": name} for name in UPSCALERS if name.startswith("Latent")],
    "scripts": {"txt2img": [], "img2img": []},
    "memory": {"ram": {}, "cuda": {}},
    "cmd-flags": {},
    **dict.fromkeys(("sd-vae", "hypernetworks", "prompt-styles", "face-restorers", "script-info"), ()),
    "realesrgan-models": [],
}
REFRESHED = ("refresh-checkpoints", "refresh-vae", "refresh-loras")  # stores are looked at anew without being asked
ROUTES = [
    *(_route(name, told) for name, told in LISTS.items()),
    *(_route(name, None, "POST") for name in REFRESHED),
]
