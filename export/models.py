"""A checkpoint's networks, and their norms in half precision. Knows nothing of files and of ONNX."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from clipskip.engines.errors import ExportError
from clipskip.export import families, tokenizer
from clipskip.export.checkpoint import Checkpoint
from clipskip.export.families.family import Family
from clipskip.export.tensors import fill

HALF_MAX = 65504.0


@dataclass(frozen=True)
class Networks:
    """The networks in float32, in eval mode; `end` is the token that ends a text."""

    family: Family
    end: int
    texts: tuple[CLIPTextModel, ...]
    unet: UNet2DConditionModel
    vae: AutoencoderKL

    @property
    def named(self) -> dict[str, nn.Module]:
        """All of them; `text2` is the second text encoder, if there is one."""
        texts = {f"text{number}" if number > 1 else "text": text for number, text in enumerate(self.texts, 1)}
        return {**texts, "unet": self.unet, "vae": self.vae}

    @property
    def parameters(self) -> dict[Tensor, str]:
        """The names ("unet.conv_in.weight") of all parameters, which stay the same in whatever they are wrapped."""
        named = self.named.items()
        return {tensor: f"{part}.{name}" for part, network in named for name, tensor in network.named_parameters()}


def load(checkpoint: Checkpoint) -> Networks:
    """The networks with the checkpoint's weights. CheckpointError, UnsupportedModelError, ExportError."""
    family = families.of(checkpoint)
    try:
        networks = Networks(
            family,
            checkpoint.vocabulary[tokenizer.END],
            tuple(
                fill(partial(_text, pooled=use.pooled), part)
                for use, part in zip(family.encoders, checkpoint.texts, strict=True)
            ),
            fill(UNet2DConditionModel.from_config, checkpoint.unet),
            fill(AutoencoderKL.from_config, checkpoint.vae),
        )
    finally:  # a file that is another one by now is what went wrong, whatever it looked like
        checkpoint.files.check_unchanged()
    for text in networks.texts:
        text.embeddings.position_ids = torch.arange(77)[None]  # the one buffer that no file holds
    if family.float_attention or checkpoint.unet.config.get("upcast_attention"):
        networks.unet.set_attn_processor(float_attention)
    return networks


def _text(config: dict[str, Any], pooled: bool) -> CLIPTextModel:
    """A text encoder, with the matrix of its pooled vector under the names that files have."""
    text = CLIPTextModel(CLIPTextConfig.from_dict(config, attn_implementation="sdpa"))
    if pooled:
        text.text_projection = nn.Linear(text.config.hidden_size, text.config.projection_dim, bias=False)
    return text


def check_halves(networks: Networks) -> None:
    """ExportError where a weight has no finite value in float16."""
    large = []
    for part, module in networks.named.items():
        floats = {name: tensor for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
        largest = {name: tensor.abs().max() for name, tensor in floats.items()}
        large += [f"{part}.{name} ({weight:.0f})" for name, weight in largest.items() if weight > HALF_MAX]
    if large:
        message = f"{len(large)} tensors have weights above {HALF_MAX:.0f}, fp16's largest: {', '.join(large[:5])}"
        raise ExportError(message, hint="export with --precision fp32")


def float_attention(
    attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, attention_mask: None = None
) -> Tensor:
    """diffusers' attention of a U-Net with its scores in float32: those of SD 2.x are beyond fp16's largest number."""
    context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
    rows = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
    heads = [row.float().view(*row.shape[:2], attn.heads, row.shape[2] // attn.heads).transpose(1, 2) for row in rows]
    seen = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(rows[0].shape)
    mixed: Tensor = attn.to_out[0](seen.to(hidden_states.dtype))
    return mixed


def forget(*networks: nn.Module) -> None:
    """Give back the memory of the networks' weights, in place, and of graphs that were made of them."""
    for network in networks:
        for parameter in network.parameters():
            parameter.data = torch.empty(0)
    gc.collect()  # a traced graph holds itself and, turned over, the matrices of its linear layers


class FloatNorm(nn.Module):
    """A norm that computes in float32 between half-precision neighbours."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm.float()

    def forward(self, x: Tensor) -> Tensor:
        normal: Tensor = self.norm(x.float())
        return normal.to(x.dtype)


def keep_norms_in_float(module: nn.Module) -> None:
    """Let the norms of a network in float16 compute in float32, in place."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, (nn.LayerNorm, nn.GroupNorm)) and not isinstance(parent, FloatNorm):
                setattr(parent, name, FloatNorm(child))
