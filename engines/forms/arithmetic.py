"""Patterns of what surrounds a network: the choice of rows and the guidance's sum. Knows nothing of devices."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.tape import Tape

from clipskip.engines.forms.layout import swapped
from clipskip.engines.forms.rewrite import Replaced, constant, made_by, numbers

LAST_FIRST = [2, 0, 1]


def gather(node: ir.Node, tape: Tape) -> Replaced:
    """GatherND by one index each: Gather, which needs no kernel for offsets."""
    index = made_by(node.inputs[1], "Unsqueeze") if node.op_type == "GatherND" else None
    axes = constant(index.inputs[1]) if index is not None else None
    if index is None or axes is None or axes.tolist() != [-1] or node.attributes.get_int("batch_dims", 0):
        return None
    return {node.outputs[0]: tape.op("Gather", [node.inputs[0], index.inputs[0]], {"axis": 0}, name=node.name)}


def mixture(node: ir.Node, tape: Tape) -> Replaced:
    """Predictions [N, ..] by weights [B, 2, N], summed over N; turning weights first would copy those of one image."""
    axes = constant(node.inputs[1]) if node.op_type == "ReduceSum" and len(node.inputs) == 2 else None
    choice = made_by(node.inputs[0], "Where")
    product = made_by(choice.inputs[2] if choice is not None else node.inputs[0], "Mul")
    if axes is None or axes.tolist() != [0] or product is None:
        return None
    weights, prediction = map(_unspread, product.inputs)
    if swapped(weights, LAST_FIRST) is None or prediction is product.inputs[1]:
        return None
    values = _turned(node.inputs[0], node, tape)
    total = tape.op("ReduceSum", [values, numbers([2], node, tape)], node.attributes, name=node.name)
    return {node.outputs[0]: total}


def _unspread(value: ir.Value | None) -> ir.Value | None:
    """The value without axes of length 1 that were put into it."""
    while (spread := made_by(value, "Unsqueeze")) is not None:
        value = spread.inputs[0]
    return value


def _turned(value: ir.Value | None, node: ir.Node, tape: Tape) -> ir.Value | None:
    """Arithmetic on weights [N, B, 2, ..] and predictions [N, 1, 1, ..] anew, with their first axis as the third."""
    maker = value.producer() if value is not None else None
    if maker is None or maker.op_type not in ("Equal", "Mul", "Unsqueeze", "Where"):
        return value
    if maker.op_type != "Unsqueeze":
        return tape.op(maker.op_type, [_turned(each, node, tape) for each in maker.inputs], maker.attributes)
    source = _unspread(value)
    weights = swapped(source, LAST_FIRST)
    inputs = [source, numbers([0, 1], node, tape)] if weights is None else [weights, numbers([3, 4, 5], node, tape)]
    return tape.op("Unsqueeze", inputs)
