"""Patterns of what surrounds a network: the choice of rows and the solver's sum. Knows nothing of devices."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.tape import Tape

from clipskip.engines.forms.rewrite import Replaced, constant, made_by, numbers


def gather(node: ir.Node, tape: Tape) -> Replaced:
    """GatherND by one index each: Gather, which needs no kernel for offsets."""
    index = made_by(node.inputs[1], "Unsqueeze") if node.op_type == "GatherND" else None
    axes = constant(index.inputs[1]) if index is not None else None
    if index is None or axes is None or axes.tolist() != [-1] or node.attributes.get_int("batch_dims", 0):
        return None
    return {node.outputs[0]: tape.op("Gather", [node.inputs[0], index.inputs[0]], {"axis": 0}, name=node.name)}


def solver(node: ir.Node, tape: Tape) -> Replaced:
    """The sum over slots as products and a sum: no matrix product that might round to TF32, none of Einsum's copies."""
    if node.op_type != "Einsum" or node.attributes["equation"].as_string() != "bij,bjchw->bichw":
        return None
    update, slots = node.inputs
    planes = tape.op("Unsqueeze", [update, numbers([3, 4, 5], node, tape)])
    products = tape.op("Mul", [planes, tape.op("Unsqueeze", [slots, numbers([1], node, tape)])])
    total = tape.op("ReduceSum", [products, numbers([2], node, tape)], {"keepdims": 0}, name=node.name)
    return {node.outputs[0]: total}
