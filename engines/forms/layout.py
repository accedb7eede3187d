"""Patterns that put channels last, as CUDA's kernels for pictures want them: [N, h, w, C]. Knows nothing of devices.

Each new node stands between two transpositions; these meet, and what meets cancels. A tensor with its channels last is
called by its own name and `.nhwc`, weights of a convolution `.ohwi`.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.tape import Tape

from clipskip.engines.forms import origins
from clipskip.engines.forms.rewrite import MICROSOFT, Replaced, constant, derived, made_by, permutation

LAST, FIRST = [0, 2, 3, 1], [0, 3, 1, 2]  # the permutations that put channels last and back behind the batch
ALIKE = {"Add", "Cast", "Clip", "Div", "Mul", "Round", "Sigmoid", "Sub"}  # value by value, whatever the layout


def swapped(value: ir.Value | None, order: list[int]) -> ir.Value | None:
    """What a transposition of this order makes the value from, where one does."""
    swap = made_by(value, "Transpose")
    return swap.inputs[0] if swap is not None and permutation(swap) == order else None


def last(value: ir.Value, tape: Tape) -> ir.Value:
    """The value with its channels last."""
    return swapped(value, FIRST) or tape.op("Transpose", [value], {"perm": LAST})


def first(value: ir.Value, old: ir.Value, tape: Tape) -> ir.Value:
    """A new value with its channels last, as the one that it stands for has them."""
    value.name, value.type = f"{old.name}.nhwc", old.type
    return tape.op("Transpose", [value], {"perm": FIRST})


def nhwc_conv(node: ir.Node, tape: Tape) -> Replaced:
    """A convolution of pictures: NhwcConv, which wants its weights' input channels last as well."""
    kernel = node.inputs[1] if node.op_type == "Conv" else None
    stored = kernel.const_value if kernel is not None else None
    if kernel is None or stored is None or len(stored.shape) != 4 or (picture := node.inputs[0]) is None:
        return None
    last_kernel = derived(kernel, "ohwi", tape, lambda array: array.transpose(LAST), stored.dtype)
    if (origin := origins.of(kernel)) is not None:
        origins.mark(last_kernel, origin.transposed(LAST))
    inputs = [last(picture, tape), last_kernel, *node.inputs[2:]]
    conv = tape.op("NhwcConv", inputs, node.attributes, domain=MICROSOFT, name=node.name)
    return {node.outputs[0]: first(conv, node.outputs[0], tape)}


def value_by_value(node: ir.Node, tape: Tape) -> Replaced:
    """Arithmetic on pictures whose channels were put back first: done before that."""
    if node.op_type not in ALIKE or not any(swapped(value, FIRST) for value in node.inputs):
        return None
    stored = [constant(value) for value in node.inputs]
    if any(array is not None and array.size > 1 for array in stored):
        return None
    inputs = [
        value if value is None or array is not None else last(value, tape)
        for value, array in zip(node.inputs, stored, strict=True)
    ]
    value = tape.op(node.op_type, inputs, node.attributes, name=node.name)
    return {node.outputs[0]: first(value, node.outputs[0], tape)}


def joined_channels(node: ir.Node, tape: Tape) -> Replaced:
    """Pictures put behind each other by their channels."""
    pictures = [swapped(value, FIRST) for value in node.inputs] if node.op_type == "Concat" else [None]
    if None in pictures or node.attributes["axis"].as_int() != 1:
        return None
    value = tape.op("Concat", pictures, {"axis": 3}, name=node.name)
    return {node.outputs[0]: first(value, node.outputs[0], tape)}


def resized(node: ir.Node, tape: Tape) -> Replaced:
    """A picture enlarged by stored factors, or to a size joined of its own first two lengths and of the new ones."""
    picture = swapped(node.inputs[0], FIRST) if node.op_type == "Resize" and "axes" not in node.attributes else None
    if picture is None:
        return None
    factors, size = constant(node.inputs[-1]), made_by(node.inputs[-1], "Concat")
    if factors is not None:
        target = tape.initializer(ir.tensor(factors[LAST]), f"{node.outputs[0].name}.scales")
    elif size is not None and made_by(size.inputs[0], "Shape") is not None and len(size.inputs) == 2:
        batch, channels = (tape.op("Shape", [picture], {"start": axis, "end": axis + 1}) for axis in (0, 3))
        target = tape.op("Concat", [batch, size.inputs[1], channels], {"axis": 0})
    else:
        return None
    value = tape.op("Resize", [picture, *node.inputs[1:-1], target], node.attributes, name=node.name)
    return {node.outputs[0]: first(value, node.outputs[0], tape)}


def size(node: ir.Node, tape: Tape) -> Replaced:
    """Height or width of a picture."""
    picture = swapped(node.inputs[0], FIRST) if node.op_type == "Shape" else None
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", 4)
    if picture is None or not 2 <= start < end <= 4:
        return None
    return {node.outputs[0]: tape.op("Shape", [picture], {"start": start - 1, "end": end - 1}, name=node.name)}


def no_transposition(node: ir.Node, tape: Tape) -> Replaced:
    """Channels put first, then last again."""
    value = swapped(node.outputs[0], LAST) if node.op_type == "Transpose" else None
    source = swapped(value, FIRST)
    return {node.outputs[0]: source} if source is not None and not node.outputs[0].is_graph_output() else None


def row_of_pixels(value: ir.Value | None) -> ir.Node | None:
    """The node that laid a picture's pixels in a row, if one gives the value: a Reshape to three lengths."""
    flat = made_by(value, "Reshape")
    stored, joined = (constant(flat.inputs[1]), made_by(flat.inputs[1], "Concat")) if flat is not None else (None, None)
    lengths = stored.size if stored is not None else len(joined.inputs) if joined is not None else 0
    return flat if lengths == 3 else None


def rows_of_picture(node: ir.Node, tape: Tape) -> Replaced:
    """[N, C, h, w] as rows [N, h * w, C]: with its channels last a picture is that already."""
    flat = row_of_pixels(swapped(node.outputs[0], [0, 2, 1])) if node.op_type == "Transpose" else None
    picture, shape = (swapped(flat.inputs[0], FIRST), made_by(flat.inputs[1], "Concat")) if flat else (None, None)
    if picture is None or shape is None:
        return None
    target = tape.op("Concat", [shape.inputs[axis] for axis in (0, 2, 1)], shape.attributes)
    return {node.outputs[0]: tape.op("Reshape", [picture, target], name=node.name)}


def picture_of_rows(node: ir.Node, tape: Tape) -> Replaced:
    """Rows [N, h * w, C] made [N, C, h, w] again: with its channels last, then put first."""
    rows = swapped(node.inputs[0], [0, 2, 1]) if node.op_type == "Reshape" else None
    shape = made_by(node.inputs[1], "Concat") if rows is not None else None
    if rows is None or shape is None or len(shape.inputs) != 4:
        return None
    target = tape.op("Concat", [shape.inputs[axis] for axis in LAST], shape.attributes)
    picture = tape.op("Reshape", [rows, target], name=node.name)
    return {node.outputs[0]: first(picture, node.outputs[0], tape)}
