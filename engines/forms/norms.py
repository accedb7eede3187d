"""Patterns of norms, and which norms half precision would spoil. Knows nothing of which graph wants them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from clipskip.engines.forms.rewrite import Replaced, constant, derived, like, made_by
from clipskip.engines.gates import Array, Arrays

NORMS = ("LayerNormalization", "GroupNormalization")
KEPT = "clipskip.norm"  # under this name a norm says, among its metadata, that it is to stay in float32
LOSS = 2e-3  # relative, of what a norm gives; rounding to float16 alone costs 3e-4


def half_norm(node: ir.Node, tape: Tape) -> Replaced:
    """A norm in float32 between casts from and to float16: in float16, with sums in float32."""
    norm = node.inputs[0].producer() if node.op_type == "Cast" and node.inputs[0] is not None else None
    widened = made_by(norm.inputs[0], "Cast") if norm is not None and norm.op_type in NORMS else None
    if norm is None or widened is None or node.outputs[0].dtype != ir.DataType.FLOAT16 or KEPT in norm.metadata_props:
        return None
    source, stored = widened.inputs[0], [value for value in norm.inputs[1:] if value is not None and value.const_value]
    if source is None or source.dtype != ir.DataType.FLOAT16 or len(stored) + 1 < len(norm.inputs):
        return None
    return {node.outputs[0]: like(norm, tape, [source, *weights(norm, source.dtype, tape)], stash_type=1)}


def weights(norm: ir.Node, dtype: ir.DataType, tape: Tape) -> list[ir.Value]:
    """Scale and shift of a norm as numbers of this type."""
    kind = dtype.numpy()
    return [
        value if value.dtype == dtype else derived(value, kind.name, tape, lambda array: array.astype(kind), dtype)
        for value in norm.inputs[1:]
        if value is not None
    ]


def float_norms(model: ir.Model) -> list[ir.Node]:
    """The norms in float32."""
    return [node for node in model.graph if node.op_type in NORMS and node.outputs[0].dtype == ir.DataType.FLOAT]


def probe(model: ir.Model) -> ir.Model:
    """The graph that gives, besides, what its norms give."""
    longer = model.clone()
    longer.graph.outputs.extend(norm.outputs[0] for norm in float_norms(longer))
    return longer


def keep_spoiled(model: ir.Model, results: Sequence[Arrays]) -> None:
    """Mark the norms that are to stay in float32: what they give is lost where float16 holds it before its bias.

    `results`: what the probe of the graph gave for some inputs.
    """
    for norm in float_norms(model):
        given = [result[str(norm.outputs[0].name)] for result in results]
        bias = constant(norm.inputs[2])
        assert bias is not None
        if not all(_loss(each, bias, norm.op_type) <= LOSS for each in given if np.isfinite(each).all()):
            norm.metadata_props[KEPT] = "float32"


def kept(model: ir.Model) -> list[str]:
    """The weights of the norms that were marked."""
    return [str(node.inputs[1].name) for node in model.graph if KEPT in node.metadata_props and node.inputs[1]]


def _loss(given: Array, bias: Array, kind: str) -> float:
    """The relative error of what a norm gives if it is scaled and shifted in float16; its bias is one per channel."""
    shift = bias.reshape(-1, *[1] * (given.ndim - 2)) if kind == "GroupNormalization" else bias
    with np.errstate(over="ignore", invalid="ignore"):
        half = (given - shift).astype(np.float16) + shift.astype(np.float16)
        return float(np.linalg.norm(half.astype(np.float64) - given) / np.linalg.norm(given.astype(np.float64)))
