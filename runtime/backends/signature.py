"""What an artefact says of its inputs and outputs, held against the engine and, before a device sees them, arrays.

Knows nothing of any library.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from clipskip.engines.manifest import Artefact, AxisRange, Dim, Role
from clipskip.engines.shapes import Shape
from clipskip.errors import EngineIncompatible, RequestError

from . import Array

Signature = Mapping[str, tuple[str, int]]  # the type, in numpy's words, and the rank of each input or output


def check_ports(artefact: Artefact, path: Path, role: str, inputs: Signature, outputs: Signature) -> None:
    """EngineIncompatible for an engine that says it is of another role, or whose inputs or outputs are other ones."""
    odd, other = dict[str, None](), False
    with suppress(ValueError):  # whatever else it is called says nothing
        other = Role.parse(role) != artefact.role
    for ports, own in ((artefact.inputs, inputs), (artefact.outputs, outputs)):
        wanted = {port.name: (port.dtype, len(port.shape)) for port in ports}
        odd |= dict(sorted((name, None) for name in wanted.keys() | own.keys() if wanted.get(name) != own.get(name)))
    if other or odd:
        what = f"it differs in {', '.join(odd)}" if odd else f"it is {role}"
        raise EngineIncompatible(f"{path.name} is no {artefact.role} as the manifest has it: {what}", path=path)


def bind(artefact: Artefact, feeds: Mapping[str, Array], build_command: str | None) -> dict[str, int]:
    """The size of each dynamic axis. RequestError for arrays that do not fit, with the ranges and how to widen them."""
    ports, role = {port.name: port for port in artefact.inputs}, str(artefact.role)
    if ports.keys() != feeds.keys():
        odd = ", ".join(sorted(ports.keys() ^ feeds.keys()))
        raise RequestError(f"{role}: the inputs do not match: {odd}", field=odd)
    sizes: dict[str, int] = {}
    for port in artefact.inputs:
        array = feeds[port.name]
        if array.dtype != port.dtype or array.ndim != len(port.shape):
            given = f"{array.dtype}[{', '.join(map(str, array.shape))}]"
            needed = f"{port.dtype}[{', '.join(map(str, port.shape))}]"
            raise RequestError(f"{role}: {port.name} must be {needed}, is {given}", field=port.name)
        for dimension, size in zip(port.shape, array.shape, strict=True):
            if not isinstance(dimension, Dim) or size % dimension.factor:
                if dimension != size:
                    raise RequestError(f"{role}: {port.name} has {size} where {dimension} is needed", field=port.name)
            elif sizes.setdefault(dimension.axis, size // dimension.factor) != size // dimension.factor:
                axis = dimension.axis
                message = f"{role}: axis {axis} is {sizes[axis]} and {size // dimension.factor} at once"
                raise RequestError(message, field=port.name)
    limits = {axis: artefact.axes.get(axis, AxisRange(1, size, size)) for axis, size in sizes.items()}
    outside = [axis for axis, limit in limits.items() if not limit.minimum <= sizes[axis] <= limit.maximum]
    if outside:
        needed = ", ".join(f"{axis} = {sizes[axis]}" for axis in outside)
        ranges = ", ".join(f"{name} {axis.minimum} to {axis.maximum}" for name, axis in artefact.axes.items())
        raise RequestError(
            f"{role} was not built for {needed}; it takes {ranges} (h and w count 8 pixels, T tokens)",
            field=outside[0],
            hint=build_command and f"{build_command} with wider --sizes, --max-batch or --max-chunks",
        )
    return sizes


def shapes(artefact: Artefact, sizes: Mapping[str, int]) -> dict[str, Shape]:
    """The shape of every input and output at these sizes of the axes."""
    return {port.name: port.sized(sizes) for port in (*artefact.inputs, *artefact.outputs)}


def check_like(old: Array, name: str, new: Array) -> None:
    """ValueError for new values of another type or shape: once buffers are bound, neither can change."""
    if (new.shape, new.dtype) != (old.shape, old.dtype):
        raise ValueError(f"{name}: {new.dtype}{list(new.shape)} in a loop for {old.shape}")
