"""A form in ONNX's own operators, which every provider has: how a form's numbers are checked where its kernels are not.

What CUDA's kernels sum in single precision is in single precision here; what they round to half in between is rounded.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir.tape import Tape

from clipskip.engines.forms.layout import FIRST, LAST
from clipskip.engines.forms.rewrite import MICROSOFT, Pattern, numbers, rewrite

Replaced = Mapping[ir.Value, ir.Value] | None


def expand(model: ir.Model) -> ir.Model:
    """The same model, in place, without operators of ONNX Runtime's own."""
    rewrite(model, EXPANSIONS)
    return model


def conv(node: ir.Node, tape: Tape) -> Replaced:
    if (node.op_type, node.domain) != ("NhwcConv", MICROSOFT):
        return None
    picture, kernel = (tape.op("Transpose", [value], {"perm": FIRST}) for value in node.inputs[:2])
    value = tape.op("Conv", [picture, kernel, *node.inputs[2:]], node.attributes, name=node.name)
    return {node.outputs[0]: tape.op("Transpose", [value], {"perm": LAST})}


def added_group_norm(node: ir.Node, tape: Tape) -> Replaced:
    if (node.op_type, node.domain) != ("SkipGroupNorm", MICROSOFT):
        return None
    picture, *weights = node.inputs[:3]
    total = _sum([picture, *node.inputs[3:]], tape)
    value = tape.op("GroupNorm", [total, *weights], node.attributes, domain=MICROSOFT, name=node.name)
    return dict(zip(node.outputs, (value, total), strict=False))


def group_norm(node: ir.Node, tape: Tape) -> Replaced:
    if (node.op_type, node.domain) != ("GroupNorm", MICROSOFT):
        return None
    source, scale, shift = node.inputs
    settings = {"num_groups": node.attributes["groups"].as_int(), "epsilon": node.attributes["epsilon"].as_float()}
    picture = tape.op("Transpose", [_wide(source, tape)], {"perm": FIRST})
    value = tape.op("GroupNormalization", [picture, scale, shift], settings, name=node.name)
    if node.attributes["activation"].as_int():
        value = tape.op("Mul", [value, tape.op("Sigmoid", [value])])
    return {node.outputs[0]: _as(node.outputs[0], tape.op("Transpose", [value], {"perm": LAST}), tape)}


def added_layer_norm(node: ir.Node, tape: Tape) -> Replaced:
    if (node.op_type, node.domain) != ("SkipLayerNormalization", MICROSOFT):
        return None
    rows, skip, scale, shift, *bias = node.inputs
    total = _sum([rows, *bias, skip], tape)
    inputs = [_wide(value, tape) for value in (total, scale, shift)]
    value = tape.op("LayerNormalization", inputs, node.attributes, name=node.name)
    results = {node.outputs[0]: _as(node.outputs[0], value, tape)}
    return results | {output: total for output in node.outputs[3:]}


def bias_add(node: ir.Node, tape: Tape) -> Replaced:
    if (node.op_type, node.domain) != ("BiasAdd", MICROSOFT):
        return None
    return {node.outputs[0]: _sum(node.inputs, tape)}


def bias_split_gelu(node: ir.Node, tape: Tape) -> Replaced:
    if (node.op_type, node.domain) != ("BiasSplitGelu", MICROSOFT):
        return None
    rows = _wide(_sum(node.inputs, tape), tape)
    half, gate = tape.op_multi_out("Split", [rows], {"axis": -1, "num_outputs": 2}, num_outputs=2)
    value = tape.op("Mul", [half, tape.op("Gelu", [gate])], name=node.name)
    return {node.outputs[0]: _as(node.outputs[0], value, tape)}


def _sum(values, tape: Tape) -> ir.Value:
    first, *others = [value for value in values if value is not None]
    for value in others:
        first = tape.op("Add", [first, value])
    return first


def _wide(value, tape: Tape) -> ir.Value:
    return tape.op("Cast", [value], {"to": ir.DataType.FLOAT})


def _as(old: ir.Value, new: ir.Value, tape: Tape) -> ir.Value:
    """In the number type of the value that it stands for."""
    return tape.op("Cast", [new], {"to": old.dtype})


EXPANSIONS: tuple[Pattern, ...] = (conv, added_group_norm, group_norm, added_layer_norm, bias_add, bias_split_gelu)
