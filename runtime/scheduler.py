"""Requests of many in front of one pipeline, for asyncio: who may wait, for how long, and what runs beside what.

Three threads serve all requests: one encodes texts, one runs the open batch, one decodes (previews as well),
so that no stage waits for another's work. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import PIL.Image

from .errors import Busy, ClipskipError, Closed, DeadlineExceeded, RequestError
from .fields import FRACTION, WHOLE
from .making import Making
from .result import Progress, Result

if TYPE_CHECKING:
    from .ledger import Ledger
    from .pipeline import Pipeline, Work
    from .request import Request
    from .resolve import Resolved

    Limit: TypeAlias = Callable[[Resolved], None]  # refuses by raising

LONGEST_RETRY = 60.0  # seconds that a client is told to wait at most
STAGES = ("text", "step", "decode")


@dataclass
class Done:
    """What a scheduler did so far: seconds and runs by stage, pictures by clip skip, requests by how they ended."""

    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    runs: Counter[str] = field(default_factory=Counter)
    pictures: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)


class Generation:
    """One request on its way: `await` it for the Result, `async for` its Progress, `cancel()` it.

    Belongs to the event loop that it was made in. `id` names it in logs. `state`: queued, running, decoding, or ended.
    """

    def __init__(self, scheduler: Queue, asked: str | Request | Ledger, priority: int) -> None:
        self.id, self.priority, self.asked = uuid.uuid4().hex, priority, asked
        self.state = "queued"
        self.work: Work | None = None
        self.following: set[Making] = set()  # pictures between two passes
        self.progress: Progress | None = None
        try:
            self._scheduler, self._loop = scheduler, asyncio.get_running_loop()
        except RuntimeError:
            hint = "call it within a coroutine, such as the one that asyncio.run is given; pipe(...) needs none"
            raise RequestError("generate is for asyncio, and no event loop is running here", hint=hint) from None
        self.future: asyncio.Future[Result] = self._loop.create_future()
        self.future.add_done_callback(self._ended)
        self._moved = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None

    def __await__(self) -> Generator[object, None, Result]:
        return self.future.__await__()

    async def __aiter__(self) -> AsyncIterator[Progress]:
        """The newest progress whenever the pictures moved on; the last, of an ended request at once, has the result."""
        seen = None
        try:
            while seen is None or not seen.results:
                if not self.ended:
                    await self._moved.wait()
                    self._moved.clear()
                if self.ended:
                    self.future.result()  # raises what went wrong
                if self.progress is not None and self.progress is not seen:
                    seen = self.progress
                    yield seen
        finally:
            self.cancel()

    def cancel(self) -> None:
        """End the work within a call of the network; nothing happens where it has ended."""
        self.future.cancel()

    @property
    def ended(self) -> bool:
        return self.future.done()

    @property
    def seconds_left(self) -> float | None:
        """About how long it takes from now on, at the speed so far; None before anything was made."""
        return self._scheduler.seconds_left(self)

    @property
    def position(self) -> int:
        """How many requests are in front of this one before its first call; 0 once it runs."""
        return self._scheduler.position(self)

    async def preview(self) -> list[PIL.Image.Image]:
        """What the last call took for the finished pictures: noise before the first one; none when it has ended."""
        if self.ended:
            return []
        return await self._loop.run_in_executor(self._scheduler.stage("decode"), self._scheduler.preview, self)

    async def unfinished(self) -> Result | None:
        """A result of the pictures as they are now; None before their first call, and when it has ended."""
        return await self._loop.run_in_executor(self._scheduler.stage("decode"), self._scheduler.unfinished, self)

    def limit_time(self, seconds: float, error: DeadlineExceeded) -> None:
        """Give up after so many seconds, even if a driver hangs."""
        self._alarm = self._loop.call_later(max(seconds, 0), self._set, None, error)

    def tell(self, progress: Progress | None = None, error: BaseException | None = None) -> None:
        """Hand on what happened, from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._set, progress, error)
        except RuntimeError:  # its event loop is closed: nobody listens
            self._scheduler.drop(self, "cancelled")

    def _set(self, progress: Progress | None, error: BaseException | None) -> None:
        if self.future.done():
            return
        if error is not None:
            self.future.set_exception(error)
        elif progress is not None:
            self.progress = progress
            if progress.results:
                self.future.set_result(progress.results[0])
        self._moved.set()

    def _ended(self, future: asyncio.Future[Result]) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        error = None if future.cancelled() else future.exception()  # looked at, also where nobody awaits it
        how = "cancelled" if future.cancelled() else getattr(error, "code", "bug") if error else "done"
        self._scheduler.drop(self, how)
        self._moved.set()


def late(seconds: float) -> DeadlineExceeded:
    """The error of a request that was given so much time."""
    return DeadlineExceeded(f"not done within {seconds:g} s", hint="give it more time, or ask for fewer steps")


class Queue(ABC):
    """A bounded queue in front of whatever makes the pictures. Thread-safe; `submit` is called in an event loop.

    `max_queue`: how many requests may wait for their first call.
    """

    def __init__(self, max_queue: int) -> None:
        self.done = Done()
        self._max_queue = max_queue
        self._stages = {name: ThreadPoolExecutor(1, f"clipskip-{name}") for name in STAGES}
        self._open: dict[Generation, None] = {}  # as they came
        self._lock = threading.RLock()
        self._closed = False

    def submit(
        self, asked: Request | Ledger, timeout: float | None = None, priority: int = 0, limit: Limit | None = None
    ) -> Generation:
        """Take a request; Busy where too many wait, RequestError for a wrong timeout or priority, or without asyncio.

        `limit` sees the request resolved, before anything is encoded.
        """
        if not -100 <= (priority := int(WHOLE.check("priority", priority))) <= 100:
            raise RequestError(f"priority must be -100..100, not {priority}", field="priority")
        seconds = None if timeout is None else float(FRACTION.check("timeout", timeout))
        with self._lock:
            if self._closed:
                raise Closed("this pipeline is closed", hint="open it again with clipskip.open(...)")
            if self.queued >= self._max_queue:
                busy = Busy(f"{self.queued} requests wait already", hint="try again later")
                busy.retry_after = self.retry_after()
                raise busy
            generation = Generation(self, asked, priority)
            self._open[generation] = None
        if seconds is not None:
            generation.limit_time(seconds, late(seconds))
        self._start(generation, limit)
        return generation

    def refused(self, asked: str | Request | Ledger, error: ClipskipError) -> Generation:
        """A request that ended before it was taken, with this error."""
        generation = Generation(self, asked, 0)
        generation.state = "ended"
        generation.future.set_exception(error)
        return generation

    @abstractmethod
    def _start(self, generation: Generation, limit: Limit | None) -> None:
        """Have a request made."""

    @abstractmethod
    def _let_go(self, generation: Generation) -> None:
        """End what is made for a request."""

    @abstractmethod
    def retry_after(self) -> float:
        """Seconds after which one of all requests should be done, at the speed of the calls so far."""

    @abstractmethod
    def seconds_left(self, generation: Generation) -> float | None:
        """About how long a request takes from now on."""

    @abstractmethod
    def preview(self, generation: Generation) -> list[PIL.Image.Image]:
        """The pictures of a request as they are now; in the thread that decodes."""

    @abstractmethod
    def unfinished(self, generation: Generation) -> Result | None:
        """The same as a result, with the request that they are of."""

    def stage(self, name: str) -> ThreadPoolExecutor:
        """The thread of a stage."""
        return self._stages[name]

    @property
    def queued(self) -> int:
        """How many requests wait for their first call."""
        return sum(each.state == "queued" for each in list(self._open))

    @property
    def running(self) -> int:
        """How many are beyond it."""
        return len(self._open) - self.queued

    def position(self, generation: Generation) -> int:
        """How many that wait come before this one."""
        if generation.state != "queued":
            return 0
        waiting = [each for each in list(self._open) if each.state == "queued"]
        earlier = waiting.index(generation) if generation in waiting else 0
        return sum(
            each.priority > generation.priority or (each.priority == generation.priority and place < earlier)
            for place, each in enumerate(waiting)
        )

    def drop(self, generation: Generation, how: str) -> None:
        """Forget one that ended, and what is made for it."""
        with self._lock:
            if generation not in self._open:
                return
            del self._open[generation]
            self.done.ended[how] += 1
            generation.state = "ended"
        self._let_go(generation)

    def close(self) -> None:
        """End everything that is on its way with Closed, and the threads. May be called twice."""
        with self._lock:
            self._closed = True
            left = list(self._open)
        for each in left:
            each.tell(error=Closed("the pipeline was closed while this request was on its way"))
            self.drop(each, "closed")
        for stage in self._stages.values():
            stage.shutdown()


class Scheduler(Queue):
    """The queue in front of the open batch of `pipe`."""

    def __init__(self, pipe: Pipeline, max_queue: int) -> None:
        super().__init__(max_queue)
        self._pipe, self._advancing = pipe, False

    def submit(
        self, asked: Request | Ledger, timeout: float | None = None, priority: int = 0, limit: Limit | None = None
    ) -> Generation:
        """As `Queue.submit`; BackendUnavailable after a fork, which took no thread along."""
        self._pipe.driver.check_process()
        return super().submit(asked, timeout, priority, limit)

    def retry_after(self) -> float:
        """Calls to come, times what one takes of a picture, shared by the requests."""
        tally, works = self._pipe.driver.tally, self._works()
        left = sum(work.calls - work.done for work in works)
        seconds = left * tally.seconds / max(tally.images, 1) / max(len(works), 1)
        return min(max(seconds, 1.0), LONGEST_RETRY)

    def seconds_left(self, generation: Generation) -> float | None:
        """Calls to come, times what one takes while batches take turns, and what those in front take."""
        tally, work = self._pipe.driver.tally, generation.work
        if not tally.calls or work is None:
            return None
        turns = max(1, len({each.image.latents.shape for other in self._works() for each in other.making}))
        own = max((each.calls - each.past - each.image.call for each in work.making), default=0)
        return own * turns * tally.seconds / tally.calls + self.position(generation) * self.retry_after()

    def _works(self) -> list[Work]:
        return [each.work for each in list(self._open) if each.work is not None]

    def preview(self, generation: Generation) -> list[PIL.Image.Image]:
        """What the last call took for the finished pictures, decoded."""
        if generation.work is None or generation.state == "ended":
            return []
        return self._pipe.previews([each.image for each in generation.work.making], generation.work.done)

    def unfinished(self, generation: Generation) -> Result | None:
        """With a note, and nothing of how long it took."""
        images, work = self.preview(generation), generation.work
        if not images or work is None:
            return None
        resolved, notes = work.resolved[0], ("interrupted: the pictures are not finished",)
        return Result(
            tuple(images), tuple(seed for seed, _ in resolved.seeds), resolved.request, notes, {}, {}, self._pipe.model
        )

    def _let_go(self, generation: Generation) -> None:
        if generation.work is not None:
            self._pipe.driver.remove([each.image for each in generation.work.making])

    def _start(self, generation: Generation, limit: Limit | None) -> None:
        self._submit("text", generation, partial(self._begin, generation, limit))

    def _submit(self, stage: str, generation: Generation | None, task: Callable[[], None]) -> None:
        """Have a stage's thread do something; what goes wrong is the request's."""

        def run() -> None:
            start = time.perf_counter()
            try:
                if generation is None or generation.state != "ended":
                    task()
            except BaseException as error:
                if generation is None:
                    raise
                generation.tell(error=error)
            finally:
                self.done.seconds[stage] += time.perf_counter() - start
                self.done.runs[stage] += 1

        with suppress(RuntimeError):  # it was closed meanwhile, and its requests were told
            self._stages[stage].submit(run)

    def _begin(self, generation: Generation, limit: Limit | None) -> None:
        """Check a request, encode its texts, and let its pictures wait for their slots."""
        resolved = self._pipe.check(generation.asked)
        if limit is not None:
            limit(resolved)
        work = self._pipe.begin([generation.asked], [resolved])
        with self._lock:  # it may have ended meanwhile
            generation.work = work
            if generation.state == "ended":
                return
            images = [each.image for each in work.making if not each.image.done]
            self._pipe.driver.add(images, generation.priority)
        self._follow(generation)  # some take no call at all
        self._go()

    def _go(self) -> None:
        """Have the batch advance, if nobody does it yet."""
        with self._lock:
            if not self._advancing:
                self._advancing = True
                self._submit("step", None, self._advance)

    def _advance(self) -> None:
        """Run the network while any picture is on its way; what goes wrong ends those whose call it was."""
        while live := self._live():
            images = [each.image for _, making in live for each in making]
            wrong: Exception | None = None
            try:
                self._pipe.driver.advance(images, sum(image.call for image in images))
            except Exception as error:
                wrong = error
            failures = [self._pipe.driver.failure([each.image for each in making]) for _, making in live]
            if any(failures) or any(generation.state == "ended" for generation, _ in live):
                wrong = None  # it is one request's, which may have left meanwhile
            for (generation, _), failure in zip(live, failures, strict=True):
                if failure := failure or wrong:
                    generation.tell(error=failure)
                    self.drop(generation, getattr(failure, "code", "bug"))
                else:
                    self._follow(generation)

    def _live(self) -> list[tuple[Generation, list[Making]]]:
        """The pictures that have calls to come, by request; none: whoever brings the next one starts `_advance`."""
        with self._lock:
            there = [(each, each.work) for each in self._open if each.work is not None]
            made = [
                (generation, [each for each in work.making if not each.image.done and each not in generation.following])
                for generation, work in there
            ]
            live = [(generation, making) for generation, making in made if making]
            self._advancing = bool(live)
            return live

    def _follow(self, generation: Generation) -> None:
        """Tell how far a request is, and pass on what had its calls: to the next pass, or to the decoder."""
        with self._lock:
            work = generation.work
            if work is None or generation.state in ("ended", "decoding"):
                return
            if done := work.done:
                generation.state = "running"
            generation.tell(Progress(done, work.calls, partial(self.preview, generation)))
            if generation.state == "ended":  # nobody listens
                return
            if all(each.image.done and not each.then for each in work.making):
                generation.state = "decoding"
                self._pipe.driver.remove([each.image for each in work.making])
                self._submit("decode", generation, partial(self._finish, generation, work))
            for each in work.making:
                if each.image.done and each.then and each not in generation.following:
                    generation.following.add(each)
                    self._submit("decode", generation, partial(self._enlarge, generation, each))

    def _enlarge(self, generation: Generation, making: Making) -> None:
        """Begin the next pass of a picture."""
        making.follow(self._pipe.driver, generation.priority)
        with self._lock:
            generation.following.discard(making)
            if generation.state == "ended":
                self._pipe.driver.remove([making.image])
        self._follow(generation)
        self._go()

    def _finish(self, generation: Generation, work: Work) -> None:
        results = self._pipe.finish(work)
        for result in results:
            skip = result.request.clip_skip  # a schedule is any of its user's words
            self.done.pictures["schedule" if isinstance(skip, str) else str(skip)] += len(result.images)
        generation.tell(Progress(work.calls, work.calls, lambda: list(results[0].images), results))
