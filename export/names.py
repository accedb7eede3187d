"""What checkpoints call their weights, in the names of today's transformers and diffusers. Opens no file."""

from __future__ import annotations

import re
from collections.abc import Iterable

WHOLE = "a whole SD 1.x model in one file"
_MARKS = {  # what a file is -> parts of its tensors' names, the surest first
    "SDXL": ("conditioner.embedders.1",),
    "an SDXL refiner": ("conditioner.embedders.0.model",),
    "SD 2.x": ("cond_stage_model.model.",),
    "SD 3": ("joint_blocks",),
    "Flux": ("double_blocks",),
    "a ControlNet": ("control_model", "controlnet_"),
    "a LoRA": ("lora_", ".lora"),
    "a LyCORIS": ("hada_w",),
    "a textual inversion": ("string_to_param", "emb_params"),
    WHOLE: ("cond_stage_model.transformer",),
    "the moving averages of a training run": ("model_ema.",),
    "a U-Net or VAE": ("down_blocks.0.resnets",),
    "a text encoder": ("encoder.layers",),
    "a VAE in one file": ("first_stage_model", "decoder.up"),
}
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OPEN_CLIP = {
    "positional_embedding": "embeddings.position_embedding.weight", "token_embedding.": "embeddings.token_embedding.",
    "ln_final.": "final_layer_norm.", "resblocks.": "encoder.layers.", ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.", ".mlp.c_fc.": ".mlp.fc1.", ".mlp.c_proj.": ".mlp.fc2.", ".attn.": ".self_attn.",
}  # fmt: skip
_WORDS = re.compile(  # of a name without dots; of a block's digits the last is the place in it
    r"(?:input|output)_blocks|middle_block|time_embed|(?:in|out|emb)_layers|skip_connection|transformer_blocks|attn[12]"
    r"|to_(?:[qkv]|out)|ff|net|norm[123]?|proj(?:_in|_out)?|op|conv|out|weight|bias|\d+(?=\d)|\d"
)
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
    (r"\.(down|up)\.(\d+)\.block\.", r".\1_blocks.\2.resnets."),
    (r"\.(down|up)\.(\d+)\.\1sample\.", r".\1_blocks.\2.\1samplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.(?:group_)?norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.(?:to_)?([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.(?:proj_out|to_out\.0)\.", ".mid_block.attentions.0.to_out.0."),
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


def open_clip_from_file(name: str) -> str:
    """OpenCLIP's text encoder, as SD 2.x has it; query, key and value in one tensor keep its name (in_proj_weight)."""
    name = name.removeprefix("cond_stage_model.model.").removeprefix("transformer.")
    for old, new in _OPEN_CLIP.items():
        name = name.replace(old, new)
    return name


def unet_from_average(name: str, layers: int = 2) -> str:
    """The moving average of a U-Net's tensor, whose name has lost its dots."""
    flat = name.removeprefix("model_ema.diffusion_model")
    words = _WORDS.findall(flat)
    return unet_from_file(".".join(words) if "".join(words) == flat else name, layers)


def unet_from_file(name: str, layers: int = 2) -> str:
    """The U-Net in the original one-file layout: numbered blocks, of which each resolution has `layers` + 1."""
    name = name.removeprefix("model.diffusion_model.")
    if match := re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d)\.(.*)", name):
        side, mover, old = ("down", "downsamplers", "op.") if match[1] == "input" else ("up", "upsamplers", "conv.")
        number = int(match[2]) - (side == "down")  # the first on the way down is conv_in
        block, layer = divmod(number, layers + 1)
        place, rest = f"{'attentions' if int(match[3]) else 'resnets'}.{layer}", match[4]
        if rest.startswith(old):
            place, rest = f"{mover}.0.conv", rest.removeprefix(old)
        if number >= 0:
            return _resnet(f"{side}_blocks.{block}.{place}.{rest}")
    modern = next((new + name[len(old) :] for old, new in _ENDS.items() if name.startswith(f"{old}.")), name)
    return _resnet(modern)


def _resnet(name: str) -> str:
    head, mark, tail = name.partition(".resnets.")
    layer, _, inner = tail.partition(".")
    old, _, kind = inner.rpartition(".")
    return f"{head}{mark}{layer}.{_RESNET[old]}.{kind}" if old in _RESNET else name


def vae_from_file(name: str, blocks: int = 4) -> str:
    """The VAE in the original one-file layout, which counts the decoder's blocks from the other end, or in today's."""
    name = name.removeprefix("first_stage_model.")
    if "_block" in name:
        return from_folder(name)
    for old, new in _VAE:
        name = re.sub(old, new, name)
    return re.sub(r"(?<=\.up_blocks\.)\d+", lambda match: str(blocks - 1 - int(match[0])), name)


def describe_keys(names: Iterable[str]) -> str | None:
    """A guess at what a file with tensors of these names is."""
    names = list(names)
    return next((kind for kind, marks in _MARKS.items() if any(mark in name for mark in marks for name in names)), None)
