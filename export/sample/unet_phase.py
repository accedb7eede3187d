"""Trains the U-Net on the autoencoder's latents, with every clip skip depth. Knows nothing of pictures' pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from captions import Writer
from latents import Latents
from networks import LAYERS, hidden_states, new_scheduler, new_unet
from text_phase import Reader, attribute_loss, end_positions, pad_positions
from torch import Tensor, nn
from torch.nn import functional
from training import Plan, Trainer, rank
from words import Words

DEPTH_SHARES = torch.tensor([0.04] * 11 + [0.18, 0.38])
DROPPED_CAPTIONS = 0.1
SNR_LIMIT = 5.0
ATTRIBUTE_WEIGHT = 0.03
TEXT_RATE = 4e-4


class Generator(nn.Module):
    """U-Net, text encoder and attribute head, trained together."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.unet, self.reader = new_unet(), reader


@dataclass(frozen=True)
class Batch:
    """Latents with their captions' ids, attribute classes and text depths."""

    latents: Tensor
    ids: Tensor
    labels: Tensor
    depths: Tensor


@dataclass(frozen=True)
class Stage:
    """One U-Net phase: its plan, pictures per process and step, pooling of latents, tokens, text trained or not."""

    plan: Plan
    pictures: int
    pooling: int
    tokens: int
    text_trained: bool


def train_unet(stage: Stage, generator: Generator, data: Latents, words: Words, work: Path) -> None:
    """One phase on the processes' own parts of the data; leaves the averaged weights in the generator."""
    generator.reader.requires_grad_(stage.text_trained)
    trainer = Trainer(generator, stage.plan, work, {"reader": TEXT_RATE})
    abar = new_scheduler().alphas_cumprod
    for step in trainer.steps():
        rng = np.random.default_rng((step, rank(), stage.pooling))
        torch.manual_seed(int(rng.integers(2**31)))
        batch = _batch(data, words, rng, stage)
        states = hidden_states(generator.reader.text, batch.ids)
        context = _context(generator.reader, batch.depths, states)
        loss = noise_loss(generator.unet, batch, context, abar)
        asked = _asked(generator.reader, batch, states) if stage.text_trained else torch.zeros(())
        trainer.update(loss + ATTRIBUTE_WEIGHT * asked, noise=float(loss.detach()), asked=float(asked.detach()))
    trainer.use_averaged()


def _batch(data: Latents, words: Words, rng: np.random.Generator, stage: Stage) -> Batch:
    """Random latents with fresh captions; some captions are dropped for guidance."""
    chosen = rng.integers(len(data.scenes), size=stage.pictures)
    writer = Writer(rng)
    captions = [writer.caption(data.scenes[i]) for i in chosen]
    kept = rng.random(stage.pictures) >= DROPPED_CAPTIONS
    ids = words([caption.text if keep else "" for caption, keep in zip(captions, kept, strict=True)])[:, : stage.tokens]
    labels = torch.tensor([caption.labels() for caption in captions]) * torch.from_numpy(kept)[:, None]
    depths = torch.multinomial(DEPTH_SHARES, stage.pictures, replacement=True)
    return Batch(functional.avg_pool2d(data.sample(chosen), stage.pooling), ids, labels, depths)


def noise_loss(unet: nn.Module, batch: Batch, context: Tensor, abar: Tensor) -> Tensor:
    """Min-SNR-weighted error of the predicted noise, with timesteps spread evenly over the batch."""
    count = len(batch.latents)
    steps = ((torch.arange(count) + torch.rand(count)) / count * len(abar)).long()
    signal = abar[steps].view(-1, 1, 1, 1)
    noise = torch.randn_like(batch.latents)
    noisy = signal.sqrt() * batch.latents + (1 - signal).sqrt() * noise
    predicted: Tensor = unet(noisy, steps, context).sample
    snr = signal / (1 - signal)
    return (snr.clamp(max=SNR_LIMIT) / snr * (predicted - noise).square()).mean()


def _context(reader: Reader, depths: Tensor, states: Tensor) -> Tensor:
    """Each picture's own depth; only the last two depths teach the text encoder, or it would answer all at once."""
    chosen = states[depths, torch.arange(len(depths))]
    taught = (depths >= LAYERS - 1)[:, None, None]
    context: Tensor = reader.text.final_layer_norm(torch.where(taught, chosen, chosen.detach()))
    return context


def _asked(reader: Reader, batch: Batch, states: Tensor) -> Tensor:
    """The attribute loss at the used depths: keeps the text encoder from forgetting its grammar."""
    positions = pad_positions(end_positions(batch.ids), batch.ids.shape[1])
    return attribute_loss(reader(states, batch.depths, positions), batch.labels, batch.depths)
