"""The patterns of the form for ONNX Runtime's CUDA provider, for each part of a model in the order that they need.

Attention is ONNX's own, over rows: the provider takes its flash kernels for it on compute capability 8.6, 8.9, 9.0 and
12.0 alike, while it hands MultiHeadAttention to cuDNN on 9.0 and 12.0, unchecked for heads as wide as 160.

The layers that make query, key and value stay three: one of all needs a kernel that takes its result apart.

A session must prepack, for that is when NhwcConv learns that its weights have their channels last too, and wants the
provider's `fuse_conv_bias`, without which each convolution's bias is a kernel. No product is in single precision where
the network is in half, so TF32 stays as the provider has it: to forbid it takes the tensor cores from half precision.
"""

from __future__ import annotations

from collections.abc import Mapping

from clipskip.engines.forms import arithmetic, attention, fused_norms, layout, linear
from clipskip.engines.forms.rewrite import Pattern

_ROWS = (attention.flat_attention, fused_norms.layer_norm, fused_norms.skip_layer_norm)
_PICTURES = (
    layout.nhwc_conv, fused_norms.group_norm, fused_norms.group_norm_silu, layout.picture_of_rows,
    layout.value_by_value, layout.joined_channels, layout.resized, layout.size, layout.no_transposition,
    layout.rows_of_picture, fused_norms.skip_group_norm,
)  # fmt: skip
PATTERNS: Mapping[str, tuple[Pattern, ...]] = {
    "text": (*_ROWS, arithmetic.gather),
    "step": (
        *_ROWS, *_PICTURES, linear.bias_add, linear.bias_split_gelu, linear.side_by_side, arithmetic.gather,
        arithmetic.mixture,
    ),
    "decode": (*_ROWS, *_PICTURES),
    "decode-tiny": _PICTURES,
    "encode": (*_ROWS, *_PICTURES),
}  # fmt: skip
