"""What holds for every prompt: nothing raises but a refusal, nothing is lost, and the time grows with the length."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pace import pace

from clipskip.errors import RequestError
from clipskip.prompt import attention, check_text, chunks, composition, editing, networks
from clipskip.tokenizer import Tokenizer

T = TypeVar("T")
SYNTAX = st.lists(
    st.sampled_from(
        [
            *"()[]:|\\, .ab3-<>\n",
            "BREAK",
            " AND ",
            "[a:",
            ":2]",
            "|b]",
            ":.5]",
            "(c",
            ":1.2)",
            ":-2)",
            ":99)",
            "é",
            "1e9",
        ]
    ),
    max_size=30,
).map("".join)
ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)
PLAIN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0()[]:|\\<>"), max_size=60)
STEPS = st.integers(1, 30)


def unless_refused(call: Callable[[], T]) -> T | None:
    """What `call` gives, or None where it refuses a weight: the one thing that may be wrong with a prompt's syntax."""
    try:
        return call()
    except RequestError as error:
        if "beyond 10" not in error.message:
            raise
        return None


@given(SYNTAX | ANY, STEPS)
def test_a_schedule_is_never_an_error_and_covers_all_steps(text: str, steps: int) -> None:
    entries = editing(text, steps)
    ends = [end for end, _ in entries]
    assert ends == sorted(set(ends))
    assert ends[0] >= 1
    assert ends[-1] == steps


@given(SYNTAX | ANY, st.sampled_from([None, "a1111"]))
def test_a_composition_is_refused_for_its_weights_only(text: str, compat: str | None) -> None:
    parts = unless_refused(lambda: composition(text, compat))
    assert parts is None or parts
    assert all(abs(weight) <= 10 for _, weight in parts or ())


@given(SYNTAX | ANY)
def test_attention_is_refused_for_its_weights_only(text: str) -> None:
    fragments = unless_refused(lambda: attention(text))
    assert fragments is None or fragments
    assert all(abs(weight) <= 10 for fragment, weight in fragments or () if fragment)
    assert all(left[1] != right[1] for left, right in pairwise(fragments or ()))


@given(PLAIN, STEPS)
def test_a_text_without_syntax_comes_back_whole(text: str, steps: int) -> None:
    assume(not re.search("AND|BREAK|[\ufdd0\ufdd1]", text))  # the latter are no characters
    assert composition(text) == [(text, 1.0)]
    assert editing(text, steps) == [(steps, text)]
    assert attention(text) == [(text, 1.0)]
    assert networks(text) == (text, [])
    assert check_text(text, "prompt") == text


@given(ANY)
def test_an_escaped_text_comes_back_whole(text: str) -> None:
    assume("BREAK" not in text)
    escaped = re.sub(r"([()\[\]\\])", r"\\\1", text)
    assert attention(escaped) == [(text, 1.0)]
    assert editing(escaped, 10) == [(10, escaped)]


@given(st.text("()[]ab ,", max_size=40))
def test_brackets_take_nothing_out_but_brackets(text: str) -> None:
    words = "".join(fragment for fragment, _ in unless_refused(lambda: attention(text)) or [(text, 1.0)])
    assert re.sub(r"[()\[\]]", "", words) == re.sub(r"[()\[\]]", "", text)


@given(SYNTAX, STEPS)
def test_each_entry_of_a_schedule_is_the_text_with_parts_left_out(text: str, steps: int) -> None:
    for _, entry in editing(text, steps):
        rest = iter(text)
        assert all(character in rest for character in entry)


@given(
    st.lists(st.sampled_from(["cat", "dog,", ",", "BREAK", "(red:1.2)", "[x]", "émigré", "😀"]), max_size=250),
    st.integers(0, 74),
)
def test_no_token_is_lost_between_chunks(clip_tokenizer: Tokenizer, words: list[str], backtrack: int) -> None:
    text = " ".join(words)
    found = chunks(text, clip_tokenizer, comma_backtrack=backtrack)
    bodies = [
        token for chunk in found for token in chunk.tokens if token not in (clip_tokenizer.bos, clip_tokenizer.eos)
    ]
    fragments = [fragment for fragment, weight in attention(text) if (fragment, weight) != ("BREAK", -1.0)]
    assert bodies == [token for fragment in fragments for token in clip_tokenizer.ids(fragment)]
    for chunk in found:
        assert len(chunk.tokens) == len(chunk.weights) == 77
        assert (chunk.tokens[0], chunk.tokens[-1]) == (clip_tokenizer.bos, clip_tokenizer.eos)


HARD = {  # at the largest size that a request may have
    "opening brackets": "(" * 65_000,
    "closing brackets": ")" * 65_000,
    "nested brackets": "[" * 32_000 + ":" + "]" * 32_000,
    "crossing brackets": "(]:[)" * 13_000,
    "alternations": "[a|b]" * 13_000,
    "nested alternations": "[" * 20_000 + "a|]" * 15_000,
    "nested schedules": "[a:" * 12_000 + ":2]" * 9_000,
    "nested weights": "(a" * 12_000 + ":1)" * 12_000,
    "spaces": "a" + " " * 65_000 + "b",
    "spaces after colons": "[:   " * 13_000,
    "digits": "[a:" + "1" * 65_000,
    "digits and points": "(a:" + "1" * 32_000 + ".1" * 16_000 + ")",
    "a weight of digits": "a AND b:" + "1" * 65_000 + "x",
    "spaces at breaks": (" " * 60 + "BREAK") * 1_000,
    "one break": " " * 30_000 + "BREAK" + " " * 30_000,
    "backslashes": "\\" * 65_000,
    "tags": "<a:" * 21_000,
    "one word": "a" * 65_000,
    "punctuation": "!" * 65_000,
    "commas": "a, " * 21_000,
    "breaks": "BREAK " * 10_000,
}


@pytest.mark.parametrize("text", HARD.values(), ids=HARD)
def test_the_longest_prompt_takes_no_time_of_note_however_it_is_built(clip_tokenizer: Tokenizer, text: str) -> None:
    check_text(text, "prompt")
    for work in (
        lambda: composition(text, "a1111"),
        lambda: editing(text, 20),
        lambda: networks(text),
        lambda: chunks(text, clip_tokenizer),
    ):
        assert pace(lambda work=work: unless_refused(work)) < 150
