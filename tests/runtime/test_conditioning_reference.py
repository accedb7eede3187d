"""What the U-Net attends to, call by call, against contexts that transformers made of prompts parsed by hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import reference
from recording import Feeds, Recording
from reference import Reference, Wanted
from reference_text import BREAK, Part, Text

import clipskip

DEPTHS = {1: 12, 2: 11, 7: 6, 13: 0}  # clip skip: layers that run
TOLERANCE = 1e-5  # relative L2 of each row
FOREVER = 10**9
FILLING = ", ".join(["a red circle on a green background"] * 11)  # more than one chunk, with commas to break at


@dataclass(frozen=True)
class Case:
    """A prompt as a user writes it, and what it means: parts, their texts and the last call of each."""

    prompt: str
    parts: tuple[Part, ...]
    steps: int = 4
    sampler: str = "Euler"
    negative: str = ""
    negative_part: Part | str = ""
    emphasis: str = "Original"
    compat: str | None = None


def one(*text: tuple[str, float], weight: float = 1.0) -> Part:
    return Part(((FOREVER, text),), weight)


def words(text: str) -> Text:
    return ((text, 1.0),)


def red_then_blue(last: int, weight: float = 1.0) -> Part:
    """The red circle up to and including call `last`, then the blue one."""
    texts = [(("a ", 1.0), (colour, weight), (" circle", 1.0)) for colour in ("red", "blue")]
    return Part(((last, texts[0]), (FOREVER, texts[1])))


CASES = {
    "plain": Case("a red circle", (one(("a red circle", 1.0)),)),
    "empty": Case("", (one(("", 1.0)),)),
    "weights in two chunks": Case(
        f"a (large:1.4) {FILLING}, [blue] ((square))",
        (one(("a ", 1), ("large", 1.4), (f" {FILLING}, ", 1), ("blue", 1 / 1.1), (" ", 1), ("square", 1.21)),),
    ),
    "A1111's own example": Case(
        "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
        (
            one(
                ("a ", 1),
                ("house", 1.573),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641),
                (".", 1.1),
            ),
        ),
    ),
    "escapes": Case(r"a \(red\) [circle\]", (one(("a (red) ", 1), ("circle]", 1 / 1.1)),)),
    "break": Case(
        "red circle BREAK green (background:0.5)",
        (one(("red circle", 1), (BREAK, -1), ("green ", 1), ("background", 0.5)),),
    ),
    "leading break": Case("BREAK a (star:1.5)", (one((BREAK, -1), ("a ", 1), ("star", 1.5)),)),
    "and": Case(
        "red circle AND (blue:1.2) square :0.6 AND a ring : -.25",
        (
            one(("red circle", 1)),
            one(("blue", 1.2), (" square", 1), weight=0.6),
            one(("a ring", 1), weight=-0.25),
        ),
        negative="(yellow)",
        negative_part=one(("yellow", 1.1)),
    ),
    "and with parts of different lengths": Case(
        f"(small:1.3) star AND {FILLING}:0.5",
        (one(("small", 1.3), (" star", 1)), one((FILLING, 1), weight=0.5)),
    ),
    "a longer negative prompt": Case(
        "a (red:1.3) circle",
        (one(("a ", 1), ("red", 1.3), (" circle", 1)),),
        negative=f"{FILLING}, (blue:1.2)",
        negative_part=one((f"{FILLING}, ", 1), ("blue", 1.2)),
    ),
    "a weight needs an AND": Case("a star, 16:9", (one(("a star, 16:9", 1)),)),
    "a weight without an AND in A1111": Case("a star, 16:9", (one(("a star, 16", 1), weight=9.0),), compat="a1111"),
    "schedule by step": Case("a [red:blue:2] circle", (red_then_blue(2),)),
    "schedule by fraction": Case("a [red:blue:0.5] circle", (red_then_blue(3),), steps=6),
    "schedule over the calls of a two-stage sampler": Case(
        "a [red:blue:0.5] circle", (red_then_blue(3),), steps=3, sampler="Heun"
    ),
    "schedule with weight": Case("a ([red:blue:2]:1.3) circle", (red_then_blue(2, 1.3),)),
    "schedule that adds a chunk": Case(
        f"a (red:1.4) circle[, {FILLING}:1]",
        (
            Part(
                (
                    (1, (("a ", 1), ("red", 1.4), (" circle", 1))),
                    (FOREVER, (("a ", 1), ("red", 1.4), (f" circle, {FILLING}", 1))),
                )
            ),
        ),
    ),
    "alternation": Case(
        "a [red|blue] circle",
        (Part(tuple((step, words(f"a {('red', 'blue')[step % 2 == 0]} circle")) for step in range(1, 6))),),
        steps=5,
    ),
    "scheduled negative prompt": Case(
        "a star",
        (one(("a star", 1)),),
        negative="small [green::1]",
        negative_part=Part(((1, words("small green")), (FOREVER, words("small ")))),
    ),
    "no norm": Case("a (red:1.4) circle", (one(("a ", 1), ("red", 1.4), (" circle", 1)),), emphasis="No norm"),
    "ignored emphasis": Case("a (red:1.4) circle", (one(("a red circle", 1)),), emphasis="Ignore"),
    "brackets as text": Case("a (red:1.4) circle", (one(("a (red:1.4) circle", 1)),), emphasis="None"),
}


@pytest.fixture(scope="module")
def truth(sample_checkpoint: Path) -> Reference:
    return reference.load(sample_checkpoint)


def fed(case: Case, clip_skip: int, pipe: clipskip.Pipeline, seen: Recording) -> list[Feeds]:
    seen.calls.clear()
    pipe(
        case.prompt,
        negative_prompt=case.negative,
        clip_skip=clip_skip,
        steps=case.steps,
        sampler=case.sampler,
        schedule="uniform",
        emphasis=case.emphasis,
        compat=case.compat,
        seed=1,
        width=64,
        height=64,
    )
    return list(seen.calls)


def by_weight(rows: list[tuple[float, np.ndarray]]) -> list[tuple[float, np.ndarray]]:
    return sorted(rows, key=lambda row: row[0])


@pytest.mark.parametrize("clip_skip", DEPTHS, ids=lambda skip: f"{DEPTHS[skip]} layers")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_call_attends_to_what_transformers_would_have_made(
    case: Case, clip_skip: int, pipe: clipskip.Pipeline, seen: Recording, truth: Reference
) -> None:
    wanted = Wanted(
        prompt=case.parts, negative=case.negative_part, clip_skip=clip_skip, emphasis=case.emphasis, cfg=7.0
    )
    sides = truth.sides(wanted)
    calls = fed(case, clip_skip, pipe, seen)
    assert len(calls) == (2 * case.steps - 1 if case.sampler == "Heun" else case.steps)
    for number, feeds in enumerate(calls):
        expected = by_weight([(weight, pick(number)) for weight, pick in sides])
        actual = by_weight(list(zip(feeds["mix"][0].tolist(), feeds["context"], strict=True)))
        assert [weight for weight, _ in actual] == pytest.approx([weight for weight, _ in expected], rel=1e-6)
        for (_, one), (_, other) in zip(actual, expected, strict=True):
            other = np.tile(other, (len(one) // len(other), 1))  # a call's texts are repeated up to one length
            assert one.shape == other.shape
            assert np.linalg.norm(one - other) <= TOLERANCE * np.linalg.norm(other), f"call {number}"
