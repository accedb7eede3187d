"""Sheets over HTTP: a request varied along up to three axes. Its cells join the running batch as all pictures do."""

from __future__ import annotations

import asyncio
import base64
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import replace
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from clipskip import page, render, sheet
from clipskip.axes import STORE, Axis, parse_axis, places, requests
from clipskip.errors import Busy, ClipskipError, RequestError
from clipskip.fields import TEXT
from clipskip.metadata import encode
from clipskip.pipeline import Pipeline
from clipskip.request import PICTURES, Request, check_names, without_paths
from clipskip.resolve import Resolved
from clipskip.result import Result
from clipskip.scheduler import Generation, Queue
from clipskip.sheet import Sheet

from .answers import Refusal, facts
from .generate import Events, described, event, json_body, object_of
from .service import OPTIONS, Options, Service, Settings, check_pictures, disconnected

TOGETHER = 16  # cells of one sheet on their way at once: enough to fill a batch, and others find the queue empty
LONGEST = 1 << 16  # characters of an axis
MOVED = 0.5  # seconds between two events of progress


async def sheets(http: HttpRequest) -> Response:
    """POST /v1/sheets: as `Accept` says, the sheet as a PNG or a page, JSON with every cell, or server-sent events."""
    service: Service = http.app.state.service
    accept = http.headers.get("accept", "*/*").lower()
    base, axes, options = await asyncio.to_thread(parsed, await json_body(http))
    async with AsyncExitStack() as stack:
        opened = await stack.enter_async_context(service.models.use(options.model))
        with told_of("x"):
            cells = await asyncio.to_thread(requests, base, *axes)
        empty = Sheet(base, axes, (None,) * len(cells))
        run = Run(service, opened.scheduler, options, empty, cells)
        run.calls = await service.models.ask(options.model, weighed, cells, empty.names(), service.settings)
        stack.callback(run.end)
        run.fill()
        if "text/event-stream" in accept:
            return Events(events(run, service), stack.pop_all())
        gone = asyncio.ensure_future(disconnected(http))
        gone.add_done_callback(lambda _: run.tell())
        stack.callback(gone.cancel)
        try:
            async for _ in run.results():
                pass
        except Refusal:
            if gone.done():
                raise ClientDisconnect from None
            raise
        return await asyncio.to_thread(answer, run.sheet, accept)
    raise AssertionError


def parsed(body: bytes) -> tuple[Request, tuple[Axis, ...], Options]:
    """A request, what varies in it, and how it is served. RequestError, also for an axis of paths."""
    check_names(given := object_of(body), *OPTIONS, *"xyz")
    options = Options.of({name: given.pop(name) for name in OPTIONS if name in given})
    for name in ("preview", "format"):
        if getattr(options, name) != getattr(Options(), name):
            raise RequestError(f"a sheet has no {name}", field=name, hint="the header Accept chooses its form")
    axes = tuple(_axis(name, text) for name in "xyz" if (text := given.pop(name, None)) is not None)
    return render.read(Request.from_json(given)), axes, options


def _axis(name: str, text: object) -> Axis:
    """What varies along x, y or z."""
    with told_of(name):
        if len(typed := str(TEXT.check(name, text))) > LONGEST:
            raise RequestError(f"an axis has at most {LONGEST} characters", field=name)
        axis = parse_axis(typed)
    if axis.field == STORE:
        raise RequestError("store is no axis here", field=name, hint="ask for a sheet of each `model`")
    for value in axis.values:
        without_paths({axis.field: value})
    return axis


@contextmanager
def told_of(name: str) -> Iterator[None]:
    """What is wrong with axes, in the name that it has in a body: elsewhere it is `axis`."""
    try:
        yield
    except RequestError as error:
        error.field = name if error.field == "axis" else error.field
        raise


def weighed(pipe: Pipeline, cells: Sequence[Request], names: Sequence[str], settings: Settings) -> int:
    """How many calls all cells take. RequestError for one that is refused: a picture's limits hold for each, too."""
    pixels, calls = 0, 0

    def limit(resolved: Resolved) -> None:
        nonlocal pixels, calls
        settings.limit(resolved)
        pixels, calls = pixels + resolved.pixels, calls + resolved.calls
        if pixels > (most := settings.max_pixels):
            message = f"so far, the cells of this sheet have {pixels} pixels, and this server's limit is {most}"
            raise RequestError(message, field="x", hint="smaller or fewer cells")

    for cell in {tuple(getattr(cell, name) for name in PICTURES): cell for cell in cells}.values():
        check_pictures(cell, settings.max_pixels)
    sheet.kinds_of(cells, [pipe] * len(cells), names, limit)
    return calls


class Run:
    """The cells of one sheet on their way."""

    def __init__(
        self, service: Service, queue: Queue, options: Options, empty: Sheet, cells: Sequence[Request]
    ) -> None:
        self._service, self._queue, self._options, self.sheet = service, queue, options, empty
        self.calls, self._past = 0, 0
        self._left, self._open = deque(enumerate(cells)), dict[asyncio.Future[Result], tuple[int, Generation]]()
        self._start = time.monotonic()
        self.id = ""

    def fill(self) -> None:
        """Let cells wait for their calls, as many as may. Busy where there is no room for the first one."""
        seconds = self._service.seconds(self._options) - (time.monotonic() - self._start)
        while self._left and len(self._open) < TOGETHER:
            place, cell = self._left[0]
            if not self.id:
                self._service.check_id(self._options)
            try:
                generation = self._queue.submit(cell, None, self._options.priority)
            except Busy:
                if not self.id or seconds <= 0:
                    raise
                return
            generation.limit_time(seconds, self._service.late(self._options))
            if not self.id:
                self.id = self._options.id or generation.id
                self._service.running[self.id] = self
                self._service.tell_prompts(self.id, self.sheet.base)
            self._open[generation.future] = place, generation
            self._left.popleft()

    async def results(self) -> AsyncIterator[tuple[int, Result]]:
        """Each cell's place and result, as they are finished. Refusal (409) once it was cancelled."""
        while self._open or self._left:
            if not self._open:  # others have the whole queue
                await asyncio.sleep(MOVED)
                self.fill()
                continue
            ended, _ = await asyncio.wait(self._open, return_when=asyncio.FIRST_COMPLETED)
            for future in ended:
                place, generation = self._open.pop(future)
                if not future.cancelled():
                    result, results = future.result(), list(self.sheet.results)
                    results[place] = result
                    self.sheet = replace(self.sheet, results=tuple(results))
                    self._past += generation.progress.calls if generation.progress else 0
                    yield place, result
            self.fill()
        if None in self.sheet.results:
            raise Refusal(409, "this sheet was cancelled", field="id")

    def standing(self) -> dict[str, Any]:
        """Where it stands, as of one picture."""
        own = [generation for _, generation in self._open.values()]
        call = self._past + sum(each.progress.call for each in own if each.progress)
        spent, position = time.monotonic() - self._start, min((each.position for each in own), default=0)
        left = round(spent / call * (self.calls - call), 1) if call else None
        state = "running" if call else "queued"
        return {"state": state, "position": position, "seconds_left": left, "call": call, "calls": self.calls}

    def tell(self, *, error: Refusal | None = None) -> None:
        """End all cells within a call of the network; who waits for them is told why."""
        self._left.clear()
        for _, generation in list(self._open.values()):
            generation.tell(error=error) if error else generation.cancel()

    def end(self) -> None:
        self.tell()
        self._service.running.pop(self.id, None)


def answer(made: Sheet, accept: str) -> Response:
    """A sheet in the form that is accepted."""
    headers = {"X-Clipskip-Notes": str(len(made.notes))}
    if "text/html" in accept:
        return HTMLResponse(page.of_sheet(made).encode("utf-8", "replace"), headers=headers)
    if "application/json" in accept:
        cells = [_cell(made, place, result) for place, result in enumerate(made.results) if result]
        return JSONResponse({"labels": made.labels, "cells": cells, "notes": made.notes, "locked": made.locked()})
    return Response(encode(sheet.draw(made), made), 200, headers, "image/png")


def _cell(made: Sheet, place: int, result: Result) -> dict[str, Any]:
    """A cell as JSON: where it is along x, y and z, counted from 1, its name, and what a picture's JSON has."""
    where = [*places(made.axes)[place], 0, 0][:3]
    return {"cell": [at + 1 for at in where], "name": made.names()[place], **described(result, "PNG")}


async def events(run: Run, service: Service) -> AsyncIterator[bytes]:
    """queued, progress, and cell for each; in the end the result, with the whole sheet's picture, or an error."""
    yield event("queued", {"id": run.id, **run.standing(), "labels": run.sheet.labels})
    results = run.results()
    coming = asyncio.ensure_future(anext(results, None))
    try:
        while True:
            if not (await asyncio.wait({coming}, timeout=MOVED))[0]:
                yield event("progress", run.standing())
                continue
            if (cell := coming.result()) is None:
                break
            yield event("cell", await asyncio.to_thread(_cell, run.sheet, *cell))
            yield event("progress", run.standing())
            coming = asyncio.ensure_future(anext(results, None))
        made = run.sheet
        drawn = await asyncio.to_thread(lambda: encode(sheet.draw(made), made))
        whole = {"b64_json": base64.b64encode(drawn).decode(), "notes": made.notes, "locked": made.locked()}
        yield event("result", whole)
    except ClipskipError as error:
        service.note(error)
        yield event("error", facts(error))
    finally:
        coming.cancel()


ROUTES = [Route("/v1/sheets", sheets, methods=["POST"])]
