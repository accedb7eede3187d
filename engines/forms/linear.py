"""Patterns of linear layers: biases in the kernel that follows, many layers of one input as one. Channels are last."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from clipskip.engines.forms import origins
from clipskip.engines.forms.rewrite import MICROSOFT, Replaced, constant, like, made_by, readers

SPLIT_GELU = {2560, 5120, 6144, 10240, 12288}  # widths that CUDA's BiasSplitGelu was compiled for
FEW, MANY = 4, 32  # layers of one input: fewer gain little, and CUDA's Split gives at most so many in one kernel


def with_bias(value: ir.Value | None) -> tuple[ir.Value, ir.Value] | None:
    """What the value is without a bias that is added last, and that bias."""
    add = made_by(value, "Add")
    if add is None or value is None or readers(value) != 1:
        return None
    for rows, bias in (add.inputs, add.inputs[::-1]):
        stored = constant(bias)
        if rows is not None and bias is not None and stored is not None and stored.ndim == 1:
            return rows, bias
    return None


def biased(total: ir.Node) -> tuple[ir.Value | None, ir.Value | None, list[ir.Value]]:
    """Both values of a sum, and the bias that one of them brings along, if one does."""
    for value, other in (total.inputs, total.inputs[::-1]):
        if (found := with_bias(value)) is not None:
            return found[0], other, [found[1]]
    return total.inputs[0], total.inputs[1], []


def bias_add(node: ir.Node, tape: Tape) -> Replaced:
    """A bias and another value added to what a MatMul gives."""
    rows, other, bias = biased(node) if node.op_type == "Add" else (None, None, [])
    if not bias or made_by(rows, "MatMul") is None or constant(other) is not None:
        return None
    return {node.outputs[0]: tape.op("BiasAdd", [rows, *bias, other], domain=MICROSOFT, name=node.name)}


def bias_split_gelu(node: ir.Node, tape: Tape) -> Replaced:
    """A bias, then one half times the GELU of the other."""
    gelu = next((gate for value in node.inputs if (gate := made_by(value, "Gelu"))), None)
    split = made_by(gelu.inputs[0], "Split") if node.op_type == "Mul" and gelu is not None else None
    rows, bias = with_bias(split.inputs[0] if split is not None else None) or (None, None)
    if gelu is None or split is None or bias is None or bias.const_value is None:
        return None
    halves = [value for value in (*node.inputs, *gelu.inputs) if value in split.outputs]
    exact = gelu.attributes.get_string("approximate", "none") == "none"
    if halves != list(split.outputs) or not exact or bias.const_value.size not in SPLIT_GELU:
        return None
    return {node.outputs[0]: tape.op("BiasSplitGelu", [rows, bias], domain=MICROSOFT, name=node.name)}


def side_by_side(node: ir.Node, tape: Tape) -> Replaced:
    """Many linear layers of one input and one width, their biases added elsewhere: one layer, and its result split."""
    settings = _settings(node) if node.op_type in ("Gemm", "MatMul") else None
    if settings is None or (source := node.inputs[0]) is None:
        return None
    layers = [use.node for use in source.uses() if use.idx == 0 and use.node.op_type == node.op_type]
    group = [layer for layer in layers if readers(layer.outputs[0]) and _settings(layer) == settings][:MANY]
    if len(group) < FEW or group[0] is not node:
        return None
    weights = [layer.inputs[1] for layer in group if layer.inputs[1] is not None]
    tensors = [weight.const_value for weight in weights if weight.const_value is not None]
    axis = 0 if node.attributes.get_int("transB", 0) else 1
    shape = list(tensors[0].shape.numpy())
    shape[axis] *= len(group)
    packed = ir.LazyTensor(
        lambda: ir.tensor(np.concatenate([tensor.numpy() for tensor in tensors], axis)),
        tensors[0].dtype, ir.Shape(shape),
    )  # fmt: skip
    weight = tape.initializer(packed, f"{node.outputs[0].name}.{len(group)} layers")
    origins.mark(weight, origins.side_by_side(weights, axis))
    rows = like(node, tape, [source, weight])
    parts = tape.op_multi_out("Split", [rows], {"axis": -1, "num_outputs": len(group)}, num_outputs=len(group))
    return {layer.outputs[0]: part for layer, part in zip(group, parts, strict=True)}


def _settings(layer: ir.Node) -> tuple[object, ...] | None:
    """The shape of a layer's weight and its attributes; none for one that is computed or that adds a bias."""
    weight = layer.inputs[1].const_value if len(layer.inputs) == 2 and layer.inputs[1] is not None else None
    return (weight.shape, *sorted(map(str, layer.attributes.values()))) if weight is not None else None
