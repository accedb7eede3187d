"""Stable Diffusion 2.x: OpenCLIP's encoder, always to its penultimate layer, so that clip skip has no effect."""

from __future__ import annotations

from clipskip.export.families.family import Encoder, Family
from clipskip.export.families.sd1 import SD1

PENULTIMATE = 23  # of 24 layers, of which folders leave the last one out
CLIP_SKIPS = 25  # as many as the layers would have: what others send for SD 1.x is among them

SD2 = Family(
    name="sd2",
    title="SD 2.x",
    pipelines=SD1.pipelines,
    claims=lambda unet: unet.use_linear_projection or unet.cross_attention_dim == 1024,
    clip_skips=lambda layers: (min(layers, PENULTIMATE),) * CLIP_SKIPS,
    encoders=(Encoder(padding=0),),
    size=lambda prediction: 96 if prediction == "v_prediction" else 64,
    float_attention=True,
)
