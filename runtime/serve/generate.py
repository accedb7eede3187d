"""The server's own API: requests as JSON in; pictures, JSON or events out; the models; cancel by id."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict
from functools import partial
from io import BytesIO
from typing import Any, TypeAlias

import PIL.Image
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from clipskip import render
from clipskip.engines import strict
from clipskip.engines.manifest import Manifest
from clipskip.errors import ClipskipError, ManifestError, RequestError
from clipskip.metadata import encode
from clipskip.request import LARGEST, Request, check_names
from clipskip.result import Result
from clipskip.scheduler import Generation

from .answers import Refusal, facts, pictures
from .service import OPTIONS, Options, Service

Told: TypeAlias = "Callable[[Generation, AsyncIterator[Any]], AsyncIterator[bytes]]"  # with its progress

HEARTBEAT = 10.0  # seconds after which a stream says that it is there, and where its request stands in the queue
TYPES = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}


async def generate(http: HttpRequest) -> Response:
    """POST /v1/generate: as `Accept` says, a picture, JSON with all of them, or server-sent events."""
    service: Service = http.app.state.service
    accept = [each.partition(";")[0].strip() for each in http.headers.get("accept", "*/*").lower().split(",")]
    asked, options = await asyncio.to_thread(parsed, await json_body(http), accept)
    if "text/event-stream" in accept:
        return await streamed(service, asked, options, partial(_events, service, options))
    result = await service.result(http, asked, options)
    if "application/json" in accept or len(result.images) > 1:
        return JSONResponse(await asyncio.to_thread(described, result, options.format))
    data = await asyncio.to_thread(encode, result.images[0], result.origin(0), options.format)
    headers = {"X-Clipskip-Seed": str(result.seeds[0]), "X-Clipskip-Notes": str(len(result.warnings))}
    return Response(data, media_type=f"image/{options.format.lower()}", headers=headers)


async def json_body(http: HttpRequest) -> bytes:
    """The body of a request that says that it is JSON; a page of another site cannot say so unasked."""
    if http.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal(415, "the body must be JSON", hint="send the header Content-Type: application/json")
    return await http.body()


def object_of(body: bytes) -> dict[str, Any]:
    """The JSON object that a body is. RequestError."""
    try:
        given = strict.parse(body, LARGEST, strict.LARGEST)
    except ManifestError as error:
        raise RequestError(f"the request is not a JSON object: {error.message[:200]}", field=error.field) from error
    if not isinstance(given, Mapping):
        raise RequestError("the request must be a JSON object")
    return dict(given)


def parsed(body: bytes, accept: list[str]) -> tuple[Request, Options]:
    """A request and how it is served; an accepted type of picture is the format, where none is given."""
    check_names(given := object_of(body), *OPTIONS)
    own = {name: given.pop(name) for name in OPTIONS if name in given}
    format = next((TYPES[each] for each in accept if each in TYPES), None)
    options = Options.of({"format": format, **own})
    return render.read(Request.from_json(given)), options


def described(result: Result, format: str) -> dict[str, Any]:
    """A result as JSON, its pictures in base64."""
    made = zip(result.seeds, pictures(result, format), strict=True)
    images = [{"seed": seed, "b64_json": picture} for seed, picture in made]
    request = {**asdict(result.request), **result.pictures}  # of given pictures their digests
    told = {"request": request, "warnings": result.warnings, "timings": result.timings, "engines": result.engines}
    return {"images": images, "format": format.upper(), "model": result.model.name, **told}


class Events(StreamingResponse):
    """A stream that lets go of its request also where it never begins."""

    def __init__(self, events: AsyncIterator[bytes], held: AsyncExitStack) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            await super().__call__(scope, receive, send)


async def streamed(service: Service, asked: Request, options: Options, events: Told) -> Response:
    """Events once the request is accepted; one that is refused is an error like any other."""
    async with AsyncExitStack() as stack:
        generation = await stack.enter_async_context(service.generation(asked, options))
        progress = generation.__aiter__()
        await anext(progress)  # it was checked, and waits for its first call
        return Events(events(generation, progress), stack.pop_all())
    raise AssertionError


async def _events(
    service: Service, options: Options, generation: Generation, progress: AsyncIterator[Any]
) -> AsyncIterator[bytes]:
    """queued, progress, preview; in the end result or error."""
    shown = time.monotonic()
    yield event("queued", {"id": generation.id, **standing(generation)})
    coming: asyncio.Future[Any] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(progress))
            if not (await asyncio.wait({coming}, timeout=HEARTBEAT))[0]:
                yield event("progress", standing(generation))
                continue
            state, coming = coming.result(), None
            yield event("progress", {**standing(generation), "call": state.call, "calls": state.calls})
            if state.results:
                break
            if options.preview is not None and time.monotonic() - shown >= options.preview:
                with suppress(ClipskipError):  # the picture may be made all the same
                    if images := await generation.preview():
                        yield event("preview", {"images": await asyncio.to_thread(_clean, images)})
                shown = time.monotonic()
        yield event("result", await asyncio.to_thread(described, state.results[0], options.format))
    except ClipskipError as error:
        service.note(error)
        yield event("error", facts(error))
    finally:
        if coming is not None:
            coming.cancel()


def _clean(images: list[PIL.Image.Image]) -> list[str]:
    """Pictures in the making as small JPEG files in base64, without a text."""
    encoded = []
    for image in images:
        image.save(data := BytesIO(), "JPEG", quality=85)
        encoded.append(base64.b64encode(data.getvalue()).decode())
    return encoded


def standing(generation: Generation) -> dict[str, Any]:
    """Where a request stands."""
    left = generation.seconds_left
    rounded = None if left is None else round(left, 1)
    return {"state": generation.state, "position": generation.position, "seconds_left": rounded}


def event(name: str, data: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


async def cancel(http: HttpRequest) -> Response:
    """DELETE /v1/generate/ID: the work ends within a call of the network, and who waits for it hears 409."""
    service: Service = http.app.state.service
    if (running := service.running.get(name := http.path_params["id"])) is None:
        raise Refusal(404, f"no request {name[:64]!r} is on its way", field="id")
    running.tell(error=Refusal(409, "this request was cancelled", field="id"))
    return Response(status_code=204)


async def models(http: HttpRequest) -> Response:
    """GET /v1/models: in OpenAI's form, and what else there is to know."""
    service: Service = http.app.state.service
    manifests = await asyncio.to_thread(service.models.manifests)
    return JSONResponse({"object": "list", "data": [_model(service, *each) for each in manifests.items()]})


def _model(service: Service, name: str, manifest: Manifest | ClipskipError) -> dict[str, Any]:
    row = {"id": name, "object": "model", "owned_by": "clipskip", "created": 0, "loaded": service.models.is_open(name)}
    if isinstance(manifest, ClipskipError):
        return {**row, "error": facts(manifest)}
    model = manifest.model
    skips = {each.role.layers for each in manifest.artefacts if each.role.part == "text"}
    sides = {"default_size": model.default_size, "size_step": model.size_step}
    return {
        **row,
        "family": model.family,
        "model": model.name,
        "sha256": model.model_sha256,
        "clip_skips": [skip for skip, layers in enumerate(model.kept, 1) if layers in skips],
        "recommended_clip_skip": model.recommended_clip_skip,
        **sides,
    }


ROUTES = [
    Route("/v1/generate", generate, methods=["POST"]),
    Route("/v1/generate/{id}", cancel, methods=["DELETE"]),
    Route("/v1/models", models, methods=["GET"]),
]
