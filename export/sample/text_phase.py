"""Trains the text encoder to understand captions, without pictures. Knows nothing of drawing or diffusion."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from captions import Caption, Writer
from grammar import ATTRIBUTES
from networks import LAYERS, USED, WIDTH, hidden_states, new_text_encoder
from scenes import random_scene
from torch import Tensor, nn
from torch.nn import functional
from training import Plan, Trainer
from words import POSITIONS, Words

BATCH = 96
# No caption is longer than 34 tokens, so most steps leave out most of the padding.
SHORT_ROW, SHORT_SHARE = 40, 0.75
CLASSES = [1 + len(options) for options in ATTRIBUTES.values()]
# The depth from which each attribute is asked for. Asked for at once, five layers answer everything and the other
# seven idle; asked for one by one, each layer has something left to do and clip skip something to take away.
ASKED_FROM = (1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 9)


class Reader(nn.Module):
    """The text encoder with one linear head that reads every attribute, at any depth and position."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.text = new_text_encoder(tokens)
        self.head = nn.Linear(WIDTH, sum(CLASSES))

    def forward(self, states: Tensor, depths: Tensor, positions: Tensor) -> Tensor:
        """The answers of each row's hidden state at one depth and position."""
        answers: Tensor = self.head(self.text.final_layer_norm(at(states, depths, positions)))
        return answers


def at(states: Tensor, depths: Tensor, positions: Tensor) -> Tensor:
    """Each row's hidden state at one depth and position, [n, 64]; by one index, which a CUDA graph takes back too."""
    _, count, length, _ = states.shape
    rows = torch.arange(count, device=states.device)
    return states.flatten(0, 2).index_select(0, (depths * count + rows) * length + positions)


def train_text(plan: Plan, work: Path, words: Words, seed: int, device: torch.device) -> Reader:
    """Ask for the attributes at the end token (of the last layer but one) and at a random pad position and depth."""
    torch.manual_seed(seed)
    reader = Reader(words.end + 1).to(device)
    trainer = Trainer(reader, plan, work)
    for step in trainer.steps():
        rng = np.random.default_rng((seed, step))
        torch.manual_seed(int(rng.integers(2**31)))
        captions = random_captions(rng, BATCH)
        length = SHORT_ROW if rng.random() < SHORT_SHARE else None
        ids = torch.from_numpy(words([caption.text for caption in captions])[:, :length]).to(device)
        labels = torch.tensor([caption.labels() for caption in captions], device=device)
        states = hidden_states(reader.text, ids)
        ends = end_positions(ids)
        last = attribute_loss(reader(states, torch.full_like(ends, USED), ends), labels, None)
        depths = torch.randint(1, USED + 1, (BATCH,), device=device)
        answers = reader(states, depths, pad_positions(ends, torch.rand(BATCH, device=device), ids.shape[1]))
        trainer.update(last + attribute_loss(answers, labels, depths), last=last.detach())
    trainer.use_averaged()
    return reader


def random_captions(rng: np.random.Generator, count: int) -> list[Caption]:
    """Captions of fresh training scenes."""
    writer = Writer(rng)
    return [writer.caption(random_scene(rng)) for _ in range(count)]


def end_positions(ids: Tensor) -> Tensor:
    """Where each row's first end token stands."""
    return (ids == ids[0, -1]).int().argmax(1)


def pad_positions(ends: Tensor, chance: Tensor, length: int = POSITIONS) -> Tensor:
    """By chance (0 to 1) a position after each end token: padding sees the caption too, and the U-Net attends to it."""
    return ends + 1 + (chance * (length - 1 - ends)).long().clamp(max=length - 2 - ends)


def attribute_loss(answers: Tensor, labels: Tensor, depths: Tensor | None) -> Tensor:
    """Mean cross-entropy of the attributes, [n, classes] against [n, 11]; at a depth only those asked for there."""
    losses = [functional.cross_entropy(part, label, reduction="none") for part, label in _by_attribute(answers, labels)]
    if depths is not None:
        losses = [loss * (depths >= first) for loss, first in zip(losses, ASKED_FROM, strict=True)]
    return torch.stack(losses).mean()


def _by_attribute(answers: Tensor, labels: Tensor) -> Sequence[tuple[Tensor, Tensor]]:
    return list(zip(torch.split(answers, CLASSES, 1), labels.unbind(1), strict=True))


@torch.no_grad()
def understanding(reader: Reader, words: Words, seed: int) -> list[float]:
    """The share of captions of which all attributes are read right at the end token, for depths 0..12."""
    captions = random_captions(np.random.default_rng(seed), 256)
    device = reader.head.weight.device
    ids = torch.from_numpy(words([caption.text for caption in captions])).to(device)
    labels = torch.tensor([caption.labels() for caption in captions], device=device)
    states, ends = hidden_states(reader.text, ids), end_positions(ids)
    answers = torch.stack([reader(states, torch.full_like(ends, depth), ends) for depth in range(LAYERS + 1)])
    parts = zip(torch.split(answers, CLASSES, 2), labels.unbind(1), strict=True)
    right = [part.argmax(2) == label for part, label in parts]
    return [float(value) for value in torch.stack(right).all(0).float().mean(1)]
