"""From prompts to contexts: the vectors that the U-Net attends to, for every call of the network.

Parses, tokenises, encodes at the requested depth and applies emphasis; remembers what it has encoded.
Knows nothing of engines: it is given a function that encodes token rows at a depth.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter

import numpy as np

from .backends import Array
from .emphasis import emphasise
from .lru import Lru
from .prompt.parts import Text
from .request import Request
from .resolve import Resolved

Encode = Callable[[int, Array], Array]  # (layers kept, tokens [R,77]) -> context [R,77,D]
BUDGET = 64 * 2**20  # bytes of each cache
Encoded = dict[tuple[int, tuple[int, ...]], Array]  # (layers, tokens) -> context [77,D]


@dataclass(frozen=True)
class Part:
    """One text over the calls of a request.

    `contexts` ([77 * chunks, D] each) are its distinct variants; `which[i]` of them holds up to and including call
    `ends[i]`.
    """

    weight: float
    ends: tuple[int, ...]
    which: tuple[int, ...]
    contexts: tuple[Array, ...]

    def variant(self, call: int) -> int:
        """Which context holds at a call, counted from 0 (A1111 compares the call with the last step: one call late)."""
        return self.which[min(bisect_left(self.ends, call), len(self.ends) - 1)]


@dataclass(frozen=True)
class Conditioning:
    """What one image looks at: parts whose weights are the rows of the guidance mix; all have the same length."""

    parts: tuple[Part, ...]
    chunks: int

    @property
    def nbytes(self) -> int:
        return sum(context.nbytes for part in self.parts for context in part.contexts)


class TextStage:
    """Turns resolved requests into conditionings; remembers chunks encoded at a depth, and whole conditionings."""

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._encoded: Lru[Array] = Lru(BUDGET)
        self._conditionings: Lru[Conditioning] = Lru(BUDGET)

    def condition(self, wanted: Sequence[Resolved]) -> list[Conditioning]:
        """The conditioning of every request; encodes each distinct chunk once."""
        found = [self._conditionings.get(_key(each)) for each in wanted]
        texts = [() if known else each.texts for each, known in zip(wanted, found, strict=True)]
        encoded = self._encode_all(text for each in texts for text in each)
        return [
            known or self._remember(each, parts, encoded)
            for known, each, parts in zip(found, wanted, texts, strict=True)
        ]

    def _remember(self, wanted: Resolved, texts: Sequence[Text], encoded: Encoded) -> Conditioning:
        parts = tuple(_part(text, encoded, wanted.request.emphasis, wanted.chunks) for text in texts)
        made = Conditioning(parts, wanted.chunks)
        self._conditionings.put(_key(wanted), made, made.nbytes)
        return made

    def _encode_all(self, texts: Iterable[Text]) -> Encoded:
        """Every chunk of the texts at its depth; those that are not remembered, in one call per depth."""
        wanted = {(text.layers, chunk.tokens) for text in texts for variant in text.variants for chunk in variant}
        encoded = {key: found for key in wanted if (found := self._encoded.get(key)) is not None}
        missing = sorted(wanted - encoded.keys())
        for layers, group in groupby(missing, key=itemgetter(0)):
            keys = list(group)
            contexts = self._encode(layers, np.array([tokens for _, tokens in keys], dtype=np.int64))
            for key, context in zip(keys, contexts, strict=True):
                encoded[key] = alone = context.copy()  # a view would keep its whole batch alive
                self._encoded.put(key, alone, alone.nbytes)
        return encoded


def _key(wanted: Resolved) -> Request:
    """What the conditioning depends on, and a few fields that do no harm."""
    return replace(wanted.request, seed=0, subseed=0, batch=1, width=None, height=None)


def _part(text: Text, encoded: Encoded, mode: str, chunks: int) -> Part:
    """Apply emphasis to the encoded variants of a text; each counts as often as its schedule names it."""
    counts = Counter(text.variants)
    distinct = list(counts)
    contexts = np.stack([[encoded[text.layers, chunk.tokens] for chunk in variant] for variant in distinct])
    weights = np.array([[chunk.weights for chunk in variant] for variant in distinct], dtype=np.float32)
    for position in range(contexts.shape[1]):
        contexts[:, position] = emphasise(contexts[:, position], weights[:, position], mode, list(counts.values()))
    repeated = np.tile(contexts, (1, chunks // text.length, 1, 1))
    flat = repeated.reshape(len(distinct), -1, contexts.shape[-1])
    return Part(text.weight, text.ends, tuple(map(distinct.index, text.variants)), tuple(flat))
