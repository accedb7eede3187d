"""Who runs together: images wait, join the batch of their kind, and leave when they are done.

There is no thread of its own: of the threads that wait for an image, one at a time runs the next call of the network,
for everybody's images. Knows nothing of requests and pictures.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack

from clipskip.engines.manifest import STEP
from clipskip.engines.shapes import LATENT

from .backends import Array
from .batch import Batch, Image
from .engine_cache import EngineCache
from .errors import Busy, DeviceOutOfMemory
from .resolve import Limits


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
        self._waiting: list[Image] = []
        self._leaving: list[Image] = []
        self._batches: list[Batch] = []  # the one whose turn it is first
        self._failures: dict[Image, BaseException] = {}
        self._held = ExitStack()  # the step engine, while there are batches
        self._changed = threading.Condition()
        self._busy = False  # somebody touches the batches
        self._visitors = 0  # threads that want to, and not for a call of the network

    def add(self, images: Sequence[Image]) -> None:
        """Let images join as soon as there is room."""
        with self._changed:
            self._waiting += images

    def remove(self, images: Sequence[Image]) -> None:
        """Forget images, now or after the call that runs; never waits, for Python's garbage collector may call it."""
        with self._changed:
            self._leaving += images
            if not self._busy:
                self._forget()

    def advance(self, images: Sequence[Image], calls: int) -> None:
        """Return when these images have had more than `calls` calls in all, after running the network if need be.

        Raises what went wrong with one of them.
        """

        def moved() -> bool:
            return sum(image.call for image in images) > calls or any(image in self._failures for image in images)

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

    def latents(self, images: Sequence[Image]) -> list[Array]:
        """The images [4,h,w] as they are between two calls of the network, at unit variance."""
        with self._changed:
            self._visitors += 1
            while self._busy:
                self._changed.wait()
            self._visitors -= 1
            self._busy = True
        try:
            places = {image: batch for batch in self._batches for image in batch.images}
            return [places[image].latents(image) if image in places else image.unit(image.latents) for image in images]
        finally:
            self._end_turn()

    def _end_turn(self) -> None:
        with self._changed:
            self._forget()
            self._busy = False
            self._changed.notify_all()

    def _forget(self) -> None:
        """Take those who leave out of wherever they are."""
        leaving, self._leaving = set(self._leaving), []
        self._waiting = [image for image in self._waiting if image not in leaving]
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
        batch = next((batch for batch in self._batches if batch.images), None)
        if batch is None:
            return
        self._batches.remove(batch)
        self._batches.append(batch)
        images = batch.images
        try:
            batch.step()
        except BaseException as error:
            late = [image for image in images if not image.call]
            if isinstance(error, DeviceOutOfMemory) and not batch.fits and 0 < len(late) < len(images):
                for image in late:  # those who run go on without those who wanted to join
                    batch.remove(image)
                images = late
            else:
                self._close(batch)
            interrupted = Busy("the call of the network that this image shared was interrupted", hint="try again")
            self._failures |= dict.fromkeys(images, error if isinstance(error, Exception) else interrupted)
            if not isinstance(error, Exception):
                raise

    def _admit(self) -> None:
        """First come, first served; an image waits for room in the batch of its kind, or for a free loop.

        Nobody overtakes one that waits for a loop, or batches that never end would keep it waiting for ever.
        """
        with self._changed:
            waiting = list(self._waiting)
        for image in waiting:
            lengths = [batch.chunks for batch in self._batches if batch.size == image.latents.shape]
            length = image.chunks
            if self._share_lengths:
                length = min((each for each in lengths if each % length == 0), default=length)
            kind = image.latents.shape, length
            batch = next((batch for batch in self._batches if (batch.size, batch.chunks) == kind), None)
            if batch is None and len(self._batches) == self._loops:
                return
            if batch is not None and not self._has_room(batch, image):
                continue
            with self._changed:
                self._waiting.remove(image)
            try:
                if not self._batches:  # the first batch opens the step engine, the last one to close gives it back
                    self._engine = self._held.enter_context(self._engines.use(STEP))
                if batch is None:
                    self._batches.append(Batch(self._engine, image, exact_rows=self._exact_rows))
                (batch or self._batches[-1]).add(image)
            except Exception as error:
                self._failures[image] = error

    def _has_room(self, batch: Batch, image: Image) -> bool:
        most = min(self._limits.batch, self._limits.pixels // (batch.size[1] * batch.size[2] * LATENT**2))
        rows = sum(len(each.rows) for each in (*batch.images, image))
        return len(batch.images) < most and rows <= self._limits.rows

    def _close(self, batch: Batch) -> None:
        batch.close()
        self._batches.remove(batch)
        if not self._batches:
            self._held.close()
