"""The four graphs as torch modules, with their signatures: float32 outside the networks. Knows nothing of ONNX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from clipskip.engines.manifest import DECODE, AxisRange, Dim, ModelFacts, Port, Role
from clipskip.engines.shapes import LATENT, SLOTS, TOKENS

FLOATS = {"fp32": "float32", "fp16": "float16"}  # a port's type by the precision of the network
B, N, R, T, E, H, W = map(Dim, "BNRTEhw")  # images, rows of the U-Net, rows of text, tokens, concepts, latent size
_LATENTS = (B, 4, H, W)
_PICTURE = Port("image", "uint8", (B, Dim("h", LATENT), Dim("w", LATENT), 3))


@dataclass(frozen=True)
class Graph:
    """A module to trace, with the names, types and dynamic axes that the runtime relies on."""

    role: str
    module: nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


class Text(nn.Module):
    """Token ids -> the context at every depth: LN(h[0]), LN(h[1]), ..., the checkpoint's own final LayerNorm."""

    def __init__(self, encoder: CLIPTextModel) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, tokens: Tensor, concepts: Tensor) -> tuple[Tensor, ...]:
        table = self.encoder.embeddings.token_embedding
        own = table(tokens.clamp(max=table.num_embeddings - 1))
        learnt = concepts[(tokens - table.num_embeddings).clamp(min=0)].to(own.dtype)
        is_learnt = (tokens >= table.num_embeddings)[..., None]
        hidden = torch.where(is_learnt, learnt, own) + self.encoder.embeddings.position_embedding.weight
        depths = [hidden]
        for layer in self.encoder.encoder.layers:
            depths.append(layer(depths[-1], None, is_causal=True))
        return tuple(self.encoder.final_layer_norm(state) for state in depths)


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

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet
        unet.num_upsamplers = 20  # no size is a multiple of 2**20, so diffusers tells each the size of what it joins
        for block in unet.up_blocks:
            block.upsamplers = block.upsamplers and nn.ModuleList(map(Upsample, block.upsamplers))

    def forward(
        self, state: Tensor, rows: Tensor, c_in: Tensor, timestep: Tensor, context: Tensor, mix: Tensor,
        mask: Tensor, known: Tensor, pull: Tensor, noise: Tensor, update: Tensor,
    ) -> Tensor:  # fmt: skip
        point = state[:, 0]
        seen = (point * c_in[:, None, None, None])[rows].to(context.dtype)
        out = self.unet(seen, timestep[rows], context, return_dict=False)[0].float()
        # Summed over the first axis, row by row: a matrix product would round differently for every size of batch.
        # A row of weight 0 is another image's: were it multiplied, its NaN would be everybody's.
        weights = mix.T[:, :, None, None, None]
        out = torch.where(weights == 0, 0.0, weights * out[:, None]).sum(dim=0)
        kept = pull[:, 0, None, None, None] * point + pull[:, 1, None, None, None] * known
        out = mask * out + (1 - mask) * kept
        memory = torch.cat([state, out[:, None], noise[:, None]], dim=1)
        # Not as a matrix product: a GPU makes it with TF32's ten bits, and to forbid those slows half precision down.
        return (update[..., None, None, None] * memory[:, None]).sum(dim=2)


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


def text_graph(encoder: CLIPTextModel, facts: ModelFacts, precision: str) -> Graph:
    """All depths in one graph; `onnxfile.cut` makes one graph of each."""
    shape = R, TOKENS, facts.width
    outputs = tuple(Port(f"context-{depth:02}", FLOATS[precision], shape) for depth in range(facts.layers + 1))
    tokens, concepts = Port("tokens", "int64", (R, TOKENS)), Port("concepts", "float32", (E, facts.width))
    return Graph("text", Text(encoder), (tokens, concepts), outputs)


def step_graph(unet: UNet2DConditionModel, facts: ModelFacts, precision: str) -> Graph:
    """The signature is section 3 of the design, letter for letter."""
    state = B, SLOTS, *_LATENTS[1:]
    inputs = (
        Port("state", "float32", state),
        Port("rows", "int64", (N,)),
        Port("c_in", "float32", (B,)),
        Port("timestep", "float32", (B,)),
        Port("context", FLOATS[precision], (N, T, facts.width)),
        Port("mix", "float32", (B, N)),
        Port("mask", "float32", (B, 1, H, W)),
        Port("known", "float32", _LATENTS),
        Port("pull", "float32", (B, 2)),
        Port("noise", "float32", _LATENTS),
        Port("update", "float32", (B, SLOTS, SLOTS + 2)),
    )
    return Graph("step", Step(unet), inputs, (Port("next_state", "float32", state),))


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
