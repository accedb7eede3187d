"""Loads a checkpoint folder and draws pictures with it: DDIM in a few lines of torch, at any clip skip depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from networks import LAYERS, hidden_states, new_scheduler
from torch import Tensor
from transformers import CLIPTextModel
from words import Words

STEPS = 20
GUIDANCE = 5.0
TOGETHER = {"cuda": 256, "cpu": 16}


@dataclass(frozen=True)
class Checkpoint:
    """The networks of one folder, in fp32."""

    words: Words
    text: CLIPTextModel
    unet: UNet2DConditionModel
    vae: AutoencoderKL


def load(folder: Path, device: torch.device) -> Checkpoint:
    """Read a folder in diffusers' layout."""
    kinds = {"text_encoder": CLIPTextModel, "unet": UNet2DConditionModel, "vae": AutoencoderKL}
    loaded = {name: kind.from_pretrained(folder / name).float().eval().to(device) for name, kind in kinds.items()}
    return Checkpoint(Words(folder / "tokenizer"), loaded["text_encoder"], loaded["unet"], loaded["vae"])


@torch.no_grad()
def pictures(model: Checkpoint, prompts: Sequence[str], clip_skip: int, seed: int) -> np.ndarray:
    """One picture per prompt, uint8 [n, 128, 128, 3]; the empty prompt is encoded at the same depth."""
    noise = torch.randn(len(prompts), 4, 16, 16, generator=torch.Generator().manual_seed(seed))
    empty = encode(model, [""], clip_skip)
    parts = []
    together = TOGETHER[empty.device.type]
    for start in range(0, len(prompts), together):
        chosen = slice(start, start + together)
        context = encode(model, prompts[chosen], clip_skip)
        latents = ddim(model.unet, noise[chosen].to(context.device), context, empty.expand_as(context))
        parts.append(model.vae.decode(latents / model.vae.config.scaling_factor).sample)
    drawn = (torch.cat(parts).clamp(-1, 1) + 1) * 127.5
    return drawn.round().byte().permute(0, 2, 3, 1).cpu().numpy()


def encode(model: Checkpoint, prompts: Sequence[str], clip_skip: int) -> Tensor:
    """The final LayerNorm of the hidden states after 13 - clip_skip layers, [n, 77, 64]."""
    states = hidden_states(model.text, torch.from_numpy(model.words(prompts)).to(model.text.device))
    context: Tensor = model.text.final_layer_norm(states[LAYERS + 1 - clip_skip])
    return context


def ddim(unet: UNet2DConditionModel, x: Tensor, context: Tensor, empty: Tensor) -> Tensor:
    """Song et al. 2020, eq. 12 with eta = 0, on evenly spaced timesteps, with classifier-free guidance."""
    abar = new_scheduler().alphas_cumprod.tolist()
    steps = [int(t) for t in range(1000 - 1000 // STEPS + 1, 0, -(1000 // STEPS))]
    both = torch.cat([empty, context])
    for t, following in zip(steps, [*steps[1:], 0], strict=True):
        without, with_prompt = unet(torch.cat([x, x]), t, both).sample.chunk(2)
        e = without + GUIDANCE * (with_prompt - without)
        x0 = (x - (1 - abar[t]) ** 0.5 * e) / abar[t] ** 0.5
        x = abar[following] ** 0.5 * x0 + (1 - abar[following]) ** 0.5 * e
    return x
