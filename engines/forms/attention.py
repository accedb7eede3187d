"""Patterns of attention. Knows nothing of which form wants them."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.tape import Tape

from clipskip.engines.forms.rewrite import Replaced, constant, like, made_by, permutation


def flat_attention(node: ir.Node, tape: Tape) -> Replaced:
    """Attention over [N, heads, T, width] between transposes: over [N, T, heads * width], told the number of heads."""
    swap = made_by(node.inputs[0], "Transpose") if node.op_type == "Reshape" else None
    attention = made_by(swap.inputs[0], "Attention") if swap is not None else None
    rows = [_rows(value) for value in attention.inputs[:3]] if attention is not None else [None]
    if swap is None or attention is None or None in rows or permutation(swap) != [0, 2, 1, 3]:
        return None
    (query, heads), (key, kv_heads), (value, _) = (row for row in rows if row is not None)
    flat = like(attention, tape, [query, key, value], q_num_heads=heads, kv_num_heads=kv_heads)
    return {node.outputs[0]: flat}


def _rows(value: ir.Value | None) -> tuple[ir.Value, int] | None:
    """What was split into heads, and how many they are: Reshape to [N, T, heads, width], then Transpose."""
    swap = made_by(value, "Transpose")
    if swap is None or permutation(swap) != [0, 2, 1, 3]:
        return None
    if (split := made_by(swap.inputs[0], "Reshape")) is None or (source := split.inputs[0]) is None:
        return None
    shape = constant(split.inputs[1])
    if shape is None and (joined := made_by(split.inputs[1], "Concat")) is not None and len(joined.inputs) == 4:
        heads = constant(joined.inputs[2])
        return (source, int(heads.item())) if heads is not None else None
    return (source, int(shape[2])) if shape is not None else None
