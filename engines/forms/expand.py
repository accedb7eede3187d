"""A form in ONNX's own operators, which every provider has: how a form's numbers are checked where its kernels are not.

What CUDA's kernels sum in single precision is in single precision here; what they round to half in between is rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce

import onnx_ir as ir
from onnx_ir.tape import Tape

from clipskip.engines.forms.layout import FIRST, LAST
from clipskip.engines.forms.rewrite import MICROSOFT, Replaced, readers, rewrite

Values = Sequence[ir.Value | None]


def expand(model: ir.Model) -> None:
    """Put in place of each operator of ONNX Runtime's own what defines it, as far as the CUDA form has them."""
    rewrite(model, [expanded])


def expanded(node: ir.Node, tape: Tape) -> Replaced:
    """What defines the operator, in the operator's number type, and the sum that it may give beside."""
    define = DEFINITIONS.get(node.op_type) if node.domain == MICROSOFT else None
    if define is None or node.outputs[0].dtype is None:
        return None
    result, total = define(node, tape)
    result = tape.op("Cast", [result], {"to": node.outputs[0].dtype})
    return {node.outputs[0]: result} | dict.fromkeys((value for value in node.outputs[1:] if readers(value)), total)


def conv(node: ir.Node, tape: Tape) -> tuple[ir.Value, ir.Value]:
    picture, kernel = (tape.op("Transpose", [value], {"perm": FIRST}) for value in node.inputs[:2])
    value = tape.op("Conv", [picture, kernel, *node.inputs[2:]], node.attributes, name=node.name)
    return tape.op("Transpose", [value], {"perm": LAST}), value


def group_norm(node: ir.Node, tape: Tape) -> tuple[ir.Value, ir.Value]:
    picture, scale, shift, *added = node.inputs
    total = _sum([picture, *added], tape)
    settings = {"num_groups": node.attributes["groups"].as_int(), "epsilon": node.attributes["epsilon"].as_float()}
    first = tape.op("Transpose", [_single(total, tape)], {"perm": FIRST})
    value = tape.op("GroupNormalization", [first, scale, shift], settings, name=node.name)
    if node.attributes["activation"].as_int():
        value = tape.op("Mul", [value, tape.op("Sigmoid", [value])])
    return tape.op("Transpose", [value], {"perm": LAST}), total


def layer_norm(node: ir.Node, tape: Tape) -> tuple[ir.Value, ir.Value]:
    rows, skip, scale, shift, *bias = node.inputs
    total = _sum([rows, *bias, skip], tape)
    inputs = [_single(value, tape) for value in (total, scale, shift)]
    return tape.op("LayerNormalization", inputs, node.attributes, name=node.name), total


def bias_add(node: ir.Node, tape: Tape) -> tuple[ir.Value, ir.Value]:
    total = _sum(node.inputs, tape)
    return total, total


def bias_split_gelu(node: ir.Node, tape: Tape) -> tuple[ir.Value, ir.Value]:
    total = _sum(node.inputs, tape)
    halves = {"axis": -1, "num_outputs": 2}
    half, gate = tape.op_multi_out("Split", [_single(total, tape)], halves, num_outputs=2)
    return tape.op("Mul", [half, tape.op("Gelu", [gate])], name=node.name), total


def _sum(values: Values, tape: Tape) -> ir.Value:
    total = reduce(lambda total, value: tape.op("Add", [total, value]), values)
    assert total is not None
    return total


def _single(value: ir.Value | None, tape: Tape) -> ir.Value:
    return tape.op("Cast", [value], {"to": ir.DataType.FLOAT})


DEFINITIONS: Mapping[str, Callable[[ir.Node, Tape], tuple[ir.Value, ir.Value]]] = {
    "NhwcConv": conv,
    "GroupNorm": group_norm,
    "SkipGroupNorm": group_norm,
    "SkipLayerNormalization": layer_norm,
    "BiasAdd": bias_add,
    "BiasSplitGelu": bias_split_gelu,
}
