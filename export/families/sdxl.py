"""Stable Diffusion XL: two text encoders side by side, a pooled vector of the second, and sizes as an input."""

from __future__ import annotations

from typing import Any

from clipskip.engines.manifest import Dim, Port
from clipskip.export.families.family import Encoder, Family

SIZES = 6  # height and width before it was cropped, the crop's top and left, height and width of the picture


def _inputs(unet: Any, dtype: str) -> tuple[Port, ...]:
    pooled = unet.projection_class_embeddings_input_dim - SIZES * unet.addition_time_embed_dim
    return Port("pooled", dtype, (Dim("N"), pooled)), Port("size_ids", "float32", (Dim("B"), SIZES))


SDXL = Family(
    name="sdxl",
    title="SDXL",
    pipelines=r"StableDiffusionXL(Img2Img|Inpaint)?Pipeline",
    claims=lambda unet: unet.addition_embed_type,
    clip_skips=lambda layers: (layers - 1, *range(layers - 1, -1, -1)),
    encoders=(Encoder(normed=False), Encoder(normed=False, padding=0, pooled=True)),
    inputs=_inputs,
    # In float32 as the sizes are: diffusers joins them, and ONNX joins no two types.
    conditions=lambda inputs, rows: {
        "added_cond_kwargs": {"text_embeds": inputs["pooled"].float(), "time_ids": inputs["size_ids"][rows]}
    },
)
