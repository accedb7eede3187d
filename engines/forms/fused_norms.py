"""Patterns of norms: on half precision with sums in single, with what is added before and what follows in one kernel.

A norm may stand between casts to single precision and back, or take half precision as it is. Channels are last.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.tape import Tape

from clipskip.engines.forms.layout import FIRST, LAST, first, last, row_of_pixels, swapped
from clipskip.engines.forms.linear import biased
from clipskip.engines.forms.norms import KEPT, weights
from clipskip.engines.forms.rewrite import (
    MICROSOFT,
    Replaced,
    constant,
    like,
    made_by,
    numbers,
    only_use,
    readers,
)

GROUP = 512  # channels of a group that one block of CUDA's kernel sums; it takes two at a time
UNUSED = {"SkipGroupNorm": (False, False), "SkipLayerNormalization": (False, True, True, False)}  # results; last: sum


def norm_of(node: ir.Node, kind: str) -> tuple[ir.Node, ir.Value] | None:
    """The norm that ends at this node and what it is of; casts to single precision and back belong to it."""
    norm: ir.Node | None = node
    if node.op_type == kind:
        between = made_by(node.inputs[0], "Cast") is not None and only_use(node.outputs[0], "Cast") is not None
        source = None if between else node.inputs[0]
    else:
        norm = made_by(node.inputs[0], kind) if node.op_type == "Cast" else None
        single = made_by(norm.inputs[0], "Cast") if norm is not None else None
        source = single.inputs[0] if single is not None else None
    fits = norm is not None and source is not None and source.dtype == node.outputs[0].dtype
    return (norm, source) if fits and norm is not None and source is not None else None


def group_norm(node: ir.Node, tape: Tape) -> Replaced:
    """GroupNorm of a picture, or of one whose pixels were laid in a row, where CUDA has a kernel for the channels."""
    norm, source = norm_of(node, "GroupNormalization") or (None, None)
    scale = constant(norm.inputs[1]) if norm is not None else None
    if norm is None or source is None or scale is None:
        return None
    groups, flat = norm.attributes["num_groups"].as_int(), row_of_pixels(source)
    picture = flat.inputs[0] if flat is not None else source
    if picture is None or scale.size // groups % 2 or scale.size // groups > GROUP:
        return None
    told: dict[str, int | float] = {"groups": groups, "activation": 0, "channels_last": 1}
    told["epsilon"] = norm.attributes["epsilon"].as_float()
    inputs = [last(picture, tape), *weights(norm, ir.DataType.FLOAT, tape)]
    normed = tape.op("GroupNorm", inputs, told, domain=MICROSOFT, name=norm.name)
    value = first(normed, node.outputs[0], tape)
    if flat is not None:
        normed.name = f"{node.outputs[0].name}.picture"  # not the row of pixels that it stands for
        value = tape.op("Reshape", [value, flat.inputs[1]], flat.attributes)
    return {node.outputs[0]: value}


def group_norm_silu(node: ir.Node, tape: Tape) -> Replaced:
    """x * sigmoid(x) behind a GroupNorm that nothing else reads."""
    gate = next((gate for value in node.inputs if (gate := made_by(value, "Sigmoid"))), None)
    source = gate.inputs[0] if node.op_type == "Mul" and gate is not None else None
    norm = made_by(swapped(source, FIRST), "GroupNorm")
    if norm is None or source is None or source not in node.inputs or readers(source) != 2:
        return None
    return {node.outputs[0]: first(like(norm, tape, norm.inputs, activation=1), node.outputs[0], tape)}


def skip_group_norm(node: ir.Node, tape: Tape) -> Replaced:
    """GroupNorm of a sum: of two pictures, or of one and a vector for each (a Linear's, whose bias goes along)."""
    total = made_by(node.inputs[0], "Add") if node.op_type == "GroupNorm" else None
    if total is None or any(constant(value) is not None for value in total.inputs):
        return None
    picture, other = sorted(total.inputs, key=lambda value: _vector(value) is not None)
    skip = [other]
    if (vector := _vector(other)) is not None:
        linear, bias = made_by(vector, "Gemm"), []
        stored = constant(linear.inputs[2]) if linear is not None and len(linear.inputs) == 3 else None
        whole = linear is not None and linear.attributes.get_float("beta", 1.0) == 1.0 and readers(vector) == 1
        if linear is not None and whole and stored is not None and stored.ndim == 1:
            vector, bias = like(linear, tape, linear.inputs[:2]), [linear.inputs[2]]
        skip = [tape.op("Unsqueeze", [vector, numbers([1, 2], node, tape)]), *bias]
    return _with_sum("SkipGroupNorm", node, total, [picture, *node.inputs[1:], *skip], tape)


def _vector(value: ir.Value | None) -> ir.Value | None:
    """The [N, C] that stands for a picture whose pixels are all alike."""
    spread = made_by(swapped(value, LAST), "Unsqueeze")
    axes = constant(spread.inputs[1]) if spread is not None else None
    return spread.inputs[0] if spread is not None and axes is not None and axes.tolist() == [2, 3] else None


def layer_norm(node: ir.Node, tape: Tape) -> Replaced:
    """A LayerNormalization between casts: one on half precision, which rounds what its weight has multiplied."""
    norm, source = norm_of(node, "LayerNormalization") or (None, None)
    if norm is None or norm is node or KEPT in norm.metadata_props or source is None or source.dtype is None:
        return None
    return {node.outputs[0]: like(norm, tape, [source, *weights(norm, source.dtype, tape)], stash_type=1)}


def skip_layer_norm(node: ir.Node, tape: Tape) -> Replaced:
    """LayerNormalization of the sum of two rows; a bias added to one of them before goes along."""
    total = made_by(node.inputs[0], "Add") if node.op_type == "LayerNormalization" else None
    if total is None or len(node.inputs) != 3 or node.attributes.get_int("axis", -1) != -1:
        return None
    if any(constant(value) is not None for value in total.inputs):
        return None
    rows, skip, bias = biased(total)
    return _with_sum("SkipLayerNormalization", node, total, [rows, skip, *node.inputs[1:], *bias], tape)


def _with_sum(kind: str, norm: ir.Node, total: ir.Node, inputs: list[ir.Value | None], tape: Tape) -> Replaced:
    """A norm that adds first, for a norm and the addition before it; gives the sum too where somebody else reads it."""
    attributes = {name: value for name, value in norm.attributes.items() if name not in ("axis", "stash_type")}
    kept = readers(total.outputs[0]) > 1
    results = [ir.Value(name="" if unused else None) for unused in UNUSED[kind]] if kept else [ir.Value()]
    tape.op_multi_out(kind, inputs, attributes, outputs=results, domain=MICROSOFT, name=norm.name)
    return {norm.outputs[0]: results[0]} | ({total.outputs[0]: results[-1]} if kept else {})
