"""The form for ONNX Runtime's CPU provider: its attention computes in tiles, and never holds all scores at once."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.tape import Tape

from clipskip.engines.forms.rewrite import MICROSOFT, Replaced


def tiled_attention(node: ir.Node, tape: Tape) -> Replaced:
    """Attention over [N, T, heads * width] as ONNX Runtime's own operator."""
    if node.op_type != "Attention" or node.domain == MICROSOFT or "q_num_heads" not in node.attributes:
        return None
    causal = node.attributes["is_causal"].as_int() if "is_causal" in node.attributes else 0
    told: dict[str, int | float] = {"num_heads": node.attributes["q_num_heads"].as_int(), "unidirectional": causal}
    if "scale" in node.attributes:
        told["scale"] = node.attributes["scale"].as_float()
    attention = tape.op("MultiHeadAttention", node.inputs[:3], told, domain=MICROSOFT, name=node.name)
    return {node.outputs[0]: attention}


PATTERNS = {"step": (tiled_attention,), "decode": (tiled_attention,), "encode": (tiled_attention,)}
