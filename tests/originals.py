"""The names that original one-file models use, written down the other way round than the export reads them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from clipskip.export import onefile, tokenizer

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


def write_one_file(tiny: Path, path: Path, patch: pytest.MonkeyPatch) -> Path:
    """The tiny model as one file of SD 1.x, whose configurations are shrunk to its size."""
    folders = ("text_encoder", "unet", "vae")
    configs = [json.loads((tiny / folder / "config.json").read_text()) for folder in folders]
    shrunk = replace(onefile.SD1, text=configs[0], unet=configs[1], vae=configs[2])
    patch.setattr(onefile, "LAYOUTS", (shrunk, *onefile.LAYOUTS[1:]))
    patch.setattr(onefile, "VAE", configs[2])
    tiny_tokenizer = {name: (tiny / "tokenizer" / name).read_bytes() for name in ("vocab.json", "merges.txt")}
    patch.setattr(tokenizer, "clip", lambda: tiny_tokenizer)
    text, unet, vae = (load_file(next((tiny / folder).glob("*.safetensors"))) for folder in folders)
    weights = {f"cond_stage_model.transformer.{name}": value for name, value in text.items()}
    weights |= {f"model.diffusion_model.{original_unet(name, 0, {1})}": value for name, value in unet.items()}
    weights |= {f"first_stage_model.{original_vae(name, 4)}": value for name, value in vae.items()}
    beside = {"cond_stage_model.logit_scale": torch.ones(1), "first_stage_model.loss.logvar": torch.ones(1)}
    save_file(weights | beside | {"betas": torch.ones(1000)}, path)
    return path
