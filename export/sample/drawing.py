"""Draws and describes the training scenes, in processes that load no torch. Knows nothing of networks."""

from __future__ import annotations

import os
from collections.abc import Generator
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
from captions import Writer
from scenes import draw, random_scene
from words import Words

PICTURES, TOGETHER = 48_000, 64
CAPTIONS = 6


@dataclass(frozen=True)
class Drawn:
    """Pictures, uint8 [n, 128, 128, 3]; of several captions each, token ids [n, 6, 77] and classes [n, 6, 11]."""

    pictures: np.ndarray
    ids: np.ndarray
    labels: np.ndarray


def workers() -> Pool:
    """A process for each core, as copies of this one, so before torch is loaded here."""
    one_thread = ("TOKENIZERS_PARALLELISM", "false")
    return get_context("fork").Pool(len(os.sched_getaffinity(0)), os.environ.__setitem__, one_thread)


def drawings(tokenizer: Path, seed: int) -> Generator[Drawn, None, None]:
    """All parts of the training set as they are finished; drawing begins now, and ends when the iterator is closed."""
    pool = workers()
    parts = pool.imap_unordered(partial(drawn, tokenizer, seed), range(PICTURES // TOGETHER))

    def taken() -> Generator[Drawn, None, None]:
        with pool:
            yield from parts

    return taken()


def drawn(tokenizer: Path, seed: int, number: int) -> Drawn:
    """One part of the training set, by its number."""
    rng = np.random.default_rng((seed, number))
    scenes = [random_scene(rng) for _ in range(TOGETHER)]
    writer = Writer(rng)
    captions = [writer.caption(scene) for scene in scenes for _ in range(CAPTIONS)]
    ids = _words(tokenizer)([caption.text for caption in captions])
    labels = np.array([caption.labels() for caption in captions], np.uint8)
    pictures = np.stack([draw(scene, rng) for scene in scenes])
    return Drawn(pictures, *(each.reshape(TOGETHER, CAPTIONS, -1) for each in (ids.astype(np.int16), labels)))


@cache
def _words(folder: Path) -> Words:
    return Words(folder)
