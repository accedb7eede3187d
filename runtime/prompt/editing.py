"""Which text a prompt stands for at which step: `[from:to:when]` and `[a|b]`. Knows nothing of weights or tokens.

The prompt is compiled once into a flat program of texts and jumps, and run for each step at which the text may change.
Brackets become jumps when the closing one shows that they hold a schedule; until then each is the text that it was.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from math import lcm

from ..errors import RequestError

_TOKEN = re.compile(r"(?:[^\\\[\]():|]+|\\.)+|[\\\[\]():|]")
_WHEN = re.compile(r"\s*([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*")

MOST_CHARACTERS = 2**21  # of all texts that a prompt stands for

Operation = str | int | Callable[[int], int]  # text to emit, where to go on, where to go on at a step


def editing(text: str, steps: int) -> list[tuple[int, str]]:
    """The texts that `text` stands for: each (last step, text), in order, the last one ending at `steps` (>= 1).

    AUTOMATIC1111 1.10's grammar, checked against it: `[to:when]`, `[from::when]`, `[from:to:when]`, `[a|b|]` (one
    option each step, from step 1; options may be empty), nested in each other and in round brackets in any way.
    `when` is a number with optional sign, exponent and space around it; with a point it is a fraction of the steps;
    it is clamped to `steps`, and below 1 the first text never shows. Escaped brackets are text and stay escaped, for
    `attention`. Neighbours may be equal (`[:5]`). What holds no schedule is literal: `[a:b]`, `[a:b:c:3]`, brackets
    that do not match, and every bracket around it. As in A1111 the *whole* prompt is literal where a `|` stands outside
    `[a|b]` (`a | b`, `(a|b)`, `[a|b:3]`) or a backslash escapes nothing (at the end of the text or of a line). Where a
    literal bracket or colon directly follows a schedule (`[a:3]]`), A1111's parser takes it by chance; here it counts.
    RequestError("prompt") where there are so many texts that they have more than two million characters.
    """
    program = _compile(text, steps) if "[" in text else None
    return [(steps, text)] if program is None else program.entries()


@dataclass
class _Program:
    """Starts as the tokens of the prompt, which are its text; brackets that mean something are rewritten in place."""

    operations: list[Operation]
    steps: int
    length: int  # of the prompt
    period: int = 1  # steps after which all alternations start again
    changes: set[int] = field(default_factory=set)  # the last steps of what schedules show first

    def entries(self) -> list[tuple[int, str]]:
        """What the program gives at each step where it may change, run once for each state that it can be in."""
        ends = range(1, self.steps + 1) if self.period > 1 else sorted({*self.changes, self.steps} - {0})
        changes = sorted(self.changes)
        states = [((end - 1) % self.period, bisect_left(changes, end)) for end in ends]
        distinct = dict(zip(states, ends, strict=True))
        if len(distinct) * self.length > MOST_CHARACTERS:
            message = f"the prompt stands for {len(distinct)} texts of up to {self.length} characters"
            hint = "shorten it, or alternate between 2, 4 or 8 options everywhere"
            raise RequestError(f"{message}; {MOST_CHARACTERS} in all is the limit", field="prompt", hint=hint)
        texts = {state: self.text(end) for state, end in distinct.items()}
        return [(end, texts[state]) for end, state in zip(ends, states, strict=True)]

    def text(self, step: int) -> str:
        """Run the program for one step."""
        pieces, place, operations = list[str](), 0, self.operations
        while place < len(operations):
            operation = operations[place]
            if isinstance(operation, str):
                pieces.append(operation)
                place += 1
            else:
                place = operation if isinstance(operation, int) else operation(step)
        return "".join(pieces)

    def alternate(self, start: int, bars: list[int], end: int) -> None:
        """Make the brackets at `start` and `end` a choice by step; each option ends with a jump behind them."""
        options = [place + 1 for place in (start, *bars)]
        self.operations[start] = lambda step: options[(step - 1) % len(options)]
        for place in (*bars, end):
            self.operations[place] = end + 1
        self.period = lcm(self.period, len(options))

    def change(self, start: int, colons: list[int], end: int, when: str) -> None:
        """Make the brackets a choice between what they hold up to step `when` and what they hold from then on."""
        before, after = (end + 1, start + 1) if len(colons) == 1 else (start + 1, colons[0] + 1)
        number = float(when) * (self.steps if "." in when else 1)
        last = int(min(max(0.0, number), self.steps))  # clamped first: an exponent may make it infinite
        self.operations[start] = lambda step: before if step <= last else after
        for place in colons:
            self.operations[place] = end + 1
        self.changes.add(last)


def _compile(text: str, steps: int) -> _Program | None:
    """The program of `text`; None where a stray `|` or backslash makes all of it literal."""
    tokens: list[str] = _TOKEN.findall(text)
    program = _Program([*tokens], steps, len(text))
    opened: list[tuple[int, int]] = []  # per open bracket, its place and the number of separators before it
    separators: list[int] = []  # places of the colons and bars directly in open brackets
    for place, token in enumerate(tokens):
        if token in {"(", "["}:
            opened.append((place, len(separators)))
        elif token in {":", "|"} and opened:
            separators.append(place)
        elif token in {"|", "\\"}:
            return None
        elif token in {")", "]"}:
            start, before = opened[-1] if opened else (place, 0)
            if _close(program, tokens, (start, place), separators[before:]):
                opened.pop()
                del separators[before:]
            elif any(tokens[separator] == "|" for separator in separators):
                return None
            else:  # a literal bracket makes all brackets around it literal
                opened.clear()
                separators.clear()
    return None if any(tokens[separator] == "|" for separator in separators) else program


def _close(program: _Program, tokens: list[str], ends: tuple[int, int], separators: list[int]) -> bool:
    """Whether the brackets at `ends`, with these separators, have a meaning; if it is a schedule, compile it."""
    start, end = ends
    brackets = tokens[start] + tokens[end]
    bars = [place for place in separators if tokens[place] == "|"]
    if brackets == "()":
        return not bars and len(separators) <= 1
    if brackets != "[]" or not separators:
        return brackets == "[]"
    if bars == separators:
        program.alternate(start, bars, end)
        return True
    when = _WHEN.fullmatch(tokens[end - 1])
    if bars or len(separators) > 2 or separators[-1] != end - 2 or when is None:
        return False
    program.change(start, separators, end, when[1])
    return True
