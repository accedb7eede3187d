"""What an artefact says of its inputs and outputs, held against arrays: before any device sees them.

Knows nothing of any library.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from clipskip.engines.manifest import Artefact, Dim, Port
from clipskip.engines.shapes import Shape, sized
from clipskip.errors import RequestError

from . import Array


def bind(artefact: Artefact, feeds: Mapping[str, Array], build_command: str) -> dict[str, int]:
    """The size of each dynamic axis. RequestError for arrays that do not fit, with the ranges and how to widen them."""
    wanted = {port.name: port for port in artefact.inputs}
    if wanted.keys() != feeds.keys():
        odd = ", ".join(sorted(wanted.keys() ^ feeds.keys()))
        raise RequestError(f"{artefact.role}: the inputs do not match: {odd}", field=odd)
    sizes: dict[str, int] = {}
    for port in artefact.inputs:
        _check_type(str(artefact.role), port, feeds[port.name])
        for axis, size in _named(str(artefact.role), port, feeds[port.name].shape):
            if sizes.setdefault(axis, size) != size:
                raise RequestError(f"{artefact.role}: axis {axis} is {sizes[axis]} and {size} at once", field=port.name)
    _check_ranges(artefact, sizes, build_command)
    return sizes


def shapes(artefact: Artefact, sizes: Mapping[str, int]) -> dict[str, Shape]:
    """The shape of every input and output at these sizes of the axes."""
    return {port.name: sized(port, sizes) for port in (*artefact.inputs, *artefact.outputs)}


def _check_type(role: str, port: Port, array: Array) -> None:
    if array.dtype != port.dtype or array.ndim != len(port.shape):
        found = f"{array.dtype}[{', '.join(map(str, array.shape))}]"
        wanted = f"{port.dtype}[{', '.join(map(str, port.shape))}]"
        raise RequestError(f"{role}: {port.name} must be {wanted}, is {found}", field=port.name)


def _named(role: str, port: Port, shape: Shape) -> Iterator[tuple[str, int]]:
    for dimension, size in zip(port.shape, shape, strict=True):
        if isinstance(dimension, Dim) and size % dimension.factor == 0:
            yield dimension.axis, size // dimension.factor
        elif dimension != size:
            raise RequestError(f"{role}: {port.name} has {size} where {dimension} is needed", field=port.name)


def _check_ranges(artefact: Artefact, sizes: Mapping[str, int], build_command: str) -> None:
    outside = [axis for axis, size in sizes.items() if not _fits(artefact, axis, size)]
    if outside:
        found = ", ".join(f"{axis} = {sizes[axis]}" for axis in outside)
        ranges = ", ".join(f"{name} {each.minimum} to {each.maximum}" for name, each in artefact.axes.items())
        raise RequestError(
            f"{artefact.role} was not built for {found}; it takes {ranges} (h and w count 8 pixels, T tokens)",
            field=outside[0],
            hint=f"{build_command} with wider --sizes, --max-batch or --max-chunks",
        )


def _fits(artefact: Artefact, axis: str, size: int) -> bool:
    limit = artefact.axes.get(axis)
    return size > 0 and (limit is None or limit.minimum <= size <= limit.maximum)
