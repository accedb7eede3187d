"""Between latents and pictures: the decode and encode engines, and what may go wrong there. Knows no request."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, product
from typing import TypeAlias

import numpy as np
import PIL.Image

from clipskip.engines.manifest import DECODE, DECODE_TINY, ENCODE, Role
from clipskip.engines.shapes import LATENT

from .backends import Array, Engine
from .engine_cache import EngineCache
from .errors import DeviceOutOfMemory, NumericalError
from .recent import Recent
from .resolve import UNBOUNDED, Limits

DECODERS = {"vae": DECODE, "tiny": DECODE_TINY}  # by what a request calls them
GREY = 2**20  # bytes of latents that are kept of pictures without content
OVERLAP = 16  # latents that neighbouring tiles share
SMALLEST_TILE = 256 * 256  # pixels

Tile: TypeAlias = "tuple[slice, ...]"  # rows and columns


@dataclass(frozen=True)
class Vae:
    """The decoder and the encoder of a model.

    Pictures of one size share a call as far as `limits` allow. One of more than `tile_pixels` is made in tiles of at
    most so many pixels, which differ a little from the whole; None: never.
    """

    engines: EngineCache
    limits: Limits
    tile_pixels: int | None
    _grey: Recent[Array] = field(default_factory=lambda: Recent(GREY))

    def decode(self, latents: Sequence[Array], what: str, decoders: Sequence[str] = ()) -> list[PIL.Image.Image]:
        """The pictures of [4,h,w] latents, which `what` names. NaN and infinity are an error, never a black picture.

        `decoders`: that of each, by what a request calls it; by default the model's own.
        """
        if not all(np.isfinite(each).all() for each in latents):
            raise NumericalError(f"{what} are not finite", hint="try a lower cfg, or engines at fp32")
        pictures, chosen = list[Array](), [DECODERS[each] for each in decoders] or [DECODE] * len(latents)
        for (role, _), pairs in groupby(zip(chosen, latents, strict=True), key=_kind):
            with self.engines.use(role) as engine:
                pictures += self._decoded(engine, [each for _, each in pairs], what)
        return [PIL.Image.fromarray(picture) for picture in pictures]

    def encode(self, image: Array) -> tuple[Array, Array]:
        """Mean and standard deviation, [4,h,w] each, of the latents of a picture, uint8 [8h,8w,3]."""
        h, w = (side // LATENT for side in image.shape[:2])
        with self.engines.use(ENCODE) as engine:
            if not self.tiled(h, w):
                outputs = engine.run({"image": image[None]})
                return outputs["mean"][0], outputs["std"][0]
            tiles = ((tile, engine.run({"image": image[scaled(tile)][None]})) for tile in self._tiles(engine, h, w))
            pieces = ((tile, np.concatenate([made["mean"][0], made["std"][0]])) for tile, made in tiles)
            whole = blended((h, w, 8), OVERLAP, ((tile, piece.transpose(1, 2, 0)) for tile, piece in pieces))
        mean, std = np.split(whole.transpose(2, 0, 1), 2)
        return mean, std

    def mid_grey(self, height: int, width: int) -> Array:
        """The latents [4,h,w] of a picture without content, of this size in pixels."""
        if (latents := self._grey.get((height, width))) is None:
            latents, _ = self.encode(np.full((height, width, 3), 128, np.uint8))
            self._grey.put((height, width), latents, latents.nbytes)
        return latents

    def tiled(self, h: int, w: int) -> bool:
        """Whether a picture of so many latents is made in tiles."""
        return self.tile_pixels is not None and h * w * LATENT**2 > self.tile_pixels

    def _decoded(self, engine: Engine, latents: list[Array], what: str) -> Iterator[Array]:
        """Pictures of one size, uint8 [8h,8w,3]; by powers of two that have room, so that a GPU meets few shapes."""
        _, h, w = latents[0].shape
        fit = max(1, self.limits.pixels // (h * w * LATENT**2))
        most = min(self.limits.batch, fit, engine.artefact.axes.get("B", UNBOUNDED).maximum)
        while latents and not self.tiled(h, w):
            count = 1 << min(most, len(latents)).bit_length() - 1
            try:
                yield from _run(engine, np.stack(latents[:count]), what)
                latents = latents[count:]
            except DeviceOutOfMemory:
                if count == 1:
                    raise
                most = count // 2
        for each in latents:
            tiles = self._tiles(engine, h, w)
            pieces = ((scaled(tile), _run(engine, each[:, tile[0], tile[1]][None], what)[0]) for tile in tiles)
            yield blended((LATENT * h, LATENT * w, 3), LATENT * OVERLAP, pieces).round().astype(np.uint8)

    def _tiles(self, engine: Engine, h: int, w: int) -> Iterator[Tile]:
        """Tiles of one size that cover h times w latents: about squares, or longer where a side is short."""
        assert self.tile_pixels is not None
        area, axes = self.tile_pixels // LATENT**2, engine.artefact.axes
        rows = cuts(h, max(math.isqrt(area), area // w), axes.get("h", UNBOUNDED).minimum)
        columns = cuts(w, area // (rows[0].stop - rows[0].start), axes.get("w", UNBOUNDED).minimum)
        return product(rows, columns)


def blended(size: tuple[int, int, int], fade: int, pieces: Iterable[tuple[Tile, Array]]) -> Array:
    """A whole [height,width,channels] from tiles, each of which fades out over `fade` at its edges."""
    whole, weights = np.zeros(size, np.float32), np.zeros((*size[:2], 1), np.float32)
    for tile, piece in pieces:
        edges = (np.minimum(np.arange(n), np.arange(n)[::-1]) + 0.5 for n in piece.shape[:2])
        down, across = (np.minimum(edge / fade, 1).astype(np.float32) for edge in edges)
        weight = down[:, None, None] * across[None, :, None]
        whole[tile] += weight * piece
        weights[tile] += weight
    whole /= weights
    return whole


def cuts(length: int, most: int, least: int) -> list[slice]:
    """The fewest equal parts of at most `most` (but at least `least`) with OVERLAP in common that cover a length."""
    most = max(most, least, 2 * OVERLAP)
    count = 1 + max(0, math.ceil((length - most) / (most - OVERLAP)))
    part = max(least, math.ceil((length + (count - 1) * OVERLAP) / count))
    begins = (i * (length - part) // max(1, count - 1) for i in range(count))
    return [slice(begin, begin + part) for begin in begins]


def scaled(tile: Tile) -> Tile:
    """A tile of latents in pixels."""
    return tuple(slice(LATENT * side.start, LATENT * side.stop) for side in tile)


def _kind(pair: tuple[Role, Array]) -> tuple[Role, tuple[int, ...]]:
    """What may share a call: one decoder's pictures of one size."""
    return pair[0], pair[1].shape


def _run(engine: Engine, latents: Array, what: str) -> Array:
    outputs = engine.run({"latents": latents})
    if not outputs["finite"].all():
        raise NumericalError(f"the decoder's output for {what} is not finite", hint="try engines at fp32")
    return outputs["image"]
