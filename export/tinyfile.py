"""TAESD, the tiny decoder of Stable Diffusion's latents, as a file or folder that a user names. Reads no tensor.

Knows diffusers' layout, whole or in one file, and the numbered one of TAESD's maker, which counts the clamp too.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from clipskip.engines import identify
from clipskip.engines.errors import CheckpointError, UnsupportedModelError
from clipskip.engines.manifest import key_of
from clipskip.export.checkpoint import Part, State, _header, _json, _read_states, _resolved, _weights

_LAYER = re.compile(r"(?:taesd_)?(?:decoder\.)?(layers\.)?(\d{1,3})\.((?:conv\.\d\.)?(?:weight|bias))")


@dataclass(frozen=True)
class TinyDecoder:
    """What an export of the tiny decoder reads: its part, what makes it another one, and when a file is replaced."""

    part: Part
    key: str  # over weights and configuration
    states: dict[Path, State]

    @property
    def weights(self) -> int:
        """How many numbers it is."""
        return sum(math.prod(entry.shape) for entry in self.part.tensors.values())


def open_tiny(path: Path) -> TinyDecoder:
    """The decoder in a folder or file. CheckpointError, or UnsupportedModelError for another model's."""
    root = _resolved(path, "tiny VAE")
    weights = _weights(root, "diffusion_pytorch_model") if root.is_dir() else root
    settings = root / "config.json" if root.is_dir() else weights
    config = _json(settings) if root.is_dir() else {}  # diffusers' own defaults are TAESD's
    header = _header(weights).tensors
    tensors = {name: entry for name, entry in header.items() if _LAYER.fullmatch(name)}
    first = next((entry.shape for name, entry in tensors.items() if modern(name) == "decoder.layers.0.weight"), ())
    if len(first) != 4:
        what = identify.describe_keys(header) or "of an unknown kind"
        raise CheckpointError(f"{weights} holds no decoder of TAESD: it is {what}", path=weights, field="tiny_vae")
    if first[1] != 4:
        message = f"{weights} decodes latents of {first[1]} channels; those of SD 1.x and 2.x have 4"
        raise UnsupportedModelError(message, path=weights, field="tiny_vae")
    hashes, states = _read_states(root, {settings, weights})
    key = key_of({"weights": hashes[weights.name], "config": json.dumps(config, sort_keys=True)})
    return TinyDecoder(Part("tiny VAE", config, settings, weights, tensors, modern), key, states)


def modern(name: str) -> str:
    """diffusers' name of a tensor of the decoder. Where all of its parts are numbered, 0 is the clamp of its input."""
    match = _LAYER.fullmatch(name)
    assert match is not None
    return f"decoder.layers.{int(match[2]) - (match[1] is None)}.{match[3]}"
