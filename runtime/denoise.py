"""The denoising loop: feeds the step engine one row of every image's table per call, until all tables are done.

Images of one batch may differ in everything but their size and context length. Knows nothing of prompts or pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from clipskip.engines.shapes import SLOTS

from .backends import Array, Engine, Loop
from .context import Conditioning
from .noise import Noise
from .samplers import Row

Feeds = dict[str, Array]


@dataclass(frozen=True)
class Image:
    """One picture to be made: its sampler's rows, what it looks at, its first latents ([4,h,w]) and its noise."""

    table: Sequence[Row]
    conditioning: Conditioning
    latents: Array
    noise: Noise

    @property
    def network_rows(self) -> int:
        """Rows of the U-Net's batch that this image takes."""
        return len(self.conditioning.parts)


@dataclass(frozen=True)
class Snapshot:
    """The state after `call` of `calls`.

    `latents()` waits for the device and gives the latents [B,4,h,w] as they are now, in the order of the images; it may
    be called until the next snapshot is asked for.
    """

    call: int
    calls: int
    latents: Callable[[], Array]


def denoise(engine: Engine, images: Sequence[Image]) -> Iterator[Snapshot]:
    """Run all tables to their end, yielding after each call; the last snapshot has the finished latents.

    The images with the longest tables come first in the batch, so that those still running are always its head.
    """
    order = sorted(range(len(images)), key=lambda i: -len(images[i].table))
    batch = _Batch(engine, [images[i] for i in order])
    back = np.argsort(order)
    calls = len(images[order[0]].table)
    try:
        for call in range(calls):
            batch.run(call)
            yield Snapshot(call + 1, calls, lambda call=call: batch.latents(call + 1)[back])  # type: ignore[misc]
        batch.fetch()
    finally:
        batch.close()


class _Batch:
    """The state of one batch: on the host between loops, in a loop's buffers while the shapes stay the same."""

    def __init__(self, engine: Engine, images: Sequence[Image]) -> None:
        self._engine = engine
        self._images = images
        self._state = np.stack([_first_state(image) for image in images])
        self._loop: Loop | None = None
        self._active = 0
        self._selection: tuple[int, ...] = ()

    def run(self, call: int) -> None:
        active = [image for image in self._images if call < len(image.table)]
        selection = tuple(part.variant(call) for image in active for part in image.conditioning.parts)
        feeds = _row_feeds(active, call)
        if self._loop is None or len(active) != self._active:
            self._rebind(active, {**_fixed_feeds(active), "context": _context(active, call), **feeds})
            feeds = {}
        elif selection != self._selection:
            feeds["context"] = _context(active, call)
        self._selection = selection
        assert self._loop is not None
        self._loop.run(feeds)

    def latents(self, call: int) -> Array:
        """Slot 0 of every image after `call` calls, at unit variance."""
        self.fetch()
        sigmas = [image.table[call].sigma if call < len(image.table) else 0.0 for image in self._images]
        scale = np.array([1 / math.sqrt(sigma**2 + 1) for sigma in sigmas], dtype=np.float32)
        return np.asarray(self._state[:, 0] * scale[:, None, None, None])

    def close(self) -> None:
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    def fetch(self) -> None:
        """Bring the state of the images that run to the host."""
        if self._loop is not None:
            self._state[: self._active] = self._loop.read("state")

    def _rebind(self, active: Sequence[Image], feeds: Feeds) -> None:
        """Bind a loop for the images still running; those that have just ended keep their state on the host."""
        self.fetch()
        self.close()
        self._active = len(active)
        feeds = {"state": self._state[: self._active], "noise": np.zeros_like(self._state[: self._active, 0]), **feeds}
        self._loop = self._engine.loop(feeds, {"next_state": "state"})


def _first_state(image: Image) -> Array:
    state = np.zeros((SLOTS, *image.latents.shape), dtype=np.float32)
    state[0] = image.latents
    return state


def _fixed_feeds(images: Sequence[Image]) -> Feeds:
    """What does not change while the same images run: which row looks at which image, guidance, and no mask."""
    weights = [(i, part.weight) for i, image in enumerate(images) for part in image.conditioning.parts]
    mix = np.zeros((len(images), len(weights)), dtype=np.float32)
    for row, (i, weight) in enumerate(weights):
        mix[i, row] = weight
    channels, height, width = images[0].latents.shape
    return {
        "rows": np.array([i for i, _ in weights], dtype=np.int64),
        "mix": mix,
        "mask": np.ones((len(images), 1, height, width), dtype=np.float32),
        "known": np.zeros((len(images), channels, height, width), dtype=np.float32),
        "pull": np.zeros((len(images), 2), dtype=np.float32),
    }


def _context(images: Sequence[Image], call: int) -> Array:
    return np.stack([part.contexts[part.variant(call)] for image in images for part in image.conditioning.parts])


def _row_feeds(images: Sequence[Image], call: int) -> Feeds:
    """What changes with every call: one row of each image's table, and noise when one of them asks for it."""
    rows = [image.table[call] for image in images]
    feeds = {
        "timestep": np.array([row.timestep for row in rows], dtype=np.float32),
        "c_in": np.array([row.c_in for row in rows], dtype=np.float32),
        "update": np.array([row.update for row in rows], dtype=np.float32),
    }
    if any(row.noisy for row in rows):
        feeds["noise"] = np.stack([_noise(image, row) for image, row in zip(images, rows, strict=True)])
    return feeds


def _noise(image: Image, row: Row) -> Array:
    return image.noise.normal(image.latents.shape) if row.noisy else np.zeros_like(image.latents)
