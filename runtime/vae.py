"""Between latents and pictures: the decode and encode engines, and what may go wrong there. Knows no request."""

from __future__ import annotations

import numpy as np
import PIL.Image

from clipskip.engines.manifest import DECODE, DECODE_TINY, ENCODE

from .backends import Array
from .engine_cache import EngineCache
from .errors import NumericalError

DECODERS = {"vae": DECODE, "tiny": DECODE_TINY}  # by what a request calls them


def decode(engines: EngineCache, latents: Array, what: str, decoder: str = "vae") -> PIL.Image.Image:
    """The picture of [4,h,w] latents, which `what` names. NaN and infinity are an error, never a black picture."""
    if not np.isfinite(latents).all():
        raise NumericalError(f"{what} are not finite", hint="try a lower cfg, or engines at fp32")
    with engines.use(DECODERS[decoder]) as engine:
        outputs = engine.run({"latents": latents[None]})
    if not outputs["finite"][0]:
        raise NumericalError(f"the decoder's output for {what} is not finite", hint="try engines at fp32")
    return PIL.Image.fromarray(outputs["image"][0])


def encode(engines: EngineCache, image: Array) -> tuple[Array, Array]:
    """Mean and standard deviation, [4,h,w] each, of the latents of a picture, uint8 [8h,8w,3]."""
    with engines.use(ENCODE) as engine:
        outputs = engine.run({"image": image[None]})
    return outputs["mean"][0], outputs["std"][0]


def encode_mid_grey(engines: EngineCache, height: int, width: int) -> Array:
    """The latents [4,h,w] of a picture without content, of this size in pixels."""
    return encode(engines, np.full((height, width, 3), 128, np.uint8))[0]
