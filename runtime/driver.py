"""Who runs together: images wait, join the batch of their kind, and leave when they are done.

There is no thread of its own: of the threads that wait for an image, one at a time runs the next call of the network,
for everybody's images. Knows nothing of requests and pictures.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from clipskip.engines.manifest import STEP
from clipskip.engines.shapes import LATENT
from clipskip.engines.variants import Mix

from .backends import Array, Engine
from .batch import Batch, Image
from .engine_cache import EngineCache
from .errors import BackendUnavailable, Busy, DeviceOutOfMemory, RequestError
from .resolve import UNBOUNDED, Limits

PATIENCE = 50  # calls of the network after which a kind of image that has no batch comes first


@dataclass
class Tally:
    """What was done so far: calls of the network, images and slots in them, images that joined, seconds in calls.

    `since`: when the call that runs began, by `time.perf_counter`.
    """

    calls: int = 0
    images: int = 0
    slots: int = 0
    joins: int = 0
    seconds: float = 0.0
    since: float | None = None


@dataclass(frozen=True)
class _Place:
    """An image's place in the line: its priority, and the calls made when it came, or its kind's batch ended."""

    priority: int
    since: int


class Driver:
    """The one driver of a pipeline's step engine. Thread-safe.

    `loops`: how many batches, of different kinds, may be open at once. `exact_rows`: see Batch. `share_lengths`: let
    images join a batch of longer contexts, by repeating their own more often than alone: within 1/255, not bit-equal.
    """

    def __init__(
        self, engines: EngineCache, limits: Limits, *, loops: int, exact_rows: bool, share_lengths: bool
    ) -> None:
        self._engines, self._limits, self._loops = engines, limits, loops
        self._exact_rows, self._share_lengths = exact_rows, share_lengths
        self.tally = Tally()
        self._waiting: dict[Image, _Place] = {}
        self._leaving: list[Image] = []
        self._batches: list[Batch] = []
        self._failures: dict[Image, BaseException] = {}
        self._held: dict[Mix, tuple[Engine, ExitStack]] = {}  # the step engines of the batches
        self._changed = threading.Condition()
        self._turn = 0.0  # of the batch that ran last
        self._busy = False  # somebody touches the batches
        self._visitors = 0  # threads that want to, and not for a call of the network
        self._process = os.getpid()

    def add(self, images: Sequence[Image], priority: int = 0) -> None:
        """Let images join as soon as there is room, those of a higher priority before others.

        Where lengths are shared the longest come first.
        """
        with self._changed:
            longest = sorted(images, key=lambda image: -image.chunks) if self._share_lengths else images
            for image in sorted(longest, key=lambda image: image.mix.key):  # each set of LoRAs is opened once
                self._waiting[image] = _Place(priority, self.tally.calls)

    def remove(self, images: Sequence[Image]) -> None:
        """Forget images, now or after the call that runs; never waits, for Python's garbage collector may call it."""
        with self._changed:
            for image in images:
                image.forgotten = True
            self._leaving += images
            if self._busy:
                return
            self._busy = True
        self._end_turn()

    def advance(self, images: Sequence[Image], calls: int) -> None:
        """Return when these images have had more than `calls` calls in all, after running the network if need be.

        Or when one of them was removed. Raises what went wrong with one of them.
        """

        def moved() -> bool:
            ended = (image.forgotten or image in self._failures for image in images)
            return sum(image.call for image in images) > calls or any(ended)

        self.check_process()
        while True:
            with self._changed:
                while (self._busy or self._visitors) and not moved():
                    self._changed.wait()
                for image in images:
                    if image in self._failures:
                        raise self._failures[image]
                if moved():
                    return
                self._busy = True
            try:
                self._step()
            finally:
                self._end_turn()

    def failure(self, images: Sequence[Image]) -> BaseException | None:
        """What went wrong with one of these images, if anything."""
        with self._changed:
            return next((self._failures[image] for image in images if image in self._failures), None)

    @property
    def waiting(self) -> int:
        """How many images wait for a slot."""
        return len(self._waiting)

    def latents(self, images: Sequence[Image]) -> list[Array]:
        """What the last call took for the finished latents [4,h,w] of each image; the noise before its first call.

        RequestError for one that was given up half-way.
        """
        self.check_process()
        with self._changed:
            self._visitors += 1
            try:
                while self._busy:
                    self._changed.wait()
                self._busy = True
            finally:
                self._visitors -= 1
                self._changed.notify_all()
        try:
            return [self._look(image) for image in images]
        finally:
            self._end_turn()

    def _look(self, image: Image) -> Array:
        batch = next((batch for batch in self._batches if image in batch.images), None)
        if batch is None:
            if image.call and not image.done:
                raise RequestError("this picture was given up half-way: there is nothing to look at")
            return image.resting
        try:
            return batch.latents(image)
        except BaseException as error:
            self._lose(batch, batch.images, error)
            raise

    def check_process(self) -> None:
        """BackendUnavailable after a fork, which takes along that somebody is busy, but not the thread that is."""
        if os.getpid() != self._process:
            hint = 'open the pipeline after the fork, or use multiprocessing\'s "spawn"'
            raise BackendUnavailable("this process was forked after the pipeline was opened", hint=hint)

    def _end_turn(self) -> None:
        """Whoever wanted to leave meanwhile is taken out; then it is another thread's turn."""
        try:
            self._forget()
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
        if self._leaving:  # they came while others were taken out
            self.remove(())

    def _forget(self) -> None:
        """Take those who leave out of wherever they are."""
        leaving: set[Image] = set()
        while self._leaving:  # one by one: the garbage collector may add some at any moment
            leaving.add(self._leaving.pop())
        with self._changed:
            for image in leaving:
                self._waiting.pop(image, None)
        for batch in list(self._batches):
            for image in leaving.intersection(batch.images):
                batch.remove(image)
            if not batch.images:
                self._close(batch)
        for image in leaving:
            self._failures.pop(image, None)

    def _step(self) -> None:
        """Let images join, then run the network for the batch whose turn it is; its failure is its images'."""
        self._admit()
        running = (batch for batch in self._batches if batch.images)
        batch = min(running, key=lambda batch: batch.turn, default=None)
        if batch is None:
            return
        images, self._turn = batch.images, batch.turn
        batch.turn += 1 / len(images)  # who has many comes more often: calls for few cost as much, or nearly
        self.tally.since = start = time.perf_counter()
        try:
            batch.step()
            self.tally.seconds += time.perf_counter() - start
            self.tally.calls += 1
            self.tally.images += len(images)
            self.tally.slots += batch.slots
        except BaseException as error:
            late = [image for image in images if not image.call]
            cannot_grow = isinstance(error, DeviceOutOfMemory) and not batch.fits and 0 < len(late) < len(images)
            self._lose(batch, late if cannot_grow else images, error)
            if not isinstance(error, Exception):
                raise
        finally:
            self.tally.since = None

    def _fail(self, images: Sequence[Image], error: BaseException, interrupted: str) -> None:
        """What went wrong is these images'; an interrupt is somebody else's, and `interrupted` says what it ended."""
        cause = error if isinstance(error, Exception) else Busy(interrupted, hint="try again")
        self._failures |= dict.fromkeys(images, cause)

    def _lose(self, batch: Batch, images: Sequence[Image], error: BaseException) -> None:
        """Give up images of a batch, and the batch with the last of them."""
        self._fail(images, error, "the call of the network that this image shared was interrupted")
        if len(images) == len(batch.images):
            self._close(batch)
        else:
            for image in images:
                batch.remove(image)

    def _line(self) -> list[Image]:
        """Those who wait, the highest priority first, and then as they came.

        In front of all stands a kind that has waited for a batch of its own for PATIENCE calls: nobody else opens or
        prolongs a batch then, so that one ends. So a kind waits at most for PATIENCE calls, and then, for itself and
        each kind in front of it, as many as there are loops times the longest table.
        """
        open_kinds = {(batch.mix, batch.size, batch.chunks) for batch in self._batches}

        def rank(item: tuple[Image, _Place]) -> tuple[bool, int, int]:
            image, place = item
            alone = (image.mix, image.latents.shape, image.chunks) not in open_kinds
            patient = not (alone and self.tally.calls - place.since >= PATIENCE)
            return patient, -place.priority if patient else place.since, place.since

        with self._changed:
            return [image for image, _ in sorted(self._waiting.items(), key=rank)]

    def _admit(self) -> None:
        """In the order of the line; an image waits for room in the batch of its kind, or for a free loop.

        Nobody overtakes one that waits for a loop, or batches that never end would keep it waiting for ever; but who
        is done no later than the batch that he joins keeps nobody waiting.
        """
        full, stuck = set(), False
        for image in self._line():
            alike = [batch for batch in self._batches if (batch.mix, batch.size) == (image.mix, image.latents.shape)]
            lengths = [batch.chunks for batch in alike]
            length = image.chunks
            if self._share_lengths:
                length = min((each for each in lengths if each % length == 0), default=length)
            kind = image.mix, image.latents.shape, length
            batch = next((batch for batch in alike if batch.chunks == length), None)
            open_ones = sum(bool(mix.key) for mix in self._held)
            no_engine = image.mix.key and image.mix not in self._held and open_ones >= self._engines.lora_engines
            if batch is None and (stuck or len(self._batches) == self._loops or no_engine):
                stuck = True
                continue
            prolongs = stuck and batch is not None and image.left > max((each.left for each in batch.images), default=0)
            if prolongs:
                continue
            if batch is not None and (kind in full or not self._has_room(batch, image)):
                full.add(kind)
                continue
            with self._changed:
                self._waiting.pop(image)
            try:
                if batch is None:
                    batch = Batch(self._hold(image.mix), image, exact_rows=self._exact_rows)
                    batch.turn = self._turn
                    self._batches.append(batch)
                batch.add(image)
                self.tally.joins += 1
            except BaseException as error:
                self._release(image.mix)
                self._fail([image], error, "the engine was being opened when that was interrupted")
                if not isinstance(error, Exception):
                    raise

    def _hold(self, mix: Mix) -> Engine:
        """The step engine; the first batch of its kind opens it, the last one to close gives it back."""
        if mix not in self._held:
            held = ExitStack()
            self._held[mix] = held.enter_context(self._engines.use(STEP, mix)), held
        return self._held[mix][0]

    def _has_room(self, batch: Batch, image: Image) -> bool:
        axes = self._held[batch.mix][0].artefact.axes  # one with LoRAs in its weights may have been built for less
        slots, places = (axes.get(axis, UNBOUNDED).maximum for axis in ("B", "N"))
        most = min(slots, self._limits.batch, self._limits.pixels // (batch.size[1] * batch.size[2] * LATENT**2))
        rows = sum(len(each.rows) for each in (*batch.images, image))
        return len(batch.images) < most and rows <= min(places, self._limits.rows)

    def _close(self, batch: Batch) -> None:
        """Give the loop back; who waits for another batch of this kind stands behind the other kinds."""
        self._batches.remove(batch)
        with self._changed:
            for image, place in self._waiting.items():
                if (image.mix, image.latents.shape, image.chunks) == (batch.mix, batch.size, batch.chunks):
                    self._waiting[image] = _Place(place.priority, self.tally.calls)
        try:
            batch.close()
        finally:
            self._release(batch.mix)

    def _release(self, mix: Mix) -> None:
        """Give a step engine back that no batch runs on."""
        if mix in self._held and not any(batch.mix == mix for batch in self._batches):
            self._held.pop(mix)[1].close()
