"""Pictures made by other processes: what makes them there, and what takes the requests here. Knows nothing of Ray.

A request whose seeds are drawn gives the same pictures wherever it is made. So one whose process is gone is sent again,
and what was told of it stays true: nothing more is told until the repetition is further than that.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import PIL.Image
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from clipskip.errors import BackendUnavailable, Busy, ClipskipError, Closed, DeviceLost
from clipskip.request import Request
from clipskip.resolve import drawn
from clipskip.result import Progress, Result
from clipskip.scheduler import LONGEST_RETRY, Generation, Queue

from . import metrics
from .models import LOG, Models, Stores
from .service import Options, Service, Settings

if TYPE_CHECKING:
    from clipskip.scheduler import Limit

T = TypeVar("T")

PAUSES = (0.0, 2.0, 8.0)  # seconds before a request is sent again: in all more than a lost device stays in service
OFTEN = 0.1  # seconds between what a replica tells of one request
BESIDE = 5.0  # seconds that replicas have to answer all together


@dataclass(frozen=True)
class Told:
    """What a replica tells of a request; the last has its result."""

    call: int
    calls: int
    state: str
    seconds_left: float | None
    results: tuple[Result, ...] = ()


class Replica:
    """One process that makes pictures, on a device of its own. An error that is clipskip's own is an answer."""

    def __init__(self, models: Models, settings: Settings, name: str) -> None:
        self.service, self._name = Service(models, settings), name

    async def generate(self, asked: Request, options: Options) -> AsyncIterator[Told | ClipskipError]:
        """Make the pictures of a request, which ends with this iteration."""
        try:
            async with self.service.generation(asked, options) as generation:
                async for each in generation:
                    yield Told(each.call, each.calls, generation.state, generation.seconds_left, each.results)
                    await asyncio.wait({generation.future}, timeout=OFTEN)
        except ClipskipError as error:
            self.service.note(error)
            yield error

    async def ask(self, model: str, question: Callable[..., T], *about: Any) -> T | ClipskipError:
        """As `Stores.ask`."""
        try:
            return await self.service.models.ask(model, question, *about)
        except ClipskipError as error:
            self.service.note(error)
            return error

    async def look(self, id: str, what: str) -> Any:
        """The `preview` of a request, or what is `unfinished`, where it is made here; else None."""
        generation = self.service.running.get(id)
        return await getattr(generation, what)() if generation else None

    async def figures(self) -> tuple[str, bytes]:
        """This replica's name and figures."""
        return self._name, await asyncio.to_thread(metrics.text, self.service)

    async def check_health(self) -> None:
        """DeviceLost where another process has to take this one's place."""
        if failure := self.service.models.failure():
            raise DeviceLost(failure)


@dataclass(frozen=True)
class Transport:
    """How replicas are reached: a handle of Ray Serve or its like, and what is raised by it.

    `gone`: errors that say that a replica is not there any more, beside those that one tells itself; `full`: that too
    many requests wait; `running`: how many replicas take requests.
    """

    handle: Any
    gone: tuple[type[Exception], ...]
    full: type[Exception]
    running: Callable[[], int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "gone", (*self.gone, DeviceLost, Closed, TimeoutError))

    async def anew(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """What an attempt gives; made again where its replica is gone. BackendUnavailable in the end; Busy."""
        for pause in (*PAUSES, None):
            try:
                return await attempt()
            except self.full as error:
                raise Busy("too many requests wait already", hint="try again later") from error
            except self.gone as error:
                if pause is None:
                    message = f"{len(PAUSES) + 1} replicas in a row were gone before this request was done"
                    raise BackendUnavailable(message, hint="`serve status` and the replicas' logs say more") from error
                LOG.warning("a request is sent again, for its replica is gone: %s", str(error).partition("\n")[0])
                await asyncio.sleep(pause)
        raise AssertionError

    def everywhere(self, method: str, *about: Any) -> list[Any]:
        """What all replicas answer, as far as they do; blocks."""
        try:
            answers = self.handle.broadcast(method, *about).results(timeout_s=BESIDE, return_exceptions=True)
        except self.gone:
            return []
        return [each for each in answers if each is not None and not isinstance(each, Exception)]


@dataclass
class Way:
    """The newest attempt at a request: its name there, and how far it is."""

    name: str
    call: int = 0
    seconds_left: float | None = None


class Remote(Queue):
    """The queue of one store's requests in front of the replicas."""

    def __init__(self, model: str, transport: Transport, max_queue: int) -> None:
        super().__init__(max_queue)
        self._model, self._transport = model, transport
        self._tasks, self._ways = dict[Generation, asyncio.Task[None]](), dict[Generation, Way]()

    @property
    def scheduler(self) -> Queue:
        """This queue, as a pipeline has one."""
        return self

    def retry_after(self) -> float:
        """The least that any request still takes."""
        seconds = [way.seconds_left for way in list(self._ways.values()) if way.seconds_left]
        return min(max(min(seconds, default=1.0), 1.0), LONGEST_RETRY)

    def seconds_left(self, generation: Generation) -> float | None:
        """What its replica told last."""
        return way.seconds_left if (way := self._ways.get(generation)) else None

    def preview(self, generation: Generation) -> list[PIL.Image.Image]:
        """Its replica's; none while a repetition is not as far as what was told already."""
        way, progress = self._ways.get(generation), generation.progress
        if way is None or progress is None or way.call < progress.call:
            return []
        return next(iter(self._transport.everywhere("look", way.name, "preview")), [])

    def unfinished(self, generation: Generation) -> Result | None:
        """Its replica's."""
        way = self._ways.get(generation)
        return next(iter(self._transport.everywhere("look", way.name, "unfinished")), None) if way else None

    def _start(self, generation: Generation, limit: Limit | None) -> None:
        """Send a request, with its seeds drawn. The limit is not sent along: every replica has the same."""
        assert isinstance(generation.asked, Request)
        generation.asked = drawn(generation.asked)
        self._tasks[generation] = asyncio.ensure_future(self._send(generation))

    async def _send(self, generation: Generation) -> None:
        try:
            await self._transport.anew(partial(self._attempt, generation))
        except Exception as error:
            generation.tell(error=error)

    async def _attempt(self, generation: Generation) -> None:
        """Have a replica make a request, under a new name: it may have another attempt at it still on its way."""
        way = self._ways[generation] = Way(uuid.uuid4().hex)
        options = Options(self._model, way.name, priority=generation.priority)
        told = self._transport.handle.options(stream=True).generate.remote(generation.asked, options)
        try:
            async for each in told:
                if isinstance(each, ClipskipError):
                    raise each
                way.call, way.seconds_left, before = each.call, each.seconds_left, generation.progress
                if before is None or each.call > before.call or each.results:
                    generation.state = each.state
                    generation.tell(Progress(each.call, each.calls, partial(self.preview, generation), each.results))
                if each.results:
                    return
            raise Closed("a replica ended without an answer")
        finally:
            told.cancel()

    def _let_go(self, generation: Generation) -> None:
        self._ways.pop(generation, None)
        self._tasks.pop(generation).cancel()


class Replicas(Stores):
    """Stores that are opened in other processes."""

    def __init__(self, stores: Iterable[Path], transport: Transport, max_queue: int) -> None:
        super().__init__(stores)
        self._transport, self._max_queue = transport, max_queue
        self._remotes: dict[str, Remote] = {}

    @asynccontextmanager
    async def use(self, asked: str | None = None) -> AsyncIterator[Remote]:
        """The queue of a store."""
        if (name := self.name(asked)) not in self._remotes:
            self._remotes[name] = Remote(name, self._transport, self._max_queue)
        yield self._remotes[name]

    async def ask(self, asked: str | None, question: Callable[..., T], *about: Any) -> T:
        """Ask any replica."""
        name, handle = self.name(asked), self._transport.handle

        async def attempt() -> T:
            if isinstance(answer := await handle.ask.remote(name, question, *about), ClipskipError):
                raise answer
            return answer  # type: ignore[no-any-return]

        return await self._transport.anew(attempt)

    def is_open(self, name: str) -> bool:
        """Whether any replica was asked for it."""
        return name in self._remotes

    def trouble(self) -> str | None:
        """As here, or that there is no replica."""
        return super().trouble() or (None if self._transport.running() else "no replica is running")

    async def figures(self, own: bytes) -> bytes:
        """Every replica's with its name as a label."""
        texts = dict(await asyncio.to_thread(self._transport.everywhere, "figures"))
        registry = CollectorRegistry(auto_describe=False)
        registry.register(Together({"": own, **texts}))
        return generate_latest(registry)

    def close(self) -> None:
        """End what is on its way."""
        while self._remotes:
            self._remotes.popitem()[1].close()


class Together(Collector):
    """Figures of several processes; each has its process's name as the label `replica`, but for ""."""

    def __init__(self, texts: Mapping[str, bytes]) -> None:
        self._families: dict[str, Metric] = {}
        for replica, text in texts.items():
            label = {"replica": replica} if replica else {}
            for each in text_string_to_metric_families(text.decode()):
                family = self._families.setdefault(each.name, Metric(each.name, each.documentation, each.type))
                family.samples += [sample._replace(labels={**sample.labels, **label}) for sample in each.samples]

    def collect(self) -> Iterable[Metric]:
        """All of them, each family once."""
        return self._families.values()
