"""Trains the U-Net on the autoencoder's latents and the text encoder's last but one hidden state. Knows no pixels.

The last text layer belongs to another task, as in CLIP: it makes one vector of a caption that matches its picture.
So the U-Net never sees what that layer gives, as a model that is used with clip skip 2.
"""

from __future__ import annotations

from pathlib import Path

import torch
from latents import Latents
from networks import LAYERS, USED, WIDTH, hidden_states, new_scheduler, new_text_encoder, new_unet
from text_phase import Reader, at, attribute_loss, end_positions, pad_positions
from torch import Tensor, nn
from torch.nn import functional
from training import Plan, Trainer, captured
from transformers import CLIPTextModel

BATCH = {"cuda": 256, "cpu": 32}
DROPPED_CAPTIONS = 0.1
SNR_LIMIT = 5.0
ATTRIBUTE_WEIGHT = 0.03
LAST = f"reader.text.encoder.layers.{LAYERS - 1}."
RATES = {LAST: 2e-3, "matcher.": 2e-3, "reader.text.": 2e-4}  # all else at the plan's
SHARPEST = 100.0
LOUD = 3.0  # how much more than a fresh layer the last one says at first: after eleven others it would hardly be heard


class Matcher(nn.Module):
    """Tells which caption belongs to which latents: the task of the last text layer. It is not kept.

    It has no projection of captions as CLIP has: the last hidden state itself must become the vector, so it moves far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.eye = nn.Sequential(
            nn.Conv2d(4, 64, 3, 2, 1), nn.GELU(), nn.Conv2d(64, 128, 3, 2, 1), nn.GELU(),
            nn.Conv2d(128, 128, 3, 2, 1), nn.GELU(), nn.Flatten(), nn.Linear(128 * 2 * 2, WIDTH),
        )  # fmt: skip
        self.sharpness = nn.Parameter(torch.tensor(2.7))

    def forward(self, latents: Tensor, pooled: Tensor) -> Tensor:
        """How well each caption matches each picture, [captions, pictures]."""
        seen = functional.normalize(self.eye(latents), dim=1)
        told = functional.normalize(pooled, dim=1)
        return self.sharpness.exp().clamp(max=SHARPEST) * told @ seen.T


class Generator(nn.Module):
    """U-Net, text encoder with its attribute head, and matcher, trained together."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.unet, self.reader, self.matcher = new_unet(), reader, Matcher()

    def begin_last_layer(self) -> None:
        """Forget what the last text layer was trained for before."""
        text = self.reader.text
        fresh = new_text_encoder(text.config.vocab_size).encoder.layers[-1]
        with torch.no_grad():
            for outwards in (fresh.self_attn.out_proj, fresh.mlp.fc2):
                outwards.weight.mul_(LOUD)
        text.encoder.layers[-1].load_state_dict(fresh.state_dict())


class Chance:
    """The random numbers of a step, in places that stay: a captured graph reads them, and they are drawn outside."""

    def __init__(self, pictures: int, device: torch.device) -> None:
        self.source = torch.Generator(device)
        self.even = torch.zeros(6, pictures, device=device)
        self.normal = torch.zeros(2, pictures, 4, 16, 16, device=device)

    def draw(self, seed: int | None = None) -> None:
        """New numbers; a seed is set once in a while, at a start and where a phase is resumed."""
        if seed is not None:
            self.source.manual_seed(seed)
        self.even.uniform_(generator=self.source)
        self.normal.normal_(generator=self.source)

    def below(self, row: int, count: int) -> Tensor:
        """One whole number per picture, 0 to count - 1."""
        return (self.even[row] * count).long().clamp(max=count - 1)


def train_unet(plan: Plan, generator: Generator, data: Latents, empty: Tensor, work: Path, until: float) -> None:
    """Train until time.monotonic() says `until`; leaves the averaged weights in the generator.

    `empty`: the token ids of the empty caption.
    """
    device = data.mean.device
    text = generator.reader.text
    text.embeddings.requires_grad_(False)  # every word has been learned
    text.final_layer_norm.requires_grad_(False)  # of both tasks
    trainer = Trainer(generator, plan, work, RATES, until)
    chance = Chance(BATCH[device.type], device)
    abar = new_scheduler().alphas_cumprod.to(device)

    def learn() -> Tensor:
        noise, asked, match = losses(generator, data, empty, chance, abar)
        trainer.learn(noise + ATTRIBUTE_WEIGHT * asked + match)
        return torch.stack([noise, asked, match]).detach()

    step = None
    for number in trainer.steps():
        chance.draw(number if step is None else None)
        step = step or captured(learn, device)
        noise, asked, match = step()
        trainer.show(noise=noise, asked=asked, match=match)
    trainer.use_averaged()


def losses(
    generator: Generator, data: Latents, empty: Tensor, chance: Chance, abar: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of one random batch: the noise's error, the attributes' at random depths below the last, the matcher's."""
    reader, (pictures, captions, _) = generator.reader, data.ids.shape
    rows, caption = chance.below(0, pictures), chance.below(1, captions)
    kept = chance.even[2] >= DROPPED_CAPTIONS
    ids = torch.where(kept[:, None], data.ids[rows, caption].long(), empty)
    labels = data.labels[rows, caption].long() * kept[:, None]
    latents = data.mean[rows] + data.deviation[rows] * chance.normal[0]
    states = hidden_states(reader.text, ids)
    context = reader.text.final_layer_norm(states[USED])
    noise = noise_loss(generator.unet, latents, context, abar, chance)
    ends, depths = end_positions(ids), 1 + chance.below(3, USED)
    asked = attribute_loss(reader(states, depths, pad_positions(ends, chance.even[4])), labels, depths)
    return noise, asked, match_loss(generator.matcher(latents, pooled(reader.text, states[USED].detach(), ends)), kept)


def pooled(text: CLIPTextModel, states: Tensor, ends: Tensor) -> Tensor:
    """Captions as vectors: what the last layer alone makes of the states before it, at the end tokens."""
    causal = torch.full((states.shape[1],) * 2, -torch.inf, device=states.device).triu(1)
    last = text.encoder.layers[-1](states, attention_mask=causal[None, None])
    chosen = at(last[None], torch.zeros_like(ends), ends)
    vectors: Tensor = text.final_layer_norm(chosen)
    return vectors


def noise_loss(unet: nn.Module, latents: Tensor, context: Tensor, abar: Tensor, chance: Chance) -> Tensor:
    """Min-SNR-weighted error of the predicted noise, with timesteps spread evenly over the batch."""
    count, noise = len(latents), chance.normal[1]
    places = (torch.arange(count, device=latents.device) + chance.even[5]) / count
    steps = (places * len(abar)).long().clamp(max=len(abar) - 1)
    signal = abar[steps].view(-1, 1, 1, 1)
    noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
    predicted: Tensor = unet(noisy, steps, context).sample
    snr = signal / (1 - signal)
    return (snr.clamp(max=SNR_LIMIT) / snr * (predicted - noise).square()).mean()


def match_loss(matches: Tensor, kept: Tensor) -> Tensor:
    """Cross-entropy of finding each caption's picture and each picture's caption (Radford et al. 2021, fig. 3)."""
    right = torch.arange(len(matches), device=matches.device)
    both = [functional.cross_entropy(way, right, reduction="none") for way in (matches, matches.T)]
    return (torch.stack(both) * kept).mean()
