"""The names that original one-file models use, written down the other way round than the export reads them.

`python tests/originals.py sd1|sd2 FILE` writes a model of full size with random weights in fp16, to measure with.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from one_file_shapes import made, shapes
from safetensors.torch import load_file, save_file

from clipskip.export import onefile, tokenizer

Tensors = dict[str, torch.Tensor]
PARTS = ("text_encoder", "unet", "vae")
SPELLINGS = {  # today's name -> the original one, where blocks are not numbered
    "time_embedding.linear_1.": "time_embed.0.", "time_embedding.linear_2.": "time_embed.2.",
    "conv_in.": "input_blocks.0.0.", "conv_norm_out.": "out.0.", "conv_out.": "out.2.",
    "mid_block.resnets.0.": "middle_block.0.", "mid_block.attentions.0.": "middle_block.1.",
    "mid_block.resnets.1.": "middle_block.2.",
}  # fmt: skip
RESNET = {
    ".norm1.": ".in_layers.0.", ".conv1.": ".in_layers.2.", ".time_emb_proj.": ".emb_layers.1.",
    ".norm2.": ".out_layers.0.", ".conv2.": ".out_layers.3.", ".conv_shortcut.": ".skip_connection.",
}  # fmt: skip
VAE = {
    ".mid_block.resnets.0.": ".mid.block_1.", ".mid_block.resnets.1.": ".mid.block_2.",
    ".mid_block.attentions.0.group_norm.": ".mid.attn_1.norm.",
    ".mid_block.attentions.0.to_out.0.": ".mid.attn_1.proj_out.",
    ".mid_block.attentions.0.to_": ".mid.attn_1.", ".conv_shortcut.": ".nin_shortcut.", ".conv_norm_out.": ".norm_out.",
}  # fmt: skip


def replaced(name: str, table: dict[str, str]) -> str:
    for new, old in table.items():
        name = name.replace(new, old)
    return name


def original_unet(name: str, layers: int, attended: set[int]) -> str:
    """The name in the original file; `attended`: the up blocks that have attentions."""
    if match := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name):
        side, block, kind, layer, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        first = block * (layers + 1) + (side == "down")
        if kind == "downsamplers":
            return f"input_blocks.{first + layers}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":
            return f"output_blocks.{first + layers}.{2 if block in attended else 1}.{rest}"
        place, blocks = int(kind == "attentions"), {"down": "input_blocks", "up": "output_blocks"}[side]
        return f"{blocks}.{first + layer}.{place}.{rest if place else replaced(f'.{rest}', RESNET)[1:]}"
    for new, old in SPELLINGS.items():
        if name.startswith(new):
            rest = name.removeprefix(new)
            return old + (replaced(f".{rest}", RESNET)[1:] if "resnets" in new else rest)
    return name


def original_vae(name: str, blocks: int) -> str:
    name = re.sub(r"\.(down|up)_blocks\.(\d+)\.resnets\.", r".\1.\2.block.", replaced(name, VAE))
    name = re.sub(r"\.(down|up)_blocks\.(\d+)\.(down|up)samplers\.0\.", r".\1.\2.\3sample.", name)
    return re.sub(r"(?<=decoder\.up\.)\d+", lambda match: str(blocks - 1 - int(match[0])), name)


OPEN_CLIP = {
    "embeddings.position_embedding.weight": "positional_embedding", "embeddings.token_embedding": "token_embedding",
    "final_layer_norm": "ln_final", "encoder.layers.": "transformer.resblocks.", ".layer_norm1.": ".ln_1.",
    ".layer_norm2.": ".ln_2.", ".mlp.fc1.": ".mlp.c_fc.", ".mlp.fc2.": ".mlp.c_proj.", ".self_attn.": ".attn.",
}  # fmt: skip


def plain(weights: Tensors) -> Tensors:
    """Under today's names."""
    return {name.removeprefix("text_model."): value for name, value in weights.items()}


def open_clip(weights: Tensors) -> Tensors:
    """The text encoder as OpenCLIP writes it: query, key and value in one tensor."""
    today = plain(weights)
    packed = {}
    for name in [name for name in today if ".q_proj." in name]:
        thirds = [today.pop(name.replace(".q_proj.", f".{letter}_proj.")) for letter in "qkv"]
        packed[replaced(name.replace(".q_proj.", ".in_proj_"), OPEN_CLIP)] = torch.cat(thirds)
    return packed | {replaced(name, OPEN_CLIP): value for name, value in today.items()}


def renamed(family: str, text: Tensors, unet: Tensors, vae: Tensors, layers: int, attended: set[int]) -> Tensors:
    """A model's weights under the names of one file; `layers` of a block, `attended`: the up blocks with attentions."""
    prefix, named = {"sd1": ("transformer.text_model.", plain(text)), "sd2": ("model.", open_clip(text))}[family]
    weights = {f"cond_stage_model.{prefix}{name}": value for name, value in named.items()}
    weights |= {f"model.diffusion_model.{original_unet(name, layers, attended)}": value for name, value in unet.items()}
    return weights | {f"first_stage_model.{original_vae(name, 4)}": value for name, value in vae.items()}


def original(folder: Path, family: str = "sd1") -> Tensors:
    """A model's weights under the names of one file."""
    text, unet, vae = (load_file(next((folder / part).glob("*.safetensors"))) for part in PARTS)
    config = json.loads((folder / "unet" / "config.json").read_text())
    attended = {block for block, kind in enumerate(config["up_block_types"]) if "CrossAttn" in kind}
    return renamed(family, text, unet, vae, config["layers_per_block"], attended)


def shrink(folder: Path, patch: pytest.MonkeyPatch, family: str = "sd1") -> None:
    """Let one-file models of the family be of this model's size, and its tokenizer be CLIP's."""
    text, unet, vae = (json.loads((folder / part / "config.json").read_text()) for part in PARTS)
    unset = unet.pop("_use_default_values", ())  # diffusers takes its own values for these, whatever stands there
    unet = {field: value for field, value in unet.items() if field not in unset}
    beyond = rf"cond_stage_model\.model\.transformer\.resblocks\.{text['num_hidden_layers']}\..*"
    shrunk = [
        replace(layout, text=text, unet=unet, vae=vae, beyond=beyond) if layout.family == family else layout
        for layout in onefile.LAYOUTS
    ]
    sizes = {layout.family: shapes(layout) for layout in shrunk if layout.family == family}
    patch.setattr(onefile, "LAYOUTS", tuple(shrunk))
    patch.setattr(onefile, "VAE", vae)
    patch.setattr(onefile, "shapes", lambda family: sizes[family])
    files = {name: (folder / "tokenizer" / name).read_bytes() for name in ("vocab.json", "merges.txt")}
    patch.setattr(tokenizer, "clip", lambda: files)


def write_one_file(folder: Path, path: Path, patch: pytest.MonkeyPatch, family: str = "sd1") -> Path:
    """The model as one file, with what such files hold beside it."""
    shrink(folder, patch, family)
    beside = {"cond_stage_model.logit_scale": torch.ones(1), "first_stage_model.loss.logvar": torch.ones(1)}
    save_file(original(folder, family) | beside | {"betas": torch.ones(1000)}, path)
    return path


def write_full_size(family: str, path: Path) -> None:
    """A model of SD 1.5's or 2.1's size; no picture comes out of it."""
    torch.manual_seed(0)
    layout = next(layout for layout in onefile.LAYOUTS if layout.family == family)
    text, unet, vae = (network.half().state_dict() for network in made(layout).values())
    said = {"modelspec.prediction_type": "v" if family == "sd2" else "epsilon"}
    save_file(renamed(family, text, unet, vae, 2, {1, 2, 3}), path, metadata=said)


if __name__ == "__main__":
    write_full_size(sys.argv[1], Path(sys.argv[2]))
