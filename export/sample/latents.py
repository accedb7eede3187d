"""The training set as latents, and the decoder's last phase. Knows nothing of diffusion."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from drawing import Drawn
from torch import Tensor
from training import Plan, Trainer
from vae_phase import decibels, picture_loss, pictures, to_tensor

DECODED_PICTURES = 4
LATENT_NOISE = 0.1


@dataclass(frozen=True)
class Latents:
    """The training set on the device: the posterior's mean and deviation, scaled, and each picture's captions."""

    mean: Tensor
    deviation: Tensor
    ids: Tensor
    labels: Tensor


@torch.no_grad()
def encoded(vae: AutoencoderKL, parts: Generator[Drawn, None, None], until: float) -> Latents:
    """Encode the parts of the training set as they come, until time.monotonic() says `until`."""
    rows: list[tuple[Tensor, ...]] = []
    with closing(parts):
        for part in parts:
            posterior = vae.encode(to_tensor(part.pictures, vae.device)).latent_dist
            texts = (torch.from_numpy(each).to(vae.device) for each in (part.ids, part.labels))
            rows.append((posterior.mean, posterior.std, *texts))
            if time.monotonic() > until:
                break
    mean, deviation, ids, labels = (torch.cat(column) for column in zip(*rows, strict=True))
    scale = vae.config.scaling_factor
    return Latents(mean * scale, deviation * scale, ids, labels)


@torch.no_grad()
def scaling_factor(vae: AutoencoderKL, seed: int) -> float:
    """One over the standard deviation of the latents, from 256 pictures."""
    rng = np.random.default_rng((seed, 9))
    means = [vae.encode(pictures(rng, 32, vae.device)).latent_dist.mean for _ in range(8)]
    return round(1.0 / float(torch.cat(means).std()), 4)


def train_decoder(plan: Plan, vae: AutoencoderKL, work: Path) -> None:
    """Teach the decoder alone to restore whole pictures from slightly noisy latents."""
    vae.requires_grad_(False)
    for part in (vae.decoder, vae.post_quant_conv):
        part.requires_grad_(True)
    trainer = Trainer(vae, plan, work)
    for step in trainer.steps():
        torch.manual_seed(step)
        target = pictures(np.random.default_rng((step, 1)), DECODED_PICTURES, vae.device)
        with torch.no_grad():
            latents = vae.encode(target).latent_dist.sample() * vae.config.scaling_factor
            strength = LATENT_NOISE * torch.rand(len(latents), 1, 1, 1, device=vae.device)
            latents = latents + strength * torch.randn_like(latents)
        restored = vae.decode(latents / vae.config.scaling_factor).sample
        trainer.update(picture_loss(restored, target), decibels=decibels(restored, target))
    trainer.use_averaged()
