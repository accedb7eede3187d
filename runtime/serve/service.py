"""What all routes share: the models, the limits, and the requests on their way. Knows no route's form of a request."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Protocol

import PIL.Image
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest

from clipskip.errors import ClipskipError, DeadlineExceeded, DeviceLost, RequestError
from clipskip.fields import FRACTION, TEXT, WHOLE, Kind
from clipskip.pictures import FORMATS
from clipskip.request import PICTURES, Request
from clipskip.resolve import Resolved
from clipskip.result import Result
from clipskip.scheduler import Generation, late

from .answers import Refusal, facts
from .models import LOG, Stores

OPTIONS: Mapping[str, tuple[Kind, str]] = {  # of a request over HTTP, beside the fields of Request
    "model": (TEXT, "a name of GET /v1/models (default: the first)"),
    "id": (TEXT, "what DELETE /v1/generate/ID names; 1 to 64 letters, digits, - and _ (default: one is made up)"),
    "timeout": (FRACTION, "seconds, waiting included (default and most: the server's)"),
    "priority": (WHOLE, "-100..100: a higher one joins first (default: 0)"),
    "preview": (FRACTION, "seconds between previews in a stream of events (default: none)"),
    "format": (TEXT, "PNG, JPEG or WEBP (default: PNG)"),
}


KINDS = 500  # of refusals that are counted by themselves
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


@dataclass(frozen=True)
class Settings:
    """What a server allows. `user` is NAME:PASSWORD; "" for it and for `token`: everybody may.

    `max_pixels` is for all pictures of a request, as made and as given; `max_calls`: of the network, for each picture;
    `timeout`: seconds that a request may take. `client_timeout`: those for its head to come, for its body, and for each
    part of the answer to be taken. `loopback`: only this machine connects.
    """

    token: str = ""
    user: str = ""
    origins: tuple[str, ...] = ()
    loopback: bool = True
    max_body: int = 32 << 20
    max_pixels: int = 16 << 20
    max_calls: int = 1000
    timeout: float = 600.0
    client_timeout: float = 30.0
    log_prompts: bool = False

    def limit(self, resolved: Resolved) -> None:
        """RequestError for a request beyond the server's limits."""
        pixels = resolved.pixels * len(resolved.seeds)
        if pixels > self.max_pixels:
            message = f"{len(resolved.seeds)} of {resolved.pixels} pixels are more than {self.max_pixels}"
            raise RequestError(f"{message}, this server's limit", field="width", hint="smaller or fewer pictures")
        if resolved.calls > self.max_calls:
            message = f"a picture would take {resolved.calls} calls of the network; here {self.max_calls}"
            raise RequestError(f"{message} are the most", field="steps", hint="fewer steps")


@dataclass(frozen=True)
class Options:
    """How a request is served; see OPTIONS. RequestError for what is out of range."""

    model: str | None = None
    id: str | None = None
    timeout: float | None = None
    priority: int = 0
    preview: float | None = None
    format: str = "PNG"

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """From values of any type; None is the default."""
        return cls(**{name: OPTIONS[name][0].check(name, value) for name, value in given.items() if value is not None})

    def __post_init__(self) -> None:
        if self.id is not None and not _ID.fullmatch(self.id):
            raise RequestError("id must be 1 to 64 letters, digits, - and _", field="id")
        for name in ("timeout", "preview"):
            if (value := getattr(self, name)) is not None and not 0 <= value <= 86400:
                raise RequestError(f"{name} must be 0..86400 seconds, not {value:g}", field=name)
        if self.format.upper() not in ("PNG", "JPEG", "WEBP"):
            raise RequestError(f"format must be PNG, JPEG or WEBP, not {self.format!r}", field="format")


class Cancels(Protocol):
    """What a client may end by its id; who waits for it is told the error."""

    def tell(self, *, error: Refusal) -> None: ...


@dataclass
class Service:
    """One running server."""

    models: Stores
    settings: Settings
    running: dict[str, Cancels] = field(default_factory=dict)  # by id
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)  # one dropped picture in memory at a time
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)  # by code and field

    @asynccontextmanager
    async def generation(self, asked: Request, options: Options) -> AsyncIterator[Generation]:
        """A request on its way; what is left of it is cancelled when the block ends. Raises as `Scheduler.submit`."""
        await asyncio.to_thread(check_pictures, asked, self.settings.max_pixels)
        async with self.models.use(options.model) as pipe:
            self.check_id(options)  # last: nothing else runs until the id is noted
            generation = pipe.scheduler.submit(asked, None, options.priority, self.settings.limit)
            generation.limit_time(self.seconds(options), self.late(options))
            generation.id = options.id or generation.id
            self.running[generation.id] = generation
            self.tell_prompts(generation.id, asked)
            try:
                yield generation
            finally:
                generation.cancel()
                del self.running[generation.id]

    async def result(self, http: HttpRequest, asked: Request, options: Options) -> Result:
        """The result of a request; the work ends within a call when its client is gone. ClientDisconnect."""
        async with self.generation(asked, options) as generation:
            gone: asyncio.Future[None] = asyncio.ensure_future(disconnected(http))
            try:
                ends: list[asyncio.Future[Any]] = [generation.future, gone]
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                if not generation.ended:
                    raise ClientDisconnect
                return generation.future.result()
            finally:
                gone.cancel()

    def tell_prompts(self, name: str, asked: Request) -> None:
        """Write the prompts of a request into the log, where that is wanted."""
        if self.settings.log_prompts:
            LOG.info("%s prompt %r, negative %r", name, asked.prompt, asked.negative_prompt)

    def seconds(self, options: Options) -> float:
        """How long a request may take."""
        return min(self.settings.timeout if options.timeout is None else options.timeout, self.settings.timeout)

    def late(self, options: Options) -> DeadlineExceeded:
        """The error of a request that took longer, for who set the limit: the client, or the server."""
        seconds = self.seconds(options)
        if options.timeout == seconds < self.settings.timeout:
            return late(seconds)
        message = f"not done within {seconds:g} s, which is this server's limit"
        return DeadlineExceeded(message, hint="fewer steps or smaller pictures; the limit is `serve --timeout`")

    def check_id(self, options: Options) -> None:
        """Refusal (409) for the id of a request that is on its way."""
        if options.id in self.running:
            raise Refusal(409, "a request of this id is on its way", field="id")

    def note(self, error: ClipskipError) -> None:
        """Count what was refused, names that clients invent within bounds; a lost device is lost for all."""
        if isinstance(error, DeviceLost):
            self.models.lost = error.message
        name = (facts(error)["field"] or "")[:60]
        many = len(self.refused) >= KINDS and (error.code, name) not in self.refused
        self.refused[error.code, "others" if many else name] += 1


async def disconnected(http: HttpRequest) -> None:
    """Returns when the client is gone; its body was read."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def check_pictures(asked: Request, most: int) -> None:
    """RequestError for a picture of too many pixels, by its head alone: nothing is unpacked."""
    for name in PICTURES:
        url = getattr(asked, name)
        if not isinstance(url, str) or not url.startswith("data:"):
            continue
        try:
            data = base64.b64decode(url.partition(",")[2], validate=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                width, height = PIL.Image.open(BytesIO(data), formats=FORMATS).size
        except (binascii.Error, OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError):
            continue  # no sound picture: refused, with the reason, where it is read
        if width * height > most:
            message = f"{name} has {width}x{height} pixels; this server takes {most}"
            raise RequestError(message, field=name, hint="make it smaller")
