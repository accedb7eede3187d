"""The training set as latents: which scenes, and what the autoencoder made of them. Also the decoder's last phase."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from scenes import Scene, draw, random_scene
from torch import Tensor
from training import Plan, Trainer, rank, write_torch
from vae_phase import decibels, picture_loss, to_tensor

ENCODED_AT_ONCE = 32
DECODED_PICTURES = 4
LATENT_NOISE = 0.1


@dataclass(frozen=True)
class Latents:
    """A process's part of the training set: scenes with the posterior's mean and deviation, already scaled."""

    scenes: list[Scene]
    seeds: list[tuple[int, int, int]]
    mean: Tensor
    deviation: Tensor

    def sample(self, chosen: np.ndarray) -> Tensor:
        """Latents of some scenes, with the posterior's noise."""
        mean = self.mean[chosen]
        return mean + self.deviation[chosen] * torch.randn_like(mean)


def scene_and_picture(seed: tuple[int, int, int]) -> tuple[Scene, np.ndarray]:
    """The training scene of a seed, and its picture."""
    rng = np.random.default_rng(seed)
    scene = random_scene(rng)
    return scene, draw(scene, rng)


def encoded(vae: AutoencoderKL, seed: int, count: int, work: Path) -> Latents:
    """Draw and encode this process's scenes, once; later calls read the file."""
    seeds = [(seed, rank(), i) for i in range(count)]
    path = work / f"latents.{rank()}.pt"
    if not path.exists():
        write_torch(_encode(vae, seeds), path)
    mean, deviation = torch.load(path, weights_only=True) * vae.config.scaling_factor
    return Latents([scene_and_picture(seed)[0] for seed in seeds], seeds, mean, deviation)


@torch.no_grad()
def _encode(vae: AutoencoderKL, seeds: list[tuple[int, int, int]]) -> Tensor:
    parts = []
    for start in range(0, len(seeds), ENCODED_AT_ONCE):
        drawn = [scene_and_picture(seed)[1] for seed in seeds[start : start + ENCODED_AT_ONCE]]
        posterior = vae.encode(to_tensor(np.stack(drawn))).latent_dist
        parts.append(torch.stack([posterior.mean, posterior.std]))
    return torch.cat(parts, 1)


@torch.no_grad()
def scaling_factor(vae: AutoencoderKL, seed: int) -> float:
    """One over the standard deviation of the latents, from 256 pictures."""
    return round(1.0 / float(_encode(vae, [(seed, 9, i) for i in range(256)])[0].std()), 4)


def train_decoder(plan: Plan, vae: AutoencoderKL, data: Latents, work: Path) -> None:
    """Teach the decoder alone to restore whole pictures from slightly noisy latents."""
    vae.requires_grad_(False)
    for part in (vae.decoder, vae.post_quant_conv):
        part.requires_grad_(True)
    trainer = Trainer(vae, plan, work)
    for step in trainer.steps():
        rng = np.random.default_rng((step, rank()))
        torch.manual_seed(int(rng.integers(2**31)))
        chosen = rng.integers(len(data.scenes), size=DECODED_PICTURES)
        target = to_tensor(np.stack([scene_and_picture(data.seeds[i])[1] for i in chosen]))
        latents = data.sample(chosen)
        latents = latents + LATENT_NOISE * torch.rand(len(latents), 1, 1, 1) * torch.randn_like(latents)
        restored = vae.decode(latents / vae.config.scaling_factor).sample
        trainer.update(picture_loss(restored, target), decibels=decibels(restored, target))
    trainer.use_averaged()
