"""What checkpoints call their weights, in terms of the names that today's transformers and diffusers use.

Knows nothing of files and shapes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

WHOLE = "a whole SD 1.x model in one file"
OTHER_MODELS = ("SDXL", "an SDXL refiner", "SD 2.x", "SD 3", "Flux", "a ControlNet")
_MARKS = {  # part of a tensor's name -> what a file with such names is
    "conditioner.embedders.1": "SDXL",
    "conditioner.embedders.0.model": "an SDXL refiner",
    "cond_stage_model.model.": "SD 2.x",
    "joint_blocks": "SD 3",
    "double_blocks": "Flux",
    "control_model": "a ControlNet",
    "controlnet_": "a ControlNet",
    "lora_": "a LoRA",
    ".lora": "a LoRA",
    "hada_w": "a LyCORIS",
    "string_to_param": "a textual inversion",
    "emb_params": "a textual inversion",
    "cond_stage_model.transformer": WHOLE,
    "model_ema.": "the moving averages of a training run",
    "down_blocks.0.resnets": "a U-Net or VAE",
    "encoder.layers": "a text encoder",
    "first_stage_model": "a VAE in one file",
    "decoder.up": "a VAE in one file",
}
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_RESNET = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
    "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip
_ENDS = {
    "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out",
    "middle_block.0": "mid_block.resnets.0", "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
}  # fmt: skip
_VAE = (
    (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."),
    (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.up\.(\d+)\.block\.", r".up_blocks.\1.resnets."),
    (r"\.up\.(\d+)\.upsample\.", r".up_blocks.\1.upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
)


def from_folder(name: str) -> str:
    """A folder in diffusers' layout: text encoders of old had a prefix, VAEs of old other names for their attention."""
    name = name.removeprefix("text_model.")
    match = re.fullmatch(r"(.*\.attentions\.\d+\.)(query|key|value|proj_attn)(\.\w+)", name)
    return f"{match[1]}{_OLD_ATTENTION[match[2]]}{match[3]}" if match else name


def text_from_file(name: str) -> str:
    """The text encoder in the original one-file layout."""
    return name.removeprefix("cond_stage_model.transformer.").removeprefix("text_model.")


def unet_from_file(name: str, layers: int = 2) -> str:
    """The U-Net in the original one-file layout: numbered blocks, of which each resolution has `layers` + 1."""
    name = name.removeprefix("model.diffusion_model.")
    if match := re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d)\.(.*)", name):
        side = {"input": "down", "output": "up"}[match[1]]
        number = int(match[2]) - (side == "down")  # the first on the way down is conv_in
        if number >= 0:
            return _resnet(_block(side, *divmod(number, layers + 1), int(match[3]), match[4]))
    for old, new in _ENDS.items():
        if name.startswith(f"{old}."):
            return _resnet(new + name[len(old) :])
    return name


def _block(side: str, block: int, layer: int, place: int, rest: str) -> str:
    mover, old = {"down": ("downsamplers.0.conv", "op"), "up": ("upsamplers.0.conv", "conv")}[side]
    if rest.startswith(f"{old}."):
        return f"{side}_blocks.{block}.{mover}.{rest.removeprefix(f'{old}.')}"
    return f"{side}_blocks.{block}.{('resnets', 'attentions')[min(place, 1)]}.{layer}.{rest}"


def _resnet(name: str) -> str:
    head, mark, tail = name.partition(".resnets.")
    layer, _, inner = tail.partition(".")
    old, _, kind = inner.rpartition(".")
    return f"{head}{mark}{layer}.{_RESNET[old]}.{kind}" if old in _RESNET else name


def vae_from_file(name: str, blocks: int = 4) -> str:
    """The VAE in the original one-file layout, which counts the decoder's blocks from the other end."""
    name = name.removeprefix("first_stage_model.")
    for old, new in _VAE:
        name = re.sub(old, new, name)
    return re.sub(r"(?<=\.up_blocks\.)\d+", lambda match: str(blocks - 1 - int(match[0])), name)


def describe_keys(names: Iterable[str]) -> str | None:
    """A guess at what a file with tensors of these names is."""
    names = list(names)
    return next((kind for mark, kind in _MARKS.items() if any(mark in name for name in names)), None)
