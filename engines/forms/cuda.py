"""The patterns of the form for ONNX Runtime's CUDA provider, for each part of a model in the order that they need.

Attention is ONNX's own, over rows: the provider takes its flash kernels for it on compute capability 8.6, 8.9, 9.0 and
12.0 alike, while it hands MultiHeadAttention to cuDNN on 9.0 and 12.0, unchecked for heads as wide as 160.

The layers that make query, key and value stay three: one of all needs a kernel that takes its result apart.
"""

from __future__ import annotations

from collections.abc import Mapping

from clipskip.engines.forms.arithmetic import gather, solver
from clipskip.engines.forms.attention import flat_attention
from clipskip.engines.forms.fused_norms import group_norm, group_norm_silu, layer_norm, skip_group_norm, skip_layer_norm
from clipskip.engines.forms.layout import (
    joined_channels,
    nhwc_conv,
    no_transposition,
    picture_of_rows,
    resized,
    rows_of_picture,
    size,
    value_by_value,
)
from clipskip.engines.forms.linear import bias_add, bias_split_gelu, side_by_side
from clipskip.engines.forms.rewrite import Pattern

_ROWS = (flat_attention, layer_norm, skip_layer_norm)
_PICTURES = (
    nhwc_conv, group_norm, group_norm_silu, picture_of_rows, value_by_value, joined_channels, resized, size,
    no_transposition, rows_of_picture, skip_group_norm,
)  # fmt: skip
PATTERNS: Mapping[str, tuple[Pattern, ...]] = {
    "text": (*_ROWS, gather),
    "step": (*_ROWS, *_PICTURES, bias_add, bias_split_gelu, side_by_side, gather, solver),
    "decode": (*_ROWS, *_PICTURES),
    "encode": (*_ROWS, *_PICTURES),
}
