"""The context of a prompt that was already parsed by hand, made with transformers' tokenizer and text encoder.

A text is a list of weighted fragments. Tokens are cut into chunks, encoded to the wanted depth and emphasised as
semantics.md section 3 says. Knows no prompt syntax: a test states the fragments, so a parser cannot be wrong twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import CLIPTextModel, CLIPTokenizer

BREAK = "BREAK"
Text = tuple[tuple[str, float], ...]  # fragments and their weights; (BREAK, anything) ends the chunk
CHUNK = 75
BACKTRACK = 20


@dataclass(frozen=True)
class Part:
    """One side of an AND: its weight and its texts, each with the last model call (from 0) that uses it."""

    texts: tuple[tuple[int, Text], ...]
    weight: float = 1.0

    def at(self, call: int) -> int:
        """Which of the texts a model call uses."""
        return next(i for i, (last, _) in enumerate(self.texts) if call <= last)


def plain(text: str) -> Part:
    """A part without any syntax."""
    return Part(((10**9, ((text, 1.0),)),))


@dataclass(frozen=True)
class TextReference:
    """transformers' tokenizer and fp32 text encoder."""

    tokenizer: CLIPTokenizer
    encoder: CLIPTextModel
    padding: int | None = None  # what follows the first end token of a chunk; None: end tokens

    def chunks(self, text: Text) -> list[list[tuple[int, float]]]:
        """(token, weight) of each chunk, 77 positions with BOS, EOS and padding."""
        comma = self.tokenizer.convert_tokens_to_ids(",</w>")
        done: list[list[tuple[int, float]]] = []
        room: list[tuple[int, float]] = []
        for fragment, weight in text:
            if fragment == BREAK:
                done, room = [*done, room], []
                continue
            for token in self.tokenizer(fragment, add_special_tokens=False).input_ids:
                if len(room) == CHUNK:
                    cut = CHUNK if token == comma else _cut(room, comma)
                    done, room = [*done, room[:cut]], room[cut:]
                room.append((token, weight))
        if room or not done:
            done.append(room)
        return [self._framed(chunk) for chunk in done]

    def _framed(self, chunk: list[tuple[int, float]]) -> list[tuple[int, float]]:
        end = self.tokenizer.eos_token_id
        padding = end if self.padding is None else self.padding
        return [(self.tokenizer.bos_token_id, 1.0), *chunk, (end, 1.0), *[(padding, 1.0)] * (CHUNK - len(chunk))]

    def hidden(self, chunks: Sequence[Sequence[tuple[int, float]]], layers: int) -> np.ndarray:
        """LN(hidden_states[layers]) of each chunk: [chunks, 77, D] float64."""
        tokens = torch.tensor([[token for token, _ in chunk] for chunk in chunks])
        with torch.no_grad():
            states = self.encoder(tokens, output_hidden_states=True).hidden_states
            return self.encoder.final_layer_norm(states[layers]).double().numpy()

    def contexts(self, texts: Sequence[Text], clip_skip: int, emphasis: str = "Original") -> list[np.ndarray]:
        """[77 * chunks, D] of each variant of one prompt part: they share their length and the mean of each chunk."""
        layers = self.encoder.config.num_hidden_layers + 1 - clip_skip
        chunked = [self.chunks(text) for text in texts]
        count = max(len(chunks) for chunks in chunked)
        padded = [chunks + [self._framed([])] * (count - len(chunks)) for chunks in chunked]
        emphasise = {"Original": _emphasised, "No norm": _weighted}.get(emphasis, _as_it_is)
        columns = [emphasise(self.hidden(column, layers), column) for column in zip(*padded, strict=True)]
        return [np.concatenate([column[i] for column in columns]) for i in range(len(texts))]


def _cut(room: list[tuple[int, float]], comma: int) -> int:
    """Where a full chunk ends: after its last comma when that is near enough to the end."""
    last = max((i for i, (token, _) in enumerate(room) if token == comma), default=-1)
    return last + 1 if last >= 0 and CHUNK - last <= BACKTRACK else CHUNK


Chunks = Sequence[Sequence[tuple[int, float]]]


def _as_it_is(hidden: np.ndarray, chunks: Chunks) -> np.ndarray:
    return hidden


def _weighted(hidden: np.ndarray, chunks: Chunks) -> np.ndarray:
    return hidden * np.array([[weight for _, weight in chunk] for chunk in chunks])[:, :, None]


def _emphasised(hidden: np.ndarray, chunks: Chunks) -> np.ndarray:
    """Weights, then the old mean of all variants back."""
    weighted = _weighted(hidden, chunks)
    return weighted * (hidden.mean() / weighted.mean())
