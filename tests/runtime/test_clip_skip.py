"""What each number means as a depth, and that every front end refuses the rest in the same words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipskip.clip_skip import Depth, check, resolve
from clipskip.errors import RequestError
from clipskip.render import parse_render
from clipskip.request import Request

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


def depth(clip_skip: Any = None, diffusers: Any = None, negative: Any = None, recommended: int = 1) -> Depth:
    return resolve(clip_skip, diffusers, negative, layers=12, recommended=recommended)


@pytest.mark.parametrize("clip_skip", range(1, 14))
def test_n_keeps_13_minus_n_of_12_layers_and_diffusers_calls_it_n_minus_1(clip_skip: int) -> None:
    assert depth(clip_skip).layers == depth(clip_skip).negative_layers == 13 - clip_skip
    assert depth(None, clip_skip - 1) == depth(clip_skip)


@pytest.mark.parametrize(("value", "whole"), [(1.9, 1), (1.999999, 1), (2.0, 2), (13.7, 13), (np.float32(2.5), 2)])
def test_a_fraction_counts_as_the_whole_number_below_and_the_result_says_so(value: Any, whole: int) -> None:
    notes = depth(value).notes
    assert depth(value).clip_skip == whole
    assert any(f"counts as {whole}" in note for note in notes) == (value != whole)


def test_numpys_numbers_are_numbers() -> None:
    assert depth(np.int64(2)) == depth(np.uint8(2)) == depth(2)
    assert type(depth(np.int64(2)).clip_skip) is int


@pytest.mark.parametrize("value", [*NO_NUMBERS, 0, -1, 0.5, -0.5, 14, 14.0, 1e300, 10**30])
def test_what_is_no_depth_is_refused_with_the_range_and_the_diffusers_equivalent(value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        depth(value)
    assert caught.value.field == "clip_skip"
    assert "clip_skip must be 1..13, not " in caught.value.message
    assert "1 (the last layer, diffusers' None or 0)" in caught.value.message
    assert "clip_skip_diffusers" in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("value", [*NO_NUMBERS, -1, -0.5, 13])
def test_what_diffusers_takes_silently_is_refused_in_its_own_numbering(value: Any) -> None:
    with pytest.raises(RequestError, match=r"clip_skip_diffusers must be 0\.\.12, not ") as caught:
        depth(None, value)
    assert "1..13" in str(caught.value)


def test_the_range_follows_the_models_layers() -> None:
    assert resolve(4, None, None, layers=3, recommended=1).layers == 0
    with pytest.raises(RequestError, match=r"clip_skip must be 1\.\.4, not 5"):
        resolve(5, None, None, layers=3, recommended=1)


def test_both_numberings_at_once_are_refused_even_when_they_agree() -> None:
    with pytest.raises(RequestError, match="two numberings of one setting"):
        depth(2, 1)


def test_the_negative_prompt_follows_the_prompt_unless_it_has_its_own_depth() -> None:
    assert depth(3).negative_clip_skip == 3
    assert (depth(3, negative=1).layers, depth(3, negative=1).negative_layers) == (10, 12)
    assert (depth(negative=1, recommended=2).clip_skip, depth(negative=1, recommended=2).negative_clip_skip) == (2, 1)
    with pytest.raises(RequestError, match=r"negative_clip_skip must be 1\.\.13"):
        depth(2, negative=0)


def test_the_models_recommendation_is_used_when_nothing_is_given_and_named_in_the_result() -> None:
    assert depth(recommended=2).clip_skip == 2
    assert any("2 is used, which the model recommends" in note for note in depth(recommended=2).notes)
    assert depth(2, recommended=2).notes == ()


@pytest.mark.parametrize(("clip_skip", "count"), [(1, 0), (2, 0), (3, 1), (5, 1), (6, 2), (13, 2)])
def test_deep_skips_carry_notes_and_never_an_error(clip_skip: int, count: int) -> None:
    notes = depth(clip_skip).notes
    assert len(notes) == count
    assert [("low guidance" in note, "erratic" in note) for note in notes] == [(True, False), (False, True)][:count]
    assert len(depth(1, negative=clip_skip).notes) == count


@given(st.floats(min_value=1, max_value=13, allow_nan=False, exclude_max=True))
def test_every_number_from_1_up_to_14_has_a_depth(value: float) -> None:
    assert depth(value).clip_skip == int(value)


@pytest.mark.parametrize("text", ["２", "1_0", "nan", "inf", "two", "", "0x2", "1e0", "+2", "٣"])
def test_text_that_is_no_plain_decimal_gets_the_same_refusal_from_every_front_end(text: str) -> None:
    messages = set()
    for attempt in (
        lambda: check("clip_skip", text),
        lambda: Request.from_text({"prompt": "a cat", "clip_skip": text}),
        lambda: Request.from_json({"prompt": "a cat", "clip_skip": text}),
        lambda: parse_render(f"/render /clipskip:{text} a cat"),
    ):
        with pytest.raises(RequestError) as caught:
            attempt()
        messages.add((str(caught.value), caught.value.field))
    assert len(messages) == 1
