"""What each number means as a depth, and that every front end refuses the rest in the same words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from facts import MODEL
from hypothesis import given
from hypothesis import strategies as st
from resolving import resolved

from clipskip import fields
from clipskip.errors import RequestError
from clipskip.render import parse_render
from clipskip.request import Request
from clipskip.resolve import NO_EFFECT, Resolved

NO_NUMBERS = [
    True,
    False,
    "2",
    "２",
    "1_0",
    b"2",
    float("nan"),
    float("inf"),
    float("-inf"),
    [2],
    {},
    2j,
    np.bool_(True),
]


def skipped(
    clip_skip: Any = None, diffusers: Any = None, negative: Any = None, *, layers: int = 12, recommended: int = 1,
    **facts: Any,
) -> Resolved:  # fmt: skip
    model = replace(MODEL, layers=layers, recommended_clip_skip=recommended, **facts)
    skips = {"clip_skip": clip_skip, "clip_skip_diffusers": diffusers, "negative_clip_skip": negative}
    return resolved("a cat", model=model, seed=1, **skips)


@pytest.mark.parametrize("clip_skip", range(1, 14))
def test_n_keeps_13_minus_n_of_12_layers_and_diffusers_calls_it_n_minus_1(clip_skip: int) -> None:
    assert skipped(clip_skip).depths == {13 - clip_skip}
    assert skipped(None, clip_skip - 1) == skipped(clip_skip)


@pytest.mark.parametrize(("value", "whole"), [(1.9, 1), (1.999999, 1), (2.0, 2), (13.7, 13), (np.float32(2.5), 2)])
def test_a_fraction_counts_as_the_whole_number_below_and_the_result_says_so(value: Any, whole: int) -> None:
    notes = skipped(value).notes
    assert skipped(value).request.clip_skip == whole
    assert any(f"counts as {whole}" in note for note in notes) == (value != whole)


def test_numpys_numbers_are_numbers() -> None:
    assert skipped(np.int64(2)) == skipped(np.uint8(2)) == skipped(2)
    assert type(skipped(np.int64(2)).request.clip_skip) is int


@pytest.mark.parametrize("value", [*NO_NUMBERS, 0, -1, 0.5, -0.5, 14, 14.0, 1e300, 10**30])
def test_what_is_no_depth_is_refused_with_the_range_and_the_diffusers_equivalent(value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        skipped(value)
    assert caught.value.field == "clip_skip"
    assert "clip_skip must be 1..13, not " in caught.value.message
    assert "1 (the last layer, diffusers' None or 0)" in caught.value.message
    assert "clip_skip_diffusers" in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("value", [*NO_NUMBERS, -1, -0.5, 13])
def test_what_diffusers_takes_silently_is_refused_in_its_own_numbering(value: Any) -> None:
    with pytest.raises(RequestError, match=r"clip_skip_diffusers must be 0\.\.12, not ") as caught:
        skipped(None, value)
    assert "1..13" in str(caught.value)


def test_the_range_follows_the_models_layers() -> None:
    assert skipped(4, layers=3).depths == {0}
    with pytest.raises(RequestError, match=r"clip_skip must be 1\.\.4, not 5"):
        skipped(5, layers=3)


def test_both_numberings_at_once_are_refused_even_when_they_agree() -> None:
    with pytest.raises(RequestError, match="two numberings of one setting"):
        skipped(2, 1)


def test_the_negative_prompt_follows_the_prompt_unless_it_has_its_own_skipped() -> None:
    assert skipped(3).request.negative_clip_skip == 3
    assert [text.layers for text in skipped(3, negative=1).texts] == [(10,), (12,)]
    own = skipped(negative=1, recommended=2).request
    assert (own.clip_skip, own.negative_clip_skip) == (2, 1)
    with pytest.raises(RequestError, match=r"negative_clip_skip must be 1\.\.13"):
        skipped(2, negative=0)


def test_the_models_recommendation_is_used_when_nothing_is_given_and_named_in_the_result() -> None:
    assert skipped(recommended=2).request.clip_skip == 2
    assert any("2 is used, which the model recommends" in note for note in skipped(recommended=2).notes)
    assert skipped(2, recommended=2).notes == ()
    note = "clip_skip 1: the model recommends 2; depths suit models trained with them"
    assert skipped(1, recommended=2).notes == (note,)
    assert skipped().notes == skipped(recommended=1).notes == (), "1 is nobody's recommendation"


@pytest.mark.parametrize(("clip_skip", "count"), [(1, 0), (2, 0), (3, 1), (5, 1), (6, 2), (13, 2)])
def test_deep_skips_carry_notes_and_never_an_error(clip_skip: int, count: int) -> None:
    notes = [note for note in skipped(clip_skip).notes if "only for models" not in note]
    assert [("low guidance" in note, "erratic" in note) for note in notes] == [(True, False), (False, True)][:count]
    assert len(skipped(1, negative=clip_skip).notes) == count + (clip_skip > 1)


def test_above_1_a_note_says_that_nothing_is_known_of_the_model_unless_its_maker_or_its_file_says_so() -> None:
    unknown = "clip_skip above 1: only for models trained with it, and nothing says so of sample"
    for made in (skipped(2), skipped("[2:1:0.4]"), skipped(diffusers=1), skipped(1, negative=2)):
        assert made.notes[0] == unknown
    assert skipped().notes == skipped(1).notes == skipped(2, suggested_clip_skip=2).notes == ()
    assert skipped(suggested_clip_skip=1).notes == ()
    for made in (skipped(1, suggested_clip_skip=2), skipped(suggested_clip_skip=2)):
        assert made.notes == ("clip_skip 1 is used; the model's file suggests 2",)
    (note,) = skipped(3, suggested_clip_skip=2).notes[:1]
    assert note == "clip_skip 3: the model's file suggests 2; only for models trained with it"
    assert skipped(2, recommended=2, suggested_clip_skip=1).notes == (), "a recommendation is somebody's word"


def test_a_model_of_one_depth_has_no_note_of_what_it_was_trained_with() -> None:
    assert skipped(clip_skips=(11,) * 13).notes == ()
    assert skipped(2, clip_skips=(11,) * 13).notes == (NO_EFFECT,)


@given(st.floats(min_value=1, max_value=13, allow_nan=False, exclude_max=True))
def test_every_number_from_1_up_to_14_has_a_skipped(value: float) -> None:
    assert skipped(value).request.clip_skip == int(value)


@pytest.mark.parametrize("text", ["２", "1_0", "nan", "inf", "two", "0x2", "1e0", "+2", "٣"])
def test_text_that_is_no_plain_decimal_gets_the_same_refusal_from_every_front_end(text: str) -> None:
    messages = set()
    for attempt in (
        lambda: fields.CLIP_SKIP.check("clip_skip", text),
        lambda: Request.from_text({"prompt": "a cat", "clip_skip": text}),
        lambda: Request.from_json({"prompt": "a cat", "clip_skip": text}),
        lambda: parse_render(f"/render /clipskip:{text} a cat"),
    ):
        with pytest.raises(RequestError) as caught:
            attempt()
        messages.add((str(caught.value), caught.value.field))
    assert len(messages) == 1
