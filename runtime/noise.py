"""Seeded noise, equal to what PyTorch's generators draw: one generator per image.

Knows nothing of samplers and requests; an image's first draw is its latents, the following ones its step noise.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Words = npt.NDArray[np.uint64]
Shape = Sequence[int]
Interval = tuple[int, int, float, float, Floats]  # place and depth in a Brownian tree, both ends, the increment

DECIMALS = 6  # of noise levels in a Brownian tree
KEPT = 75  # of its draws: three ways down to that, for the first of an interval is drawn before the last one's is read
BLOCK = 16  # normals that PyTorch's CPU generator makes at once
LARGEST_SEED = 2**64 - 1
_32, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


class Noise(Protocol):
    """Normal numbers that belong to one image."""

    @property
    def normal(self) -> Callable[..., Floats]:
        """Standard normals of a shape: the next draw of a generator, or what a tree has between two noise levels."""


class CpuNoise:
    """`torch.randn` on a CPU generator, within 5e-7, for draws of 16 numbers and more.

    Mersenne Twister 19937 seeded with the seed's low 32 bits, as PyTorch does; uniforms of 24 bits; the Box-Muller
    transform in blocks of 16, where the first eight uniforms of a block give radii and the last eight give angles.
    """

    def __init__(self, seed: int) -> None:
        self._twister = np.random.RandomState(seed & 0xFFFFFFFF)

    def seed(self, seed: int) -> None:
        """Start anew, as a new generator would, which takes as long to make as a draw: numpy asks for entropy first."""
        self._twister.seed(seed & 0xFFFFFFFF)

    def normal(self, shape: Shape) -> Floats:
        count = math.prod(shape)
        if count < BLOCK:
            raise ValueError(f"a draw of {count} numbers: PyTorch draws fewer than {BLOCK} in another way")
        uniforms = self._uniforms(count)
        whole = count - count % BLOCK
        normals = np.empty(count, np.float32)
        normals[:whole] = _blocks(uniforms[:whole])
        if whole != count:  # the last 16 are drawn anew, whatever was there
            normals[-BLOCK:] = _blocks(self._uniforms(BLOCK))
        return normals.reshape(shape)

    def _uniforms(self, count: int) -> Floats:
        words = self._twister.randint(0, 2**32, count, dtype=np.uint32)
        return (words & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)


def _blocks(uniforms: Floats) -> Floats:
    u = uniforms.reshape(-1, 2, BLOCK // 2)
    radius = np.sqrt(-2 * np.log(1 - u[:, 0]))
    angle = np.float32(2 * np.pi) * u[:, 1]
    normals = np.empty_like(u)
    np.multiply(radius, np.cos(angle), out=normals[:, 0])
    np.multiply(radius, np.sin(angle), out=normals[:, 1])
    return normals.reshape(-1)


class NvNoise:
    """`torch.randn` on a CUDA generator, as long as one draw fits into the GPU's grid.

    Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): the key is the seed, the counter
    is (draw, 0, position, 0), and each number is the first of a Box-Muller pair.
    """

    def __init__(self, seed: int) -> None:
        self.seed(seed)

    def seed(self, seed: int) -> None:
        """Start anew."""
        self._key = (seed & 0xFFFFFFFF, seed >> 32)
        self._draw = 0

    def normal(self, shape: Shape) -> Floats:
        x, y = _philox(self._draw, math.prod(shape), self._key)
        self._draw += 1
        unit = np.float32(2**-32)
        turn = unit * np.float32(2 * np.pi)
        u = x * np.float64(unit) + unit / 2  # float64 from rounded constants: A1111's own result to the last bit
        v = y * np.float64(turn) + turn / 2
        normals = np.sqrt(-2 * np.log(u)) * np.sin(v)
        return np.asarray(normals, np.float32).reshape(shape)


def _philox(draw: int, count: int, key: tuple[int, int]) -> tuple[Words, Words]:
    """The first two of each counter's four words after ten rounds, for the positions 0..count-1.

    All in place: new arrays of this size are new pages of memory, which take longer than the arithmetic.
    """
    a, c = np.full(count, draw, np.uint64), np.arange(count, dtype=np.uint64)
    b, d, left, right = np.zeros((4, count), np.uint64)
    for i in range(10):
        np.multiply(a, np.uint64(0xD2511F53), out=left)
        np.multiply(c, np.uint64(0xCD9E8D57), out=right)
        for high, low, product, bump in ((a, b, right, key[0] + i * 0x9E3779B9), (c, d, left, key[1] + i * 0xBB67AE85)):
            np.right_shift(product, _32, out=high)
            high ^= low
            high ^= np.uint64(bump & 0xFFFFFFFF)
            np.bitwise_and(product, _LOW, out=low)
    return a, b


SOURCES: dict[str, type[CpuNoise | NvNoise]] = {"cpu": CpuNoise, "nv": NvNoise}


class BrownianTree:
    """Noise for the steps of an SDE: increments of one Brownian motion between the noise levels `low` and `high`.

    Equal to torchsde 0.2.6's BrownianTree in A1111: the motion is known over the whole interval, then at the middle
    of it and of each half, to six decimals; each node draws from a generator of its own, seeded by numpy's SeedSequence
    from the seed and the node's place. So the same interval has the same noise in any order, and with any other images.
    """

    def __init__(self, seed: int, rng: str, low: float, high: float) -> None:
        self._seed, self._source = seed, SOURCES[rng](seed)
        self._low, self._high = _decimals(low), _decimals(high)
        self._kept: OrderedDict[tuple[int, ...], Floats] = (
            OrderedDict()
        )  # draws; those of the last interval are the next one's

    def normal(self, shape: Shape, s: float, t: float) -> Floats:
        """The increment from level s down to level t, divided by its standard deviation."""
        low, high = (min(max(_decimals(level), self._low), self._high) for level in (t, s))
        if low == high:
            return np.zeros(shape, np.float32)
        whole = self._draw(shape) * math.sqrt(self._high - self._low)
        parts = self._between(low, high, (0, 0, self._low, self._high, whole))
        return np.asarray(-sum(parts, np.float32(0)) / np.sqrt(np.float32(s) - np.float32(t)), np.float32)

    def _between(self, low: float, high: float, interval: Interval) -> Iterator[Floats]:
        """The increments of the largest intervals of the tree that lie side by side from low to high."""
        place, depth, start, end, w = interval
        if low == start and high == end:
            yield w
            return
        middle = round((start + end) / 2, DECIMALS)
        first, second = middle - start, end - middle
        share = 1 / (end - start)
        left = first * w * share + math.sqrt(first * second * share) * self._draw(w.shape, place, depth)
        if low < middle:
            yield from self._between(low, min(high, middle), (2 * place, depth + 1, start, middle, left))
        if high > middle:
            yield from self._between(max(low, middle), high, (2 * place + 1, depth + 1, middle, end, w - left))

    def _draw(self, shape: Shape, *node: int) -> Floats:
        """The normals of a node, (place, depth) in the tree, or of the whole interval."""
        if node not in self._kept:
            words = np.random.SeedSequence(self._seed, spawn_key=node, pool_size=24).generate_state(1)
            self._source.seed(int(words[0]))
            self._kept[node] = self._source.normal(shape)
        self._kept.move_to_end(node)
        if len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return self._kept[node]


def _decimals(level: float) -> float:
    """A level as A1111 gives it to torchsde, in float32, to as many decimals as that tells apart."""
    return round(float(np.float32(level)), DECIMALS)


def initial(seed: int, shape: Shape, rng: str, subseed: int | None, strength: float) -> tuple[Floats, Noise]:
    """An image's first noise, of unit variance and [4, h, w], and the generator that its step noise continues from.

    `rng` is "cpu" or "nv". With a `strength` above 0 the noise lies that far on the way to the subseed's (A1111's
    variations). The step noise is the seed's at every strength, so an ancestral sampler at strength 1 does not give
    the subseed's picture; the others do.
    """
    source = SOURCES[rng]
    noise = source(seed)
    first = noise.normal(shape)
    if strength and subseed is not None:
        first = slerp(strength, first, source(subseed).normal(shape))
    return first, noise


def slerp(t: float, low: Floats, high: Floats) -> Floats:
    """From `low` (t = 0) to `high` (t = 1) along an arc, for each column of each channel by itself, as A1111 does."""
    lengths = np.linalg.norm(low, axis=1, keepdims=True) * np.linalg.norm(high, axis=1, keepdims=True)
    cosine = np.sum(low * high, axis=1, keepdims=True) / lengths
    if cosine.mean() > 0.9995:  # one and the same noise: there is no arc
        return low
    omega = np.arccos(cosine)
    mixed = (np.sin((1 - t) * omega) * low + np.sin(t * omega) * high) / np.sin(omega)
    return np.asarray(mixed, np.float32)


def image_seeds(seed: int, subseed: int | None, strength: float, count: int) -> list[tuple[int, int | None]]:
    """Seed and subseed of each image of a batch: the seed counts up or, for variations of one seed, the subseed does.

    Counting wraps around at 2^64.
    """
    if strength and subseed is not None:
        return [(seed, (subseed + i) & LARGEST_SEED) for i in range(count)]
    return [((seed + i) & LARGEST_SEED, subseed) for i in range(count)]
