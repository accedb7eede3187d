"""Where a graph's weights lie in its files, and which of the network's parameters each one holds. Reads no weight.

A graph keeps a parameter as its kernels want it: a linear layer's turned, a convolution's with its channels last,
several layers side by side. A table beside the graph says so, for whoever replaces weights without reading the graph.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipskip.engines.manifest import Artefact

Shape = tuple[int, ...]
Axes = tuple[int, ...]
SUFFIX = ".json"  # of the table, behind the stem of its graph


@dataclass(frozen=True)
class Origin:
    """Parameters ("unet.conv_in.weight"), each with its axes in this order, joined along `axis` in equal pieces.

    A piece that is no parameter has no name.
    """

    pieces: tuple[tuple[str, Axes], ...]
    axis: int = 0

    def transposed(self, order: Iterable[int]) -> Origin:
        """That of the weight with its axes in another order."""
        order = tuple(order)
        pieces = tuple((name, tuple(axes[place] for place in order) if name else ()) for name, axes in self.pieces)
        return Origin(pieces, order.index(self.axis))


@dataclass(frozen=True)
class Stored:
    """One weight: which file of the graph's, where in it, numpy's type, its shape; no parameter has no origin."""

    file: str
    offset: int
    nbytes: int
    dtype: str
    shape: Shape
    origin: Origin | None

    def parameters(self) -> dict[str, Shape]:
        """The shapes, in the network's own order of axes, of the parameters that it holds."""
        if self.origin is None:
            return {}
        shape = list(self.shape)
        shape[self.origin.axis] //= len(self.origin.pieces)
        pieces = {name: axes for name, axes in self.origin.pieces if name}
        return {name: tuple(shape[axes.index(axis)] for axis in range(len(axes))) for name, axes in pieces.items()}


Table = Mapping[str, Stored]  # by the name of the initializer


def dumps(table: Table) -> str:
    """The table as JSON that `loads` reads."""

    def packed(origin: Origin | None) -> object:
        return origin and {"of": origin.pieces, "axis": origin.axis}

    return json.dumps({
        name: [each.file, each.offset, each.nbytes, each.dtype, each.shape, packed(each.origin)]
        for name, each in table.items()
    })  # fmt: skip


def loads(text: str | bytes) -> dict[str, Stored]:
    """A table that was published with its graph, and verified with it."""

    def origin(*trees: Any) -> Origin | None:  # forms that were built long ago have none
        known = (tree for tree in trees if tree)
        return next((Origin(tuple((of, tuple(axes)) for of, axes in tree["of"]), tree["axis"]) for tree in known), None)

    return {
        name: Stored(file, offset, nbytes, dtype, tuple(shape), origin(*trees))
        for name, (file, offset, nbytes, dtype, shape, *trees) in json.loads(text).items()
    }


def table_path(artefact: Artefact, root: Path) -> Path | None:
    """The table of a graph in the store `root`; graphs that were exported long ago have none."""
    second = [root / record.path for record in artefact.files[1:2]]
    return second[0] if second and second[0].suffix == SUFFIX else None
