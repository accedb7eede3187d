"""Weighted text cut into chunks of 77 token ids, as AUTOMATIC1111 cuts it. Knows nothing of engines or vectors."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import lru_cache

from ..errors import RequestError
from ..tokenizer import Tokenizer, clean
from .weights import BREAK, attention

LENGTH = 75  # tokens of a chunk between its bos and its eos
MARKS = "\ufdd0", "\ufdd1"  # around a number of layers in a text; characters that no text may have
_MARK = re.compile("{}([0-9]+){}".format(*MARKS))

Spans = tuple[tuple[str, range], ...]  # lower-cased name of a textual inversion -> rows of the `concepts` input


@dataclass(frozen=True)
class Chunk:
    """What the text encoder takes at once: bos, 75 ids padded with eos, eos; and a weight for each of the 77.

    `layers`: how many are to encode it, where that is not what encodes the rest of its text.
    """

    tokens: tuple[int, ...]
    weights: tuple[float, ...]
    layers: int | None = None


def chunks(
    text: str, tokenizer: Tokenizer, *, emphasis: str = "Original", comma_backtrack: int = 20, spans: Spans = ()
) -> list[Chunk]:
    """The chunks of one text (no AND, no schedules), at least one; follows AUTOMATIC1111 1.10.

    Each fragment of `attention` is cleaned (`tokenizer.clean`) and tokenised on its own; with `emphasis="None"` the
    text is one fragment of weight 1, brackets and BREAK included. BREAK ends the chunk, also an empty one. When a token
    meets a full chunk whose last comma is at most `comma_backtrack` (0..74) tokens back, what follows that comma moves
    to the next chunk; a comma itself never causes a move. Where the cleaned and tokenised name of a textual inversion
    stands in a fragment, in any case and also inside a run of words, the ids `tokenizer.vocabulary + row` of its
    vectors stand instead (the longest name first), together in one chunk; unlike in A1111 they move with a comma.
    A number of layers between MARKS is for the chunks from the BREAK before it to the next. Raises
    RequestError(field="prompt") for weights beyond 10, an inversion of more than 75 vectors, two numbers for one chunk.
    """
    packer, index = _Packer(tokenizer, comma_backtrack), _index(tokenizer, spans)
    for fragment, weight in [(text, 1.0)] if emphasis == "None" else attention(text):
        if (fragment, weight) == BREAK:
            packer.close()
            packer.settle()
            continue
        packer.layers.update(map(int, _MARK.findall(fragment)))
        ids, place = tokenizer.ids(clean(_MARK.sub("", fragment))), 0
        while place < len(ids):
            token = ids[place]
            names = (*index.get(token, ()), ([token], [token]))  # what is no inversion's name stands for itself
            name, group = next(pair for pair in names if ids[place : place + len(pair[0])] == pair[0])
            packer.add(token, group, weight)
            place += len(name)
    if packer.tokens or not packer.done:
        packer.close()
    packer.settle()
    return packer.done


@lru_cache(maxsize=4)
def empty_chunk(tokenizer: Tokenizer) -> Chunk:
    """The chunk of an empty prompt."""
    return chunks("", tokenizer)[0]


@lru_cache(maxsize=4)
def _index(tokenizer: Tokenizer, spans: Spans) -> dict[int, list[tuple[list[int], list[int]]]]:
    """By the first id of an inversion's name: all its ids and those of its vectors, the longest name first."""
    index: dict[int, list[tuple[list[int], list[int]]]] = {}
    for name, rows in spans:
        if ids := tokenizer.ids(clean(name)):
            index.setdefault(ids[0], []).append((ids, [tokenizer.vocabulary + row for row in rows]))
    return {first: sorted(names, key=lambda name: -len(name[0])) for first, names in index.items()}


@dataclass
class _Packer:
    """Fills chunks in order; `comma` is where the last comma of the open chunk stands.

    `layers` are those that were said since the last BREAK, behind the first `settled` chunks.
    """

    tokenizer: Tokenizer
    backtrack: int
    done: list[Chunk] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    comma: int | None = None
    layers: set[int] = field(default_factory=set)
    settled: int = 0

    def add(self, token: int, group: list[int], weight: float) -> None:
        if token == self.tokenizer.comma:
            self.comma = len(self.tokens)
        elif len(self.tokens) == LENGTH and self.comma is not None and LENGTH - self.comma <= self.backtrack:
            tail = self.tokens[self.comma + 1 :], self.weights[self.comma + 1 :]
            del self.tokens[self.comma + 1 :], self.weights[self.comma + 1 :]
            self.close()
            self.tokens, self.weights = tail
        if len(self.tokens) + len(group) > LENGTH:
            if len(group) > LENGTH:
                message = f"a textual inversion of {len(group)} vectors does not fit into a chunk of {LENGTH}"
                raise RequestError(message, field="prompt")
            self.close()
        self.tokens += group
        self.weights += [weight] * len(group)

    def close(self) -> None:
        """End the open chunk, padded, and start an empty one."""
        padding = LENGTH - len(self.tokens)
        tokens = [self.tokenizer.bos, *self.tokens, *[self.tokenizer.eos] * (padding + 1)]
        self.done.append(Chunk(tuple(tokens), (1.0, *self.weights, *[1.0] * (padding + 1))))
        self.tokens, self.weights, self.comma = [], [], None

    def settle(self) -> None:
        """What was said of layers since the last BREAK is for the chunks since then."""
        if len(self.layers) > 1:
            message = "the prompt gives two clip skips to one chunk"
            raise RequestError(message, field="prompt", hint="put BREAK or AND between the two <clipskip:...>")
        for place in range(self.settled, len(self.done) if self.layers else 0):
            self.done[place] = replace(self.done[place], layers=min(self.layers))
        self.settled, self.layers = len(self.done), set()
