"""OpenAI's routes for pictures: what is made, also while it is made, and pictures made from others.

Beside its own fields a request has ours under any of their names. Knows nothing of OpenAI's models.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import PIL.Image
from starlette.datastructures import UploadFile
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from clipskip import pictures as files
from clipskip import render
from clipskip.errors import ClipskipError, RequestError
from clipskip.fields import FLAG, FRACTION, TEXT, WHOLE, Field, shown
from clipskip.metadata import encode
from clipskip.request import ALIASES, Request, canonical, check_names, given_twice
from clipskip.request import FIELDS as REQUEST
from clipskip.scheduler import Generation

from .answers import facts, pictures, status_of
from .foreign import AsciiResponse, sentence, telling
from .generate import event, json_body, object_of, streamed
from .service import OPTIONS, Options, Service, check_pictures

UNUSED = ("quality", "style", "background", "moderation", "user", "input_fidelity", "safety_identifier")
OWN = ("model", "timeout", "priority")  # of a request over HTTP
TOLD = ("response_format", "output_format", "output_compression", "partial_images", "stream")
FIELDS: Mapping[str, Field] = {  # beside Request's
    row.name: row
    for row in (
        Field("n", WHOLE, 1, False, "", "how many pictures", 1, 10),
        Field("size", TEXT, "auto", False, "", "WIDTHxHEIGHT; auto: the model's, and of an edit the picture's"),
        Field("response_format", TEXT, "b64_json", False, "", "", choices=("b64_json",)),
        Field("output_format", TEXT, "png", False, "", "", choices=("png", "jpeg", "webp")),
        Field("output_compression", WHOLE, None, False, "", "the quality; WEBP is lossless without", 0, 100),
        Field("stream", FLAG, False, False, "", "server-sent events"),
        Field("partial_images", WHOLE, 0, False, "", "pictures in the making, in a stream", 0, 3),
        Field("rng_seed", WHOLE, None, False, "", "seed"),
    )
}
# Nothing is billed by tokens here, so none are counted; clients want the object to be there.
USAGE = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
USAGE_DETAILS = {"input_tokens_details": {"image_tokens": 0, "text_tokens": 0}}


@dataclass(frozen=True)
class Asked:
    """A request, how it is served, and how its pictures are told."""

    request: Request
    options: Options
    format: str = "png"
    quality: int | None = None
    previews: int | None = None  # how many pictures in the making a stream has; None: no stream
    kind: str = "image_generation"  # of its events

    @classmethod
    def of(cls, given: Mapping[str, Any], kind: str) -> Asked:
        """From the fields of a body, of which those of a form are texts. RequestError."""
        check_names(given, *FIELDS, *UNUSED, *OWN, "lora_alphas")
        rest = {name: value for name, value in given.items() if value is not None and name not in UNUSED}
        read = {name: _checked(FIELDS[name], rest.pop(name, None)) for name in TOLD}
        format, quality = read["output_format"], read["output_compression"]
        previews = read["partial_images"] if read["stream"] else None
        options = Options.of({name: rest.pop(name) for name in OWN if name in rest})
        return cls(_request(rest), options, format, quality, previews, kind)


def _request(given: dict[str, Any]) -> Request:
    """The request that OpenAI's names and ours mean; what a `/render` line as the prompt says comes first."""
    theirs: dict[str, Any] = {}
    if (size := given.pop("size", "auto")) != "auto":
        theirs |= {name: int(side) for name, side in render.size(str(TEXT.check("size", size))).items()}
    if (count := given.pop("n", None)) is not None:
        theirs["batch"] = _checked(FIELDS["n"], count)
    if (seed := given.pop("rng_seed", None)) is not None:
        theirs["seed"] = seed
    if (weights := given.pop("lora_alphas", None)) is not None:
        theirs["loras"] = _loras(weights)
    ours = canonical(given)
    for name in theirs:
        if ours.get(name, theirs[name]) != theirs[name]:
            raise given_twice(name)
    return render.read(Request.from_json({**ours, **theirs}))


def _loras(weights: object) -> list[str]:
    if not isinstance(weights, Mapping):
        raise RequestError(f"lora_alphas must be an object, not {shown(weights)}", field="lora_alphas")
    return [f"{name}:{FRACTION.check('lora_alphas', weight)}" for name, weight in weights.items()]


def _checked(row: Field, value: object) -> Any:
    """A value of this field within its bounds, or its default. RequestError."""
    taken = row.check(value)
    if row.choices and (taken := taken.lower()) not in row.choices:
        raise RequestError(f"{row.name} must be {' or '.join(row.choices)}, not {shown(value)}", field=row.name)
    if row.low is not None and row.high is not None and taken is not None and not row.low <= taken <= row.high:
        raise RequestError(f"{row.name} must be {row.low}..{row.high}, not {taken}", field=row.name)
    return taken


async def generations(http: HttpRequest) -> Response:
    """POST /v1/images/generations: JSON, or a stream of events with pictures in the making."""
    body = await json_body(http)
    return await _answer(http, await asyncio.to_thread(lambda: Asked.of(object_of(body), "image_generation")))


async def edits(http: HttpRequest) -> Response:
    """POST /v1/images/edits: a form with one picture, and a mask that is transparent where it is painted anew."""
    given: dict[str, Any] = {}
    async with http.form(max_files=4, max_fields=100, max_part_size=1 << 20) as form:
        for name, value in form.multi_items():
            if (name := name.removesuffix("[]")) in given:
                raise RequestError(f"{name} is given twice; one is taken", field=name)
            given[name] = _url(await value.read()) if isinstance(value, UploadFile) else value
    if not isinstance(given.get("image"), str):
        raise RequestError("the field 'image' is missing: a form (multipart/form-data) with a picture", field="image")
    return await _answer(http, await asyncio.to_thread(_edit, given, http.app.state.service.settings.max_pixels))


def _edit(given: dict[str, Any], most: int) -> Asked:
    """What a form asks for: texts are read as on a command line, and a transparent mask means its other part."""
    kinds = {name: row.kind for name, row in {**REQUEST, **FIELDS}.items()}
    kinds |= {name: OPTIONS[name][0] for name in OWN} | {name: kinds[field] for name, field in ALIASES.items()}
    asked = Asked.of({name: kinds.get(name, TEXT).read(value) for name, value in given.items()}, "image_edit")
    request = asked.request
    check_pictures(request, most)
    if "mask" in given and "A" in files.opened("mask", str(request.mask)).getbands():
        request = replace(request, mask_invert=not request.mask_invert)
    return replace(asked, request=request)


def _url(data: bytes) -> str:
    return f"data:;base64,{base64.b64encode(data).decode()}"


async def _answer(http: HttpRequest, asked: Asked) -> Response:
    service: Service = http.app.state.service
    if asked.previews is not None:
        return await streamed(service, asked.request, asked.options, partial(_events, service, asked))
    result = await service.result(http, asked.request, asked.options)
    made = await asyncio.to_thread(pictures, result, asked.format.upper(), asked.quality)
    data = [{"b64_json": each} for each in made]
    warnings = {"warnings": result.warnings} if result.warnings else {}
    return AsciiResponse({"created": int(time.time()), "data": data, **_told(asked, result.images[0]), **warnings})


async def _events(
    service: Service, asked: Asked, generation: Generation, progress: AsyncIterator[Any]
) -> AsyncIterator[bytes]:
    """Pictures in the making, evenly over the calls; in the end each finished one, or an error."""
    shown = 0
    try:
        async for state in progress:
            if state.results:
                break
            if shown < asked.previews and state.call * (asked.previews + 1) >= state.calls * (shown + 1):  # type: ignore[operator]
                with suppress(ClipskipError):  # the picture may be made all the same
                    for image in await generation.preview():
                        told = {"partial_image_index": shown, "b64_json": await asyncio.to_thread(_bare, image, asked)}
                        yield _event(asked, "partial_image", image, told)
                shown += 1
        result = state.results[0]
        made = await asyncio.to_thread(pictures, result, asked.format.upper(), asked.quality)
        for image, b64 in zip(result.images, made, strict=True):
            yield _event(asked, "completed", image, {"b64_json": b64, "usage": {**USAGE, **USAGE_DETAILS}})
    except ClipskipError as error:
        service.note(error)
        yield event("error", refusal(error)[1])


def _event(asked: Asked, name: str, image: PIL.Image.Image, told: Mapping[str, Any]) -> bytes:
    kind = f"{asked.kind}.{name}"
    return event(kind, {"type": kind, "created_at": int(time.time()), **_told(asked, image), **told})


def _told(asked: Asked, image: PIL.Image.Image) -> dict[str, Any]:
    size = f"{image.width}x{image.height}"
    return {"output_format": asked.format, "size": size, "quality": "auto", "background": "opaque"}


def _bare(image: PIL.Image.Image, asked: Asked) -> str:
    """A picture in the making, which no request makes: without one."""
    return base64.b64encode(encode(image, None, asked.format, asked.quality)).decode()


def refusal(error: ClipskipError) -> tuple[int, dict[str, Any]]:
    """An error in OpenAI's form, where what is wrong with a request is a 400."""
    status = 400 if status_of(error) == 422 else status_of(error)
    known = facts(error)
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return status, {"error": {"message": sentence(error), "type": kind, "param": known["field"], "code": known["code"]}}


ROUTES = [
    Route("/v1/images/generations", telling(refusal, generations), methods=["POST"]),
    Route("/v1/images/edits", telling(refusal, edits), methods=["POST"]),
]
