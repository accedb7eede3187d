"""Stable Diffusion 1.x: one text encoder, whose every layer may be the last."""

from __future__ import annotations

from clipskip.export.families.family import Family

SD1 = Family(
    name="sd1",
    title="SD 1.x",
    pipelines=r"StableDiffusion(Img2Img|Inpaint)?Pipeline(Safe)?",
    claims=lambda unet: True,
    clip_skips=lambda layers: tuple(range(layers, -1, -1)),
)
