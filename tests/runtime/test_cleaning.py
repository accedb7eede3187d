"""Text is cleaned as ftfy does it: recorded always, live where ftfy is there; and its tokens are plain text's."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipskip.inversions import Inversions, with_usable_names
from clipskip.prompt import chunks
from clipskip.tokenizer import Tokenizer, clean

DATA = Path(__file__).parent / "data"
GOLDEN: list[tuple[str, str]] = json.loads((DATA / "cleaning.json").read_text())
TYPOGRAPHIC = [line.split("\t") for line in (DATA / "typographic.tsv").read_text().splitlines()]


def test_odd_strings_become_what_ftfy_made_of_them() -> None:
    assert len(GOLDEN) > 550
    assert [row for row in GOLDEN if clean(row[0]) != row[1]] == []


def test_odd_strings_become_what_ftfy_makes_of_them() -> None:
    pytest.importorskip("ftfy")
    spec = importlib.util.spec_from_file_location("make_cleaning_data", DATA / "make_cleaning_data.py")
    assert spec is not None
    assert spec.loader is not None
    recipe: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    wrong = [text for text in recipe.troublesome(2000, seed=4) if clean(text) != recipe.reference(text)]
    assert wrong == []


@pytest.mark.parametrize(("typed", "plain"), TYPOGRAPHIC)
def test_what_people_paste_has_the_tokens_of_plain_text(clip_tokenizer: Tokenizer, typed: str, plain: str) -> None:
    assert chunks(typed, clip_tokenizer) == chunks(plain, clip_tokenizer)


@pytest.mark.parametrize(
    "text", ["", "a cat", "a (cat:1.2), [dog]", "résumé café, naïve €5", "日本語、한국어 👩‍👩‍👧‍👦", "a&b; AT&T"]
)
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert clean(text) == text


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a &lt;b&gt; c", "a <b> c"),
        ("a&amp;amp;lt;b", "a<b"),
        ("x < y &amp; z", "x < y &amp; z"),
        ("a &amp; b\nx < y &amp; z\nc &amp; d", "a & b\nx < y &amp; z\nc &amp; d"),
        ("P&EACUTE;REZ &nosuch; &semi; &#59;", "PÉREZ &nosuch; ; &#59;"),
        ("\ufeffcat", "cat"),
    ],
)
def test_entities_are_spelled_out_up_to_the_first_line_with_a_tag(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


def test_a_full_width_comma_counts_for_the_comma_rule(clip_tokenizer: Tokenizer) -> None:
    typed, plain = ("cat " * 60 + comma + " dog" * 30 for comma in "，,")
    assert chunks(typed, clip_tokenizer) == chunks(plain, clip_tokenizer)
    assert len(chunks(typed, clip_tokenizer)[0].tokens) == 77
    assert chunks(typed, clip_tokenizer)[0].tokens.count(1929) < 14  # 1929: dog; those after the comma moved


@pytest.mark.parametrize("name", ["cat’s art", "ｃａｔ art", "cat's art"])
@pytest.mark.parametrize("prompt", ["a cat's art", "a cat’s art", "a ＣＡＴ’Ｓ art", "a ｃａｔ art", "a cat art"])
def test_an_inversions_name_is_found_in_clean_text(clip_tokenizer: Tokenizer, name: str, prompt: str) -> None:
    with_usable_names(Inversions(np.zeros((1, 4), np.float32), {name: range(1)}), clip_tokenizer)
    tokens = chunks(prompt, clip_tokenizer, spans=((name, range(1)),))[0].tokens
    assert (clip_tokenizer.vocabulary in tokens) == (clean(name) in clean(prompt).lower())


@pytest.mark.parametrize("text", ["&amp;" * 13_000, "&#38;#38;" * 7_000, "&" + "amp;" * 16_000, "＆ａｍｐ；" * 3_000])
def test_entities_in_entities_take_no_time_of_note(text: str) -> None:
    start = time.process_time()
    clean(text)
    assert time.process_time() - start < 1
