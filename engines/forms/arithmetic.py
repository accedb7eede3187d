"""Patterns of what is computed around a network: the guidance's sum and the solver's, as products of matrices."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from clipskip.engines.forms.rewrite import constant, made_by, permutation


def solver(node: ir.Node, tape: Tape) -> Mapping[ir.Value, ir.Value] | None:
    """Einsum over slots: a product of matrices, without the copies that CUDA's Einsum makes."""
    if node.op_type != "Einsum" or node.attributes["equation"].as_string() != "bij,bjchw->bichw":
        return None
    update, slots = node.inputs
    rows = tape.op("Reshape", [slots, _shape([0, 0, -1], tape)])
    return {node.outputs[0]: _as_picture(tape.op("MatMul", [update, rows], name=node.name), 2, slots, tape)}


def mixture(node: ir.Node, tape: Tape) -> Mapping[ir.Value, ir.Value] | None:
    """Predictions times their weights, summed over the rows: a product of matrices as well."""
    product = made_by(node.inputs[0], "Mul") if node.op_type == "ReduceSum" else None
    if product is None or len(node.inputs) != 2 or (axes := constant(node.inputs[1])) is None or axes.tolist() != [0]:
        return None
    weights, prediction = product.inputs
    while (spread := made_by(weights, "Unsqueeze")) is not None:
        weights = spread.inputs[0]
    swap, single = made_by(weights, "Transpose"), made_by(prediction, "Unsqueeze")
    if swap is None or single is None or permutation(swap) != [1, 0] or single.inputs[0] is None:
        return None
    rows = tape.op("Reshape", [single.inputs[0], _shape([0, -1], tape)])
    return {node.outputs[0]: _as_picture(tape.op("MatMul", [swap.inputs[0], rows], name=node.name), 1, single.inputs[0], tape)}


def _as_picture(rows: ir.Value, kept: int, picture: ir.Value, tape: Tape) -> ir.Value:
    """The rows with the last axes of the picture: all but the first `kept`, which stay the rows' own."""
    shape = tape.op("Concat", [_shape([0] * kept, tape), tape.op("Shape", [picture], {"start": kept})], {"axis": 0})
    return tape.op("Reshape", [rows, shape])


def _shape(numbers: list[int], tape: Tape) -> ir.Value:
    return tape.op("Constant", [], {"value": ir.tensor(np.array(numbers, np.int64))})
