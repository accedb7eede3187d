"""Trains the autoencoder on drawn pictures, and later its decoder alone. Knows nothing of captions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from networks import new_vae
from scenes import SIZE, draw, random_scene
from torch import Tensor
from torch.nn import functional
from training import Plan, Trainer

CROP = 64
CROPS, WHOLES = 10, 6
WHOLE_SHARE = 0.35
KL_WEIGHT = 5e-4


def train_vae(plan: Plan, work: Path, seed: int, device: torch.device) -> AutoencoderKL:
    """The whole autoencoder, on crops (cheap, sharp corners) and on whole pictures (places)."""
    torch.manual_seed(seed)
    vae = new_vae().to(device)
    trainer = Trainer(vae, plan, work)
    for step in trainer.steps():
        rng = np.random.default_rng((seed, step))
        target = _batch(rng, device)
        posterior = vae.encode(target).latent_dist
        restored = vae.decode(posterior.sample()).sample
        loss = picture_loss(restored, target) + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()
        trainer.update(loss, decibels=decibels(restored, target))
    trainer.use_averaged()
    return vae


def pictures(rng: np.random.Generator, count: int, device: torch.device) -> Tensor:
    """Freshly drawn training pictures, [count, 3, 128, 128] in -1..1."""
    return to_tensor(np.stack([draw(random_scene(rng), rng) for _ in range(count)]), device)


def to_tensor(drawn: np.ndarray, device: torch.device) -> Tensor:
    """uint8 [n, h, w, 3] to float [n, 3, h, w] in -1..1."""
    return torch.from_numpy(drawn).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def _batch(rng: np.random.Generator, device: torch.device) -> Tensor:
    if rng.random() < WHOLE_SHARE:
        return pictures(rng, WHOLES, device)
    whole = pictures(rng, CROPS, device)
    corners = rng.integers(0, SIZE - CROP + 1, (CROPS, 2))
    chosen = zip(whole, corners, strict=True)
    return torch.stack([picture[:, y : y + CROP, x : x + CROP] for picture, (y, x) in chosen])


def picture_loss(restored: Tensor, target: Tensor) -> Tensor:
    """|d| + d^2, four times as heavy near an edge of the target."""
    difference = restored - target
    across = functional.pad((target[..., 1:] - target[..., :-1]).abs(), (0, 1))
    down = functional.pad((target[..., 1:, :] - target[..., :-1, :]).abs(), (0, 0, 0, 1))
    edge = torch.maximum(across, down).amax(1, keepdim=True).clamp(max=1.0)
    weight = 1.0 + 3.0 * functional.max_pool2d(edge, 5, stride=1, padding=2)
    return (weight * (difference.abs() + difference.square())).mean()


def decibels(restored: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of pictures in -1..1."""
    return 10 * torch.log10(4.0 / functional.mse_loss(restored.detach(), target))
