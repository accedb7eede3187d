"""The four graphs as torch modules, with their signatures: float32 outside the networks. Knows nothing of ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from clipskip.engines.manifest import DECODE, AxisRange, Dim, ModelFacts, Port, Role
from clipskip.engines.shapes import LATENT, REMEMBERED, SLOTS, TOKENS
from clipskip.export.families.family import INPAINTING, Family
from clipskip.export.models import Networks

FLOATS = {"fp32": "float32", "fp16": "float16"}  # a port's type by the precision of the network
B, N, R, T, E, H, W = map(Dim, "BNRTEhw")  # images, rows of the U-Net, rows of text, tokens, concepts, latent size
_LATENTS = (B, 4, H, W)
# What a U-Net of more channels sees behind the latents, in this order.
INPAINTING_PORTS = (Port("inpaint_mask", "float32", (B, 1, H, W)), Port("inpaint_latents", "float32", _LATENTS))
_PICTURE = Port("image", "uint8", (B, Dim("h", LATENT), Dim("w", LATENT), 3))


@dataclass(frozen=True)
class Graph:
    """A module to trace, with the names, types and dynamic axes that the runtime relies on."""

    role: str
    module: nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


class Text(nn.Module):
    """Token ids -> the context at each of the depths, all encoders side by side; then what else they give.

    A depth is named after the layers that the first encoder keeps; the others leave out as many as it does.
    """

    def __init__(self, networks: Networks, facts: ModelFacts) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(networks.texts)
        self.uses, self.end, self.vocabulary = networks.family.encoders, networks.end, facts.vocabulary
        self.left_out = [facts.layers - depth for depth in depths(facts)]

    def forward(self, tokens: Tensor, concepts: Tensor) -> tuple[Tensor, ...]:
        is_end = tokens == self.end
        ended = is_end.float() @ torch.ones(TOKENS, TOKENS).triu(1) > 0  # an end token came before
        contexts: list[list[Tensor]] = [[] for _ in self.left_out]
        pooled = []
        encoders: Any = self.encoders
        parts = torch.split(concepts, [encoder.config.hidden_size for encoder in encoders], dim=-1)
        for encoder, use, learnt in zip(encoders, self.uses, parts, strict=True):
            padded = tokens if use.padding is None else torch.where(ended, use.padding, tokens)
            states = self.states(encoder, padded, learnt)
            for context, left_out in zip(contexts, self.left_out, strict=True):
                state = states[len(states) - 1 - left_out]
                context.append(encoder.final_layer_norm(state) if use.normed else state)
            if use.pooled:
                first_end = torch.logical_and(is_end, ~ended)[..., None]
                last = torch.where(first_end, encoder.final_layer_norm(states[-1]), 0.0)
                pooled.append(encoder.text_projection(last.sum(dim=1)))
        return *(torch.cat(context, dim=-1) for context in contexts), *pooled

    def states(self, encoder: CLIPTextModel, tokens: Tensor, concepts: Tensor) -> list[Tensor]:
        """What goes into the first layer and comes out of each."""
        table = encoder.embeddings.token_embedding
        own = table(tokens.clamp(max=self.vocabulary - 1))
        learnt = concepts[(tokens - self.vocabulary).clamp(min=0)].to(own.dtype)
        hidden = torch.where((tokens >= self.vocabulary)[..., None], learnt, own)
        states = [hidden + encoder.embeddings.position_embedding.weight]
        for layer in encoder.encoder.layers:
            states.append(layer(states[-1], None, is_causal=True))
        return states


class Upsample(nn.Module):
    """diffusers' upsampler to a given size, without the branches on sizes that torch cannot trace."""

    def __init__(self, upsampler: Any) -> None:
        super().__init__()
        self.conv = upsampler.conv

    def forward(self, hidden: Tensor, size: tuple[int, int]) -> Tensor:
        upsampled: Tensor = self.conv(nn.functional.interpolate(hidden, size=size, mode="nearest"))
        return upsampled


class Step(nn.Module):
    """One denoising step of a whole batch: U-Net, guidance, inpainting mask, solver."""

    def __init__(self, unet: UNet2DConditionModel, family: Family, added: Sequence[Port] = ()) -> None:
        super().__init__()
        self.unet, self.family = unet, family
        self.added = [port.name for port in added]
        unet.num_upsamplers = 20  # no size is a multiple of 2**20, so diffusers tells each the size of what it joins
        for block in unet.up_blocks:
            block.upsamplers = block.upsamplers and nn.ModuleList(map(Upsample, block.upsamplers))

    def forward(
        self, state: Tensor, rows: Tensor, c_in: Tensor, timestep: Tensor, context: Tensor, mix: Tensor,
        reference: Tensor, rescale: Tensor, mask: Tensor, known: Tensor, pull: Tensor, noise: Tensor, update: Tensor,
        *added: Tensor,
    ) -> Tensor:  # fmt: skip
        point = state[:, 0]
        inputs = dict(zip(self.added, added, strict=True))
        joined = [inputs[port.name] for port in INPAINTING_PORTS if port.name in inputs]
        seen = torch.cat([point * c_in[:, None, None, None], *joined], dim=1)[rows].to(context.dtype)
        conditions = self.family.conditions(inputs, rows)
        out = self.unet(seen, timestep[rows], context, return_dict=False, **conditions)[0].float()
        # Summed over the first axis, row by row: a matrix product would round differently for every size of batch.
        # A row of weight 0 is another image's: were it multiplied, its NaN would be everybody's.
        weights = torch.stack([mix, reference], dim=1).permute(2, 0, 1)[..., None, None, None]
        outs = torch.where(weights == 0, 0.0, weights * out[:, None, None]).sum(dim=0)
        outs = outs * rescaling(outs, rescale)
        kept = pull[:, 0, None, None, None] * point + pull[:, 1, None, None, None] * known
        outs = mask[:, None] * outs + ((1 - mask) * kept)[:, None]
        memory = torch.cat([state[:, :REMEMBERED], outs, noise[:, None]], dim=1)
        # Not as a matrix product: a GPU makes it with TF32's ten bits, and to forbid those slows half precision down.
        return (update[..., None, None, None] * memory[:, None]).sum(dim=2)


def rescaling(outs: Tensor, rescale: Tensor) -> Tensor:
    """What brings a guided output part of the way to the reference's deviation (Lin et al. 2023, eq. 15 and 16).

    `outs` [B,2,4,h,w] are both; the factor is that of each, exactly 1 for images whose `rescale` [B] is 0.
    """
    centred = outs - outs.mean(dim=(2, 3, 4), keepdim=True)
    spread: Tensor = torch.linalg.vector_norm(centred, dim=(2, 3, 4), keepdim=True)
    ratio = spread[:, 1:] / spread.clamp(min=1e-20)  # an empty slot has no spread, and its ratio is finite all the same
    return 1 + rescale[:, None, None, None, None] * (ratio - 1)


class Decode(nn.Module):
    """Latents -> 8-bit pictures, and for each whether the decoder gave finite numbers."""

    def __init__(self, vae: AutoencoderKL | AutoencoderTiny) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        scaled = (latents / self.vae.config.scaling_factor).to(next(self.vae.decoder.parameters()).dtype)
        decoded = self.vae.decode(scaled, return_dict=False)[0].float()
        finite = decoded.isfinite().flatten(1).all(1)  # before the clamp, which may turn a NaN into a number
        picture = ((decoded / 2 + 0.5).clamp(0, 1) * 255).round()
        return picture.permute(0, 2, 3, 1).to(torch.uint8), finite  # cast last: TensorRT has uint8 only at the border


class Encode(nn.Module):
    """8-bit pictures -> mean and standard deviation of their scaled latents."""

    def __init__(self, vae: AutoencoderKL) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        pixels = image.float().permute(0, 3, 1, 2) / 127.5 - 1  # cast first: TensorRT has uint8 only at the border
        moments = self.vae.encode(pixels.to(self.vae.encoder.conv_in.weight.dtype)).latent_dist
        scale = self.vae.config.scaling_factor
        return moments.mean.float() * scale, (moments.logvar.float() / 2).exp() * scale


def depths(facts: ModelFacts) -> list[int]:
    """All numbers of layers that text graphs keep."""
    return sorted({*facts.kept})


def text_graph(networks: Networks, facts: ModelFacts, precision: str) -> Graph:
    """All depths in one graph; `onnxfile.cut` makes one graph of each."""
    shape, dtype = (R, TOKENS, facts.width), FLOATS[precision]
    contexts = tuple(Port(f"context-{depth:02}", dtype, shape) for depth in depths(facts))
    used = zip(networks.texts, networks.family.encoders, strict=True)
    pooled = tuple(Port("pooled", dtype, (R, text.config.projection_dim)) for text, use in used if use.pooled)
    tokens, concepts = Port("tokens", "int64", (R, TOKENS)), Port("concepts", "float32", (E, facts.width))
    return Graph("text", Text(networks, facts), (tokens, concepts), contexts + pooled)


def step_graph(networks: Networks, facts: ModelFacts, precision: str) -> Graph:
    """The signature is section 3 of the design, letter for letter, and what the model has beside it."""
    unet, family = networks.unet, networks.family
    added = (INPAINTING_PORTS if unet.config.in_channels == INPAINTING else ()) + family.inputs(
        unet.config, FLOATS[precision]
    )
    state = B, SLOTS, *_LATENTS[1:]
    inputs = (
        Port("state", "float32", state),
        Port("rows", "int64", (N,)),
        Port("c_in", "float32", (B,)),
        Port("timestep", "float32", (B,)),
        Port("context", FLOATS[precision], (N, T, facts.width)),
        Port("mix", "float32", (B, N)),
        Port("reference", "float32", (B, N)),
        Port("rescale", "float32", (B,)),
        Port("mask", "float32", (B, 1, H, W)),
        Port("known", "float32", _LATENTS),
        Port("pull", "float32", (B, 2)),
        Port("noise", "float32", _LATENTS),
        Port("update", "float32", (B, SLOTS, REMEMBERED + 3)),
        *added,
    )
    return Graph("step", Step(unet, family, added), inputs, (Port("next_state", "float32", state),))


def decode_graph(vae: AutoencoderKL | AutoencoderTiny, role: Role = DECODE) -> Graph:
    outputs = _PICTURE, Port("finite", "bool", (B,))
    return Graph(str(role), Decode(vae), (Port("latents", "float32", _LATENTS),), outputs)


def encode_graph(vae: AutoencoderKL) -> Graph:
    outputs = Port("mean", "float32", _LATENTS), Port("std", "float32", _LATENTS)
    return Graph("encode", Encode(vae), (_PICTURE,), outputs)


def axes(ports: tuple[Port, ...], facts: ModelFacts) -> dict[str, AxisRange]:
    """What each dynamic axis of these ports may be. The graphs have no bounds; these are those of a sane request."""
    usual = facts.default_size // LATENT
    side = AxisRange(min(8, usual), usual, max(4 * usual, 256))
    limits = {
        "B": AxisRange(1, 1, 64), "N": AxisRange(1, 2, 256), "R": AxisRange(1, 2, 1024), "E": AxisRange(1, 1, 65536),
        "T": AxisRange(TOKENS, TOKENS, 64 * TOKENS), "h": side, "w": side,
    }  # fmt: skip
    used = {size.axis for port in ports for size in port.shape if isinstance(size, Dim)}
    return {name: limit for name, limit in limits.items() if name in used}
