"""Which parameter of the network an initializer holds, as it goes from one graph to the next. Needs onnx-ir."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from clipskip.engines.weights import Origin, Stored, Table

_KEY = "clipskip.origin"  # in a value's memory, which no file keeps


def of(value: ir.Value | None) -> Origin | None:
    """Where the value's numbers are from; None where that is no parameter."""
    origin: Origin | None = value.meta.get(_KEY) if value is not None else None
    return origin


def mark(value: ir.Value, origin: Origin | None) -> ir.Value:
    """The value, which from now on knows where it is from."""
    if origin is not None:
        value.meta[_KEY] = origin
    return value


def mark_all(model: ir.Model, table: Table) -> None:
    """Tell a graph that was just read what the table beside it says."""
    for name, stored in table.items():
        mark(model.graph.initializers[name], stored.origin)


def side_by_side(values: Sequence[ir.Value], axis: int) -> Origin | None:
    """That of weights of one shape put behind each other."""
    origins = [of(value) for value in values]
    if not any(origins) or any(origin and len(origin.pieces) > 1 for origin in origins):
        return None
    return Origin(tuple(origin.pieces[0] if origin else ("", ()) for origin in origins), axis)


def table(model: ir.Model) -> dict[str, Stored]:
    """Of all initializers that lie outside of the graph."""
    stored = {}
    for name, value in model.graph.initializers.items():
        if isinstance(tensor := value.const_value, ir.ExternalTensor):
            place = str(tensor.location), tensor.offset or 0, tensor.nbytes
            stored[name] = Stored(*place, str(tensor.dtype.numpy()), tensor.shape.numpy(), of(value))
    return stored
