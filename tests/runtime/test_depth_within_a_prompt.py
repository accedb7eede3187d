"""A clip skip that changes over the steps, and one of a part or a chunk, against contexts that transformers made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import reference
from recording import Recording
from reference import Reference
from reference_text import BREAK, Text
from resolving import resolved

import clipskip
from clipskip.axes import parse_axis
from clipskip.errors import RequestError
from clipskip.request import Request

TOLERANCE = 1e-5  # relative L2 of a context
RED: Text = (("a red circle", 1.0),)
BLUE: Text = (("a blue square", 1.0),)
EMPTY: Text = (("", 1.0),)
HEAVY: Text = (("a ", 1.0), ("red", 1.4), (" circle", 1.0))
Context = Callable[[Text, int], np.ndarray]  # of a text at a clip skip


@pytest.fixture(scope="module")
def context(sample_checkpoint: Path) -> Context:
    truth: Reference = reference.load(sample_checkpoint)
    return lambda text, clip_skip: truth.text.contexts([text], clip_skip)[0]


def fed(pipe: clipskip.Pipeline, seen: Recording, prompt: str, **fields: object) -> list[list[np.ndarray]]:
    """The contexts of every call, the prompt's parts first."""
    seen.calls.clear()
    how: dict[str, object] = {"steps": 4, "sampler": "Euler", "seed": 1, "width": 64, "height": 64}
    pipe(prompt, **{**how, **fields})
    order = [np.argsort(-feeds["mix"][0]) for feeds in seen.calls]
    return [[feeds["context"][row] for row in rows] for feeds, rows in zip(seen.calls, order, strict=True)]


def assert_alike(contexts: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(contexts) == len(expected)
    for one, other in zip(contexts, expected, strict=True):
        assert np.linalg.norm(one - other) <= TOLERANCE * np.linalg.norm(other)


@pytest.mark.parametrize(
    ("clip_skip", "by_call"),
    [
        ("[9:1:2]", [9, 9, 9, 1]),  # call i, from 0, is at step i: one late, as A1111 compares words
        ("[9:1:0.5]", [9, 9, 9, 1]),
        ("[2|9]", [2, 2, 9, 2]),
        ("[[13:9:1]:1:0.5]", [13, 13, 9, 1]),
        (" [ 9 : 1 : 2 ] ", [9, 9, 9, 1]),
    ],
)
def test_the_depth_changes_over_the_steps_as_words_would(
    clip_skip: str, by_call: list[int], pipe: clipskip.Pipeline, seen: Recording, context: Context
) -> None:
    for contexts, skip in zip(fed(pipe, seen, "a red circle", clip_skip=clip_skip), by_call, strict=True):
        assert_alike(contexts, [context(RED, skip), context(EMPTY, skip)])


def test_the_negative_prompt_follows_or_has_a_schedule_of_its_own(
    pipe: clipskip.Pipeline, seen: Recording, context: Context
) -> None:
    calls = fed(pipe, seen, "a red circle", clip_skip=2, negative_clip_skip="[9:1:2]")
    assert_alike(calls[0], [context(RED, 2), context(EMPTY, 9)])
    assert_alike(calls[3], [context(RED, 2), context(EMPTY, 1)])


def test_words_and_depths_change_apart(pipe: clipskip.Pipeline, seen: Recording, context: Context) -> None:
    calls = fed(pipe, seen, "[a red circle:a blue square:1]", clip_skip="[9:1:2]")
    shown = [(RED, 9), (RED, 9), (BLUE, 9), (BLUE, 1)]
    for contexts, (text, skip) in zip(calls, shown, strict=True):
        assert_alike(contexts, [context(text, skip), context(EMPTY, skip)])


def test_emphasis_keeps_the_mean_of_each_depth(pipe: clipskip.Pipeline, seen: Recording, context: Context) -> None:
    calls = fed(pipe, seen, "a (red:1.4) circle", clip_skip="[9:1:2]")
    assert_alike(calls[0][:1], [context(HEAVY, 9)])
    assert_alike(calls[3][:1], [context(HEAVY, 1)])


def test_a_part_has_the_depth_of_its_tag(pipe: clipskip.Pipeline, seen: Recording, context: Context) -> None:
    calls = fed(pipe, seen, "a red circle<clipskip:5> AND a blue square :0.5", clip_skip="[2:1:2]")
    assert_alike(calls[0], [context(RED, 5), context(BLUE, 2), context(EMPTY, 2)])
    assert_alike(calls[3], [context(RED, 5), context(BLUE, 1), context(EMPTY, 1)])


def test_a_tag_is_for_the_chunks_between_two_breaks(pipe: clipskip.Pipeline, seen: Recording, context: Context) -> None:
    calls = fed(pipe, seen, "a red circle BREAK <Clip_Skip: 9 >a blue square BREAK a red circle", clip_skip=2)
    assert_alike(calls[0][:1], [np.concatenate([context(RED, 2), context(BLUE, 9), context(RED, 2)])])
    long = ", ".join(["a red circle on a green background"] * 11)
    calls = fed(pipe, seen, f"a red circle BREAK {long}<clipskip:9>", clip_skip=2)
    both = np.concatenate([context(RED, 2), context(((long, 1.0),), 9)])
    assert_alike(calls[0][:1], [both])
    assert len(context(((long, 1.0), (BREAK, -1.0)), 9)) > 77, "more than one chunk"


def test_a_tag_may_come_and_go_with_prompt_editing(pipe: clipskip.Pipeline, seen: Recording, context: Context) -> None:
    calls = fed(pipe, seen, "a red circle[<clipskip:9>:<clipskip:1>:2]", clip_skip=5)
    assert_alike(calls[0], [context(RED, 9), context(EMPTY, 5)])
    assert_alike(calls[3], [context(RED, 1), context(EMPTY, 5)])


@pytest.mark.parametrize("clip_skip", ["[2:2:0.5]", "[2|2]", "[[2|2]:2:3]"])
def test_a_constant_schedule_is_the_plain_value_bit_for_bit(clip_skip: str, sample_store: Path) -> None:
    how = {"steps": 3, "seed": 1, "width": 64, "height": 64}
    with clipskip.open(sample_store) as pipe:
        plain = pipe("a [(red:1.3):blue:1] circle", clip_skip=2, **how)
        steady = pipe("a [(red:1.3):blue:1] circle", clip_skip=clip_skip, **how)
        tagged = pipe("a [(red:1.3):blue:1] circle<clipskip:2>", clip_skip=5, negative_clip_skip=2, **how)
    assert plain.images[0].tobytes() == steady.images[0].tobytes() == tagged.images[0].tobytes()
    assert plain.engines.keys() == steady.engines.keys() == tagged.engines.keys()


def test_the_text_engine_of_each_depth_runs_once_and_the_result_names_them(sample_store: Path) -> None:
    how = {"steps": 6, "seed": 1, "width": 64, "height": 64}
    with clipskip.open(sample_store) as pipe:
        result = pipe("a red circle<clipskip:5> BREAK a blue square", clip_skip="[9|1]", **how)
        assert {name for name in result.engines if name.startswith("text")} == {"text-04", "text-08", "text-12"}
        again = pipe(result.request)
        assert again.images[0].tobytes() == result.images[0].tobytes()


def test_every_depth_is_a_note_and_a_refusal_as_a_plain_one_is() -> None:
    assert len(resolved("a cat", clip_skip="[9:1:0.4]", seed=1).notes) == 3
    assert len(resolved("a cat<clipskip:9>", seed=1).notes) == 3
    for prompt, skip, message in [
        ("a cat", "[9:14:0.4]", r"clip_skip must be 1\.\.13, not 14 in '\[9:14:0\.4\]'"),
        ("a cat", "[99:1:0]", r"clip_skip must be 1\.\.13, not 99 in"),
        ("a cat", "[[9:99:50]:1:1]", r"clip_skip must be 1\.\.13, not 99 in"),
        ("a cat", "[1|]", r"clip_skip must be 1\.\.13, not '' in"),
        *(
            ("a cat", odd, r"such as \[9:1:0\.4\]")
            for odd in ("[9:1]", "[2]", "[9:1:-1]", "[9:1:0.4", "1[3:1:2]", "[[9]")
        ),
        ("a <clipskip:14> cat", 1, r"<clipskip:14> in the prompt: clip_skip must be 1\.\.13, not 14"),
        ("a <clipskip:two> cat", 1, r"<clipskip:two> in the prompt: clip_skip must be 1\.\.13, not 'two'"),
        ("a <clipskip:1> cat <clipskip:2>", 1, "two clip skips to one chunk"),
        ("a \ufdd0 cat", 1, r"a character that no text has \(U\+FDD0\) at character 2"),
    ]:
        with pytest.raises(RequestError, match=message):
            resolved(prompt, clip_skip=skip, seed=1)


def test_fractions_and_tags_of_the_negative_are_noted() -> None:
    notes = resolved("a cat", clip_skip="[2.5:1:0.4]", negative_prompt="blurry <clipskip:5>", seed=1).notes
    assert ["counts as 2" in note for note in notes] == [True, False, False]
    assert "read as words" in notes[2]


def test_depths_that_nothing_uses_need_no_engine() -> None:
    assert resolved("a cat", cfg=1, negative_clip_skip=9, seed=1).depths == {12}


def test_metadata_has_the_last_step_for_others_and_all_of_it_for_us(sample_store: Path, tmp_path: Path) -> None:
    with clipskip.open(sample_store) as pipe:
        result = pipe("a cat", clip_skip="[9:2:0.4]", steps=2, seed=1, width=64, height=64)
    result.save(tmp_path / "a.png")
    assert "Clip skip: 2" in result.origin(0).texts()["parameters"]
    assert clipskip.read_request(tmp_path / "a.png").clip_skip == "[9:2:0.4]"


def test_every_front_end_takes_it() -> None:
    assert Request.from_text({"prompt": "a", "clip_skip": "[9:1:0.4]"}).clip_skip == "[9:1:0.4]"
    assert Request.from_json('{"prompt": "a", "clip_skip": "[9:1:0.4]"}').clip_skip == "[9:1:0.4]"
    assert clipskip.parse_render("/render /clipskip:[9:1:0.4] a cat").clip_skip == "[9:1:0.4]"
    assert parse_axis("clip_skip=1-3,[9:1:0.4]").values == (1, 2, 3, "[9:1:0.4]")
