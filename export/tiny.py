"""The graph of the tiny decoder: a publication of its own, so that it may come later than the others."""

from __future__ import annotations

import math
from collections.abc import Callable
from inspect import signature
from typing import Any

from diffusers import AutoencoderTiny
from torch import nn

from clipskip.engines.errors import UnsupportedModelError
from clipskip.engines.manifest import DECODE_TINY, ModelFacts
from clipskip.engines.publish import Draft
from clipskip.engines.shapes import LATENT
from clipskip.export import build, cases, graphs
from clipskip.export.tensors import fill
from clipskip.export.tinyfile import TinyDecoder


def write(draft: Draft, source: TinyDecoder, facts: ModelFacts, say: Callable[[str], None]) -> None:
    """Write the decoder's graph into the draft. NumericalError where it disagrees with torch."""
    say("loading the tiny decoder")
    network = fill(_decoder, source.part)
    source.files.check_unchanged()
    enlarged = math.prod(getattr(layer, "scale_factor", 1) for layer in network.decoder.layers)
    if enlarged != LATENT:
        message = f"{source.part.settings}: the decoder enlarges {enlarged:g} times, not {LATENT} times"
        raise UnsupportedModelError(message, path=source.part.settings)
    trials = cases.decode(network)
    if next(iter(draft.wanted)).precision == "fp16":
        network.half()
    written = build.trace(draft, facts, say, {}, graphs.decode_graph(network, DECODE_TINY), {DECODE_TINY: trials})
    build.measure(draft, say, written)


def _decoder(config: dict[str, Any]) -> AutoencoderTiny:
    """Without its encoder, which half of the files have not; its configurations hold more than it takes."""
    known = signature(AutoencoderTiny).parameters
    network = AutoencoderTiny(**{name: value for name, value in config.items() if name in known})
    network.encoder = nn.Identity()
    return network
