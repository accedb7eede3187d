"""A Stable Diffusion 1.x model in one .safetensors file, as users of AUTOMATIC1111 have it.

Such a file holds weights only: the configurations are SD 1.x's own, the tokenizer is CLIP's, which is in this package.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from clipskip.engines.errors import CheckpointError, UnsupportedModelError
from clipskip.engines.tensorfile import Entry
from clipskip.export import names, parts, tensorfile
from clipskip.export.parts import Checkpoint, Part

Config = Mapping[str, Any]
UNET: Config = {
    "sample_size": 64, "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768,
    "attention_head_dim": 8, "layers_per_block": 2,
}  # fmt: skip
VAE: Config = {
    "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4, "layers_per_block": 2, "latent_channels": 4, "scaling_factor": 0.18215,
}  # fmt: skip
TEXT: Config = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
}  # fmt: skip
_TEXT = ("cond_stage_model.transformer.",)
_UNET = ("model.diffusion_model.",)
_VAE = tuple(f"first_stage_model.{each}." for each in ("encoder", "decoder", "quant_conv", "post_quant_conv"))
_BESIDE = ("text_projection.weight", "logit_scale")  # of the CLIP that the encoder was cut out of


def open_file(path: Path) -> Checkpoint:
    """The model in one file. UnsupportedModelError names what it is where it is no whole SD 1.x."""
    header = tensorfile.read_header(path)
    state = parts.state_of(path)
    _check_kind(path, header)

    def part(name: str, config: Config, prefixes: tuple[str, ...], modern: Callable[[str], str]) -> Part:
        mine = {key: each for key, each in header.items() if key.startswith(prefixes) and not key.endswith(_BESIDE)}
        if not mine:
            raise CheckpointError(f"{path} has no {name} in it (no tensor {prefixes[0]}*)", path=path)
        return Part(name, config, path, mine, modern)

    return Checkpoint(
        path,
        part("text_encoder", TEXT, _TEXT, names.text_from_file),
        part("unet", UNET, _UNET, partial(names.unet_from_file, layers=UNET["layers_per_block"])),
        part("vae", VAE, _VAE, partial(names.vae_from_file, blocks=len(VAE["block_out_channels"]))),
        index={},
        scheduler={"prediction_type": "v_prediction" if "v_pred" in header else "epsilon"},
        tokenizer=clip_tokenizer(),
        sources=parts.hashes([path], path.parent),
        states={path: state},
    )


def _check_kind(path: Path, header: Mapping[str, Entry]) -> None:
    """Tell SD 1.x from what looks like it. A part that is missing is named later, and so is a wrong shape."""
    kind = names.describe_keys(header)
    if kind != names.WHOLE and not any(key.startswith(_UNET) for key in header):
        message = f"{path} is {kind or 'of an unknown kind'}; a whole SD 1.x model is supported"
        raise UnsupportedModelError(message, path=path)
    if kind in names.OTHER_MODELS:
        raise UnsupportedModelError(f"{path} is {kind}; SD 1.x is supported", path=path)
    first = header.get("model.diffusion_model.input_blocks.0.0.weight")
    if first is not None and first.shape[1:2] == (9,):
        raise UnsupportedModelError(f"{path} is an inpainting model (9 channels); SD 1.x is supported", path=path)
    if "ztsnr" in header:
        raise UnsupportedModelError(f"{path} has betas that are rescaled to a signal-to-noise ratio of zero", path=path)


def clip_tokenizer() -> dict[str, bytes]:
    """vocab.json and merges.txt of CLIP: the bytes, the bytes that end a word, the merges, start and end."""
    packed = resources.files("clipskip.export").joinpath("clip_merges.txt.gz").read_bytes()
    merges = gzip.decompress(packed).decode().splitlines()
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves
    symbols = [*map(chr, shown), *(chr(256 + place) for place in range(256 - len(shown)))]
    words = [*symbols, *(f"{each}</w>" for each in symbols), *(each.replace(" ", "") for each in merges)]
    vocabulary = {word: place for place, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    return {
        "vocab.json": json.dumps(vocabulary).encode(),
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]).encode(),
    }
