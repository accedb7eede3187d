"""Weights: of the parts between AND, and in one text: `(more)`, `[less]`, `(this:1.3)`, BREAK. Knows nothing of tokens.

Each fragment of text lies in a chain of round brackets and a chain of square ones, which may cross. Its weight is the
product of their factors, taken in the order in which they close, so that it is AUTOMATIC1111's to the last bit.
"""

from __future__ import annotations

import math
import re
from itertools import groupby
from operator import itemgetter

import numpy as np

from ..errors import RequestError

ROUND, SQUARE = 1.1, 1 / 1.1
BREAK = ("BREAK", -1.0)
MAX_WEIGHT = 10.0  # beyond it vectors overflow or drown all others
EXACT_DEPTH = 32  # so many factors are multiplied in closing order; those of brackets further out in one go

_TOKEN = re.compile(r"\\[()\[\]\\]?|[()\[\]]|:\s*[+-]?[.\d]+\s*\)|[^\\()\[\]:]+|:")
_NUMBER = re.compile(r"\s*[+-]?(?:\d+(?:\.\d*)?|\.\d+)\s*")
_AND = re.compile(r"\bAND\b")
_BREAK = re.compile(r"\bBREAK\b")


def composition(text: str, compat: str | None = None) -> list[tuple[str, float]]:
    """The parts of a prompt between the words AND, each with its weight: `a cat AND a dog :0.5`.

    The weight is a signed decimal without exponent. Without an AND the text is one part, untouched, of weight 1;
    `compat="a1111"` reads a weight there too (`photo, 16:9` weighs 9). RequestError("prompt") above 10.
    """
    parts = _AND.split(text)
    if len(parts) == 1 and compat != "a1111":
        return [(text, 1.0)]
    weighted = []
    for part in parts:
        head, colon, tail = part.rpartition(":")
        plain = not colon or not _NUMBER.fullmatch(tail)
        weighted.append((part.rstrip(), 1.0) if plain else (head.rstrip(), check_weight(float(tail), part)))
    return weighted


def attention(text: str) -> list[tuple[str, float]]:
    """The fragments of `text` with their weights, neighbours of equal weight merged; never empty.

    AUTOMATIC1111 1.10's rules: `(a)` is 1.1 times, `[a]` 1/1.1 times, `(a:1.3)` 1.3 times; nested factors multiply;
    round and square brackets are counted apart and may cross; brackets left open count at the end; closing ones that
    close nothing are text. `\\(`, `\\)`, `\\[`, `\\]`, `\\\\` are text; any other backslash vanishes. The word BREAK,
    with the whitespace around it, is the fragment ("BREAK", -1.0), beside which fragments may be empty; inside
    brackets its weight is another one, and it is a word like others. A weight that is no plain decimal (`(a:1.2.3)`)
    is text at 1.1, where A1111 crashes. RequestError("prompt") where a weight or a product of them is beyond 10.
    """
    scan = _Scan()
    for token in _TOKEN.findall(text):
        scan.take(token)
    merged = [("".join(map(itemgetter(0), run)), weight) for weight, run in groupby(scan.fragments(), itemgetter(1))]
    for fragment, weight in merged:
        if fragment:
            check_weight(weight, fragment)
    return merged or [("", 1.0)]


class _Scan:
    """The fragments so far, and the brackets around them; bracket 0 is "none"."""

    def __init__(self) -> None:
        self.pieces: list[tuple[str, float, int, int]] = []  # text, sign, innermost round and square bracket
        self.opened = {")": [0], "]": [0]}  # by the token that closes them
        self.parent, self.factor, self.closed = [0], [1.0], [math.inf]
        self.closings = 0

    def take(self, token: str) -> None:
        first, weight = token[0], token[1:-1]
        if first in "([":
            opened = self.opened[")" if first == "(" else "]"]
            self.parent.append(opened[-1])
            opened.append(len(self.factor))
            self.factor.append(ROUND if first == "(" else SQUARE)
            self.closed.append(math.inf)
        elif first in ")]" and self.is_open(first):
            self.close(first)
        elif first == ":" and len(token) > 1 and self.is_open(")"):
            if _NUMBER.fullmatch(weight):
                self.factor[self.opened[")"][-1]] = check_weight(float(weight), token)
            else:
                self.add(token[:-1])
            self.close(")")
        elif first == "\\":
            self.add(token[1:])
        else:
            words, *others = _BREAK.split(token) if "BREAK" in token else [token]
            self.add(words.rstrip() if others else words)
            for left, words in enumerate(others, 1 - len(others)):
                self.add(*BREAK)
                self.add(words.strip() if left else words.lstrip())

    def add(self, text: str, sign: float = 1.0) -> None:
        self.pieces.append((text, sign, self.opened[")"][-1], self.opened["]"][-1]))

    def is_open(self, token: str) -> bool:
        return len(self.opened[token]) > 1

    def close(self, token: str) -> None:
        self.closings += 1
        self.closed[self.opened[token].pop()] = self.closings

    @np.errstate(over="ignore", invalid="ignore")  # the caller refuses what is not finite
    def fragments(self) -> list[tuple[str, float]]:
        """Close what is still open, and give each fragment its weight."""
        for token in (")", "]"):
            while self.is_open(token):
                self.close(token)
        parent, factor, closed = np.array(self.parent), np.array(self.factor), np.array(self.closed)
        rounds, squares = (np.array([piece[kind] for piece in self.pieces], np.intp) for kind in (2, 3))
        product = np.array([sign for _, sign, _, _ in self.pieces])
        for _ in range(EXACT_DEPTH):
            first = np.where(closed[rounds] < closed[squares], rounds, squares)
            product *= factor[first]
            rounds = np.where(first == rounds, parent[rounds], rounds)
            squares = np.where(first == squares, parent[squares], squares)
            if not (rounds.any() or squares.any()):
                break
        totals: list[float] = []  # per bracket, the product of its factor and of those around it (of its own kind)
        for outer, own in zip(self.parent, self.factor, strict=True):
            totals.append(own * totals[outer] if totals else own)
        product *= np.array(totals)[rounds] * np.array(totals)[squares]
        return [(text, weight) for (text, *_), weight in zip(self.pieces, product.tolist(), strict=True)]


def check_weight(weight: float, source: str) -> float:
    """`weight` if it is usable; `source` is the text it stands in, for the message."""
    if abs(weight) <= MAX_WEIGHT:
        return weight
    excerpt = ascii(source if len(source) <= 60 else source[:60] + "...")  # on one line, safe for a terminal
    message = f"a prompt weight of {weight:.4g} is beyond {MAX_WEIGHT:g}: {excerpt}"
    hint = "weights between 0.5 and 1.5 are usual; write \\( and \\) for brackets that are text"
    raise RequestError(message, field="prompt", hint=hint)
