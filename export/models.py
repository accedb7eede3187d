"""A checkpoint's networks, filled from safetensors with every tensor accounted for. Knows nothing of ONNX."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from clipskip.engines import files
from clipskip.engines.errors import CheckpointError, ExportError
from clipskip.engines.shapes import Shape
from clipskip.export import families, tokenizer
from clipskip.export.checkpoint import Checkpoint, Part
from clipskip.export.families.family import Family
from clipskip.export.names import describe_keys

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


def load(checkpoint: Checkpoint) -> Networks:
    """The networks with the checkpoint's weights. CheckpointError, UnsupportedModelError, ExportError."""
    family = families.of(checkpoint)
    networks = Networks(
        family,
        checkpoint.vocabulary[tokenizer.END],
        tuple(
            _fill(_projected if use.pooled else _text, part)
            for use, part in zip(family.encoders, checkpoint.texts, strict=True)
        ),
        _fill(UNet2DConditionModel.from_config, checkpoint.unet),
        _fill(AutoencoderKL.from_config, checkpoint.vae),
    )
    for text in networks.texts:
        text.embeddings.position_ids = torch.arange(77)[None]  # the one buffer that no file holds
    if family.float_attention or checkpoint.unet.config.get("upcast_attention"):
        networks.unet.set_attn_processor(float_attention)
    checkpoint.check_unchanged()
    return networks


def _text(config: dict[str, Any]) -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig.from_dict(config, attn_implementation="sdpa"))


def _projected(config: dict[str, Any]) -> CLIPTextModel:
    """A text encoder with the matrix of its pooled vector, under the names that it has in files."""
    text = _text(config)
    text.text_projection = nn.Linear(text.config.hidden_size, text.config.projection_dim, bias=False)
    return text


def _fill(make: Callable[[dict[str, Any]], Any], part: Part) -> Any:
    """The network that `make` gives, with the part's weights; names, shapes and dtypes must fit."""
    try:
        with torch.device("meta"):  # no memory and no random numbers for weights that are replaced at once
            module = make(dict(part.config))
    except Exception as error:  # whatever the libraries make of a configuration that they do not understand
        message = f"no {part.name} can be made from {part.settings} ({type(error).__name__}: {error})"
        raise files.shortage(error) or CheckpointError(message, path=part.settings) from error
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    source = {part.modern(name): name for name in part.tensors if not name.endswith("position_ids")}
    missing, unexpected = sorted(expected.keys() - source.keys()), sorted(source.keys() - expected.keys())
    if missing or unexpected:
        what = f"{_counted('missing', missing)}, {_counted('unexpected', unexpected)}"
        what += f"; this looks like {guess}" if (guess := describe_keys(part.tensors)) else ""
        raise CheckpointError(f"{part.weights} does not hold the {part.name}: {what}", path=part.weights)
    for name, shape in expected.items():
        if (stored := part.tensors[source[name]].shape) not in (shape, (*shape, 1, 1)):
            message = f"{source[name]} has the shape {list(stored)}, the configuration asks for {list(shape)}"
            raise CheckpointError(f"{part.weights}: {message}", path=part.weights)
    module.load_state_dict(dict(_read(part, source, expected)), assign=True)
    return module.eval().requires_grad_(False)


def _counted(what: str, names: list[str]) -> str:
    return f"{len(names)} {what}" + (f" ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})" if names else "")


def _read(part: Part, source: Mapping[str, str], expected: Mapping[str, Shape]) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(part.weights, framework="pt", backend="pread") as file:  # a map would crash if the file shrank
            for name, shape in expected.items():
                tensor = file.get_tensor(source[name]).float().reshape(shape)
                if not torch.isfinite(tensor).all():
                    broken = f"{tensor.isnan().sum():d} NaN and {tensor.isinf().sum():d} infinite values"
                    hint = "the file is damaged or the model was saved broken"
                    raise CheckpointError(f"{part.weights}: {source[name]} has {broken}", path=part.weights, hint=hint)
                yield name, tensor
    except SafetensorError as error:
        raise CheckpointError(f"{part.weights} cannot be read ({error})", path=part.weights) from error


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
    heads = [row.float().unflatten(-1, (attn.heads, -1)).transpose(1, 2) for row in rows]
    seen = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    mixed: Tensor = attn.to_out[0](seen.to(hidden_states.dtype))
    return mixed


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
