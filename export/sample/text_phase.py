"""Trains the text encoder to understand captions, without pictures. Knows nothing of drawing or diffusion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from captions import Caption, Writer
from grammar import ATTRIBUTES
from networks import LAYERS, WIDTH, hidden_states, new_text_encoder
from scenes import random_scene
from torch import Tensor, nn
from torch.nn import functional
from training import Plan, Trainer
from words import Words

BATCH = 96
# No caption is longer than 34 tokens, so most steps leave out most of the padding.
SHORT_ROW, SHORT_SHARE = 40, 0.75
CLASSES = [1 + len(options) for options in ATTRIBUTES.values()]
# The depth from which each attribute is asked for. Asked for at once, five layers answer everything and the other
# seven idle; asked for one by one, each layer has something left to do and clip skip something to take away.
ASKED_FROM = torch.tensor([1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 9])


class Reader(nn.Module):
    """The text encoder with one linear head that reads every attribute, at any depth and position."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.text = new_text_encoder(tokens)
        self.head = nn.Linear(WIDTH, sum(CLASSES))

    def forward(self, states: Tensor, depths: Tensor, positions: Tensor) -> Tensor:
        """The answers of each row's hidden state at one depth and position."""
        chosen = states[depths, torch.arange(len(depths)), positions]
        answers: Tensor = self.head(self.text.final_layer_norm(chosen))
        return answers


def train_text(plan: Plan, work: Path, words: Words, seed: int) -> Reader:
    """Ask for the attributes at the end token (all layers run) and at a random pad position and depth."""
    torch.manual_seed(seed)
    reader = Reader(words.end + 1)
    trainer = Trainer(reader, plan, work)
    for step in trainer.steps():
        rng = np.random.default_rng((seed, step))
        torch.manual_seed(int(rng.integers(2**31)))
        captions = random_captions(rng, BATCH)
        ids = words([caption.text for caption in captions])[:, : SHORT_ROW if rng.random() < SHORT_SHARE else None]
        labels = torch.tensor([caption.labels() for caption in captions])
        states = hidden_states(reader.text, ids)
        ends = end_positions(ids)
        last = attribute_loss(reader(states, torch.full((BATCH,), LAYERS), ends), labels, None)
        depths = torch.randint(1, LAYERS + 1, (BATCH,))
        answers = reader(states, depths, pad_positions(ends, ids.shape[1]))
        trainer.update(last + attribute_loss(answers, labels, depths), last=float(last.detach()))
    trainer.use_averaged()
    return reader


def random_captions(rng: np.random.Generator, count: int) -> list[Caption]:
    """Captions of fresh training scenes."""
    writer = Writer(rng)
    return [writer.caption(random_scene(rng)) for _ in range(count)]


def end_positions(ids: Tensor) -> Tensor:
    """Where each row's first end token stands."""
    return (ids == ids[0, -1]).int().argmax(1)


def pad_positions(ends: Tensor, length: int) -> Tensor:
    """A random position after each end token: padding sees the whole caption too, and the U-Net attends to it."""
    return ends + 1 + (torch.rand(len(ends)) * (length - 1 - ends)).long()


def attribute_loss(answers: Tensor, labels: Tensor, depths: Tensor | None) -> Tensor:
    """Mean cross-entropy of the attributes, [n, classes] against [n, 11]; at a depth only those asked for there."""
    losses = [functional.cross_entropy(part, label, reduction="none") for part, label in _by_attribute(answers, labels)]
    stacked = torch.stack(losses, 1)
    return stacked.mean() if depths is None else (stacked * (depths[:, None] >= ASKED_FROM)).mean()


def _by_attribute(answers: Tensor, labels: Tensor) -> Sequence[tuple[Tensor, Tensor]]:
    return list(zip(torch.split(answers, CLASSES, 1), labels.unbind(1), strict=True))


@torch.no_grad()
def understanding(reader: Reader, words: Words, seed: int) -> list[float]:
    """The share of captions of which all attributes are read right at the end token, for depths 0..12."""
    captions = random_captions(np.random.default_rng(seed), 256)
    ids = words([caption.text for caption in captions])
    labels = torch.tensor([caption.labels() for caption in captions])
    states, ends = hidden_states(reader.text, ids), end_positions(ids)
    answers = torch.stack([reader(states, torch.full_like(ends, depth), ends) for depth in range(LAYERS + 1)])
    parts = zip(torch.split(answers, CLASSES, 2), labels.unbind(1), strict=True)
    right = [part.argmax(2) == label for part, label in parts]
    return [float(value) for value in torch.stack(right).all(0).float().mean(1)]
