"""AUTOMATIC1111's routes: pictures, their progress, interrupt, options. Knows no field of a request.

What a client sets by POST options counts for all who ask in this form afterwards, as there; `override_settings` counts
for its own request.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import PIL.Image
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from clipskip import __version__, infotext, metadata
from clipskip.engines.manifest import Manifest, ModelFacts
from clipskip.errors import CheckpointError, ClipskipError, RequestError
from clipskip.fields import number, whole_clip_skip
from clipskip.pipeline import Pipeline
from clipskip.prompt.parts import last
from clipskip.request import FIELDS, Request, check_types
from clipskip.resolve import refusals
from clipskip.result import Result
from clipskip.scheduler import Generation

from . import a1111_lists
from .a1111_fields import CHECKPOINT, DEFAULTS, KNOWN, SETTINGS, Settings, ignored, request_of
from .answers import Refusal, facts, pictures, status_of
from .foreign import AsciiResponse, data_url, sentence, telling
from .generate import json_body, object_of
from .models import LOG
from .service import Options, Service

HIDDEN = {"mask", "comments", "infotext"}  # not told back, nor is what is no single value


@dataclass
class Job:
    """A request on its way: whose it is, and what an interrupted one had made."""

    address: str
    unfinished: Result | None = None


@dataclass
class Webui:
    """What these routes know beyond a request: the settings for all, and whose pictures are on their way."""

    service: Service
    fields: dict[str, Any] = field(default_factory=dict)  # of Request, by POST options
    model: str | None = None  # likewise
    jobs: dict[str, Job] = field(default_factory=dict)  # by the request's id

    async def txt2img(self, http: HttpRequest) -> Response:
        """POST /sdapi/v1/txt2img: pictures from a prompt."""
        return await self._made(http, image=False)

    async def img2img(self, http: HttpRequest) -> Response:
        """POST /sdapi/v1/img2img: pictures from a picture; with a mask what is called inpainting."""
        return await self._made(http, image=True)

    async def _made(self, http: HttpRequest, image: bool) -> Response:
        given = await asyncio.to_thread(object_of, await json_body(http))
        settings = Settings.of(given.get("override_settings") or {})
        model = self.model if settings.checkpoint is None else await self._model(settings.checkpoint)
        asked, notes = await asyncio.to_thread(request_of, given, settings.fields, self.fields, image)
        left_out = ignored(given, settings, image)
        name = uuid.uuid4().hex
        job = self.jobs[name] = Job(address(http))
        try:
            result = await self.service.result(http, asked, Options(model=model, id=name))
        except Refusal:
            if job.unfinished is None:
                raise
            result = job.unfinished
        finally:
            del self.jobs[name]
        if given.get("override_settings_restore_afterwards") is False:
            self.fields, self.model = {**self.fields, **settings.fields}, model
        known = {name: given[name] for name in given if name in KNOWN - HIDDEN}
        told = {name: each for name, each in known.items() if isinstance(each, str | bool) or number(each) is not None}
        encode: Callable[[Result], list[str]] = unfinished if result is job.unfinished else pictures
        images = await asyncio.to_thread(encode, result) if given.get("send_images") is not False else []
        info = json.dumps(info_of(result, [*notes, *result.warnings], left_out))
        return AsciiResponse({"images": images, "parameters": {**DEFAULTS, **told}, "info": info})

    async def _model(self, asked: str) -> str:
        """The store that a checkpoint's title, name or hash means. RequestError for none."""
        models = await self._models()
        for name, model in models.items():
            sha256 = a1111_lists.digest(model)
            names = {name, model.name, a1111_lists.title(name, model), sha256, sha256[:10]}
            if asked.lower() in map(str.lower, names):
                return name
        message = f"{CHECKPOINT} names no model of this server: {asked[:100]!r}"
        raise RequestError(message, field=CHECKPOINT, hint=f"there are: {', '.join(models)}")

    async def _models(self) -> dict[str, ModelFacts]:
        manifests = await asyncio.to_thread(self.service.models.manifests)
        return {name: each.model for name, each in manifests.items() if isinstance(each, Manifest)}

    async def options(self, http: HttpRequest) -> Response:
        """GET /sdapi/v1/options: the settings that requests start from."""
        return AsciiResponse(await self._options())

    async def _options(self) -> dict[str, Any]:
        name, models = self.service.models.name(self.model), await self._models()
        model = models.get(name)
        values = {"clip_skip": model.recommended_clip_skip if model else 1, **self.fields}
        told = {theirs: values.get(ours, FIELDS[ours].default) for theirs, ours in SETTINGS.items()}
        told["randn_source"] = str(told["randn_source"]).upper()
        title = a1111_lists.title(name, model) if model else name
        return {**told, CHECKPOINT: title, "sd_vae": "Automatic", "samples_format": "png"}

    async def set_options(self, http: HttpRequest) -> Response:
        """POST /sdapi/v1/options: what differs from what GET tells, for some clients post back all of it."""
        given, now = await asyncio.to_thread(object_of, await json_body(http)), await self._options()
        settings = Settings.of({name: value for name, value in given.items() if now.get(name, self) != value})
        model = self.model if settings.checkpoint is None else await self._model(settings.checkpoint)
        there = (await self._models()).get(self.service.models.name(model))
        fields = {**self.fields, **settings.fields}
        for error in refusals(check_types(Request(prompt="", **fields))).values():
            raise error
        if "clip_skip" in fields and there is not None:
            whole_clip_skip("clip_skip", fields["clip_skip"], len(there.kept) - 1)
        self.fields, self.model = fields, model
        return AsciiResponse(None)

    async def progress(self, http: HttpRequest) -> Response:
        """GET /sdapi/v1/progress: of the requests from the asking address."""
        mine = [generation for _, generation in self._mine(http)]
        told = [each.progress for each in mine if each.progress]
        done, calls = sum(each.call for each in told), sum(each.calls for each in told)
        images = []
        if done and http.query_params.get("skip_current_image", "").lower() not in ("true", "1"):
            with suppress(ClipskipError):  # where it goes wrong, its request says so
                images = await mine[0].preview()
        state = {"skipped": False, "interrupted": False, "stopping_generation": False, "job": "", "job_no": 0}
        state |= {"job_count": len(mine), "job_timestamp": timestamp(), "sampling_step": done, "sampling_steps": calls}
        return AsciiResponse(
            {
                "progress": max(done / max(calls, 1), 0.01) if mine else 0.0,  # 0 is idle
                "eta_relative": max((each.seconds_left or 0.0 for each in mine), default=0.0),
                "state": state,
                "current_image": (await asyncio.to_thread(png, images[0])) if images else None,
                "textinfo": None,
            }
        )

    async def interrupt(self, http: HttpRequest) -> Response:
        """POST /sdapi/v1/interrupt and skip: requests from this address end with their pictures as far as they are."""
        for job, generation in self._mine(http):
            try:
                job.unfinished = await generation.unfinished()
            except ClipskipError as error:
                LOG.warning("%s is interrupted without its pictures: %s", generation.id, error.message)
            generation.tell(error=Refusal(409, "this request was interrupted"))
        return AsciiResponse({})

    def _mine(self, http: HttpRequest) -> list[tuple[Job, Generation]]:
        mine = [job for job in self.jobs.items() if job[1].address == address(http)]
        running = [(job, self.service.running.get(id)) for id, job in mine]
        return [(job, generation) for job, generation in running if isinstance(generation, Generation)]

    async def models(self, http: HttpRequest) -> Response:
        """GET /sdapi/v1/sd-models: the stores as checkpoints."""
        return AsciiResponse([a1111_lists.checkpoint(*each) for each in (await self._models()).items()])

    async def loras(self, http: HttpRequest) -> Response:
        """GET /sdapi/v1/loras: those that prompts may call."""
        told = await self.service.models.ask(self.model, Pipeline.loras)
        return AsciiResponse([a1111_lists.lora(*each) for each in told.items()])

    async def embeddings(self, http: HttpRequest) -> Response:
        """GET /sdapi/v1/embeddings: those that fit the model."""
        return AsciiResponse(await self.service.models.ask(self.model, a1111_lists.embeddings))


async def png_info(http: HttpRequest) -> Response:
    """POST /sdapi/v1/png-info: the texts in a picture; none is no error."""
    given = await asyncio.to_thread(object_of, await json_body(http))
    url = data_url("image", given.get("image"))
    try:
        data = base64.b64decode(url.partition(",")[2], validate=True)
        async with http.app.state.service.reading:
            texts, comments = await asyncio.to_thread(metadata.texts_in, data)
    except (ValueError, CheckpointError) as error:
        raise RequestError(f"image is no sound picture in base64: {error}", field="image") from error
    text = texts.get("parameters") or next((each for each in comments if infotext.read(each)), "")
    info = infotext.read(text)
    prompts = {"Prompt": info.prompt, "Negative prompt": info.negative_prompt, **info.settings} if info else {}
    return AsciiResponse({"info": text, "items": texts, "parameters": prompts})


def address(http: HttpRequest) -> str:
    """Whose requests belong together."""
    return http.client.host if http.client else ""


def refusal(error: ClipskipError) -> tuple[int, dict[str, Any]]:
    """An error in A1111's form; of the body nothing is told back."""
    if error.field == "clip_skip":  # its hint is of a field that this form has not
        error.hint = None
    told = {"error": type(error).__name__, "detail": sentence(error), "body": "", "errors": error.message}
    return status_of(error), {**told, **{name: facts(error)[name] for name in ("code", "field", "hint")}}


def info_of(result: Result, notes: list[str], left_out: list[str]) -> dict[str, Any]:
    """What A1111 says about pictures; what clipskip has not is off, and `warnings` is ours."""
    request, model, count = result.request, result.model, len(result.images)
    subseeds = [-1 if (one := result.alone(index).subseed) is None else one for index in range(count)]
    return {
        "prompt": request.prompt,
        "all_prompts": [request.prompt] * count,
        "negative_prompt": request.negative_prompt,
        "all_negative_prompts": [request.negative_prompt] * count,
        "seed": result.seeds[0],
        "all_seeds": list(result.seeds),
        "subseed": subseeds[0],
        "all_subseeds": subseeds,
        "subseed_strength": request.subseed_strength,
        "width": request.width,
        "height": request.height,
        "sampler_name": request.sampler,
        "cfg_scale": request.cfg,
        "steps": request.steps,
        "batch_size": count,
        "restore_faces": False,
        "sd_model_name": model.name,
        "sd_model_hash": a1111_lists.digest(model)[:10],
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": request.strength,
        "extra_generation_params": {"Ignored": ", ".join(left_out)} if left_out else {},
        "index_of_first_image": 0,
        "infotexts": [metadata.parameters(result.origin(index)) for index in range(count)],
        "styles": [],
        "job_timestamp": timestamp(),
        "clip_skip": int(float(last(request.clip_skip, request.steps) or 1)),
        "is_using_inpainting_conditioning": False,
        "version": f"clipskip {__version__}",
        "warnings": [*([f"ignored: {', '.join(left_out)}"] if left_out else []), *notes],
    }


def unfinished(result: Result) -> list[str]:
    """Pictures that no request makes again, without one."""
    return [png(image) for image in result.images]


def png(image: PIL.Image.Image) -> str:
    """A picture as a PNG in base64, without a text."""
    return base64.b64encode(metadata.encode(image, None)).decode()


def timestamp() -> str:
    """The time, as A1111 writes it."""
    return time.strftime("%Y%m%d%H%M%S")


def routes(service: Service) -> list[Route]:
    """All of them; what is asked without a picture being made is in `a1111_lists`."""
    ui = Webui(service)
    posts = {"txt2img": ui.txt2img, "img2img": ui.img2img, "png-info": png_info, "options": ui.set_options}
    posts |= {"interrupt": ui.interrupt, "skip": ui.interrupt}
    gets = {"options": ui.options, "progress": ui.progress, "sd-models": ui.models}
    gets |= {"loras": ui.loras, "embeddings": ui.embeddings}
    own = [Route(f"/sdapi/v1/{name}", telling(refusal, each), methods=["POST"]) for name, each in posts.items()]
    own += [Route(f"/sdapi/v1/{name}", telling(refusal, each), methods=["GET"]) for name, each in gets.items()]
    return [*own, *a1111_lists.ROUTES]
