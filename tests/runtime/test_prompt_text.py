"""What happens to a prompt before its grammar: limits, tags, AND."""

from __future__ import annotations

import pytest

from clipskip.errors import RequestError
from clipskip.prompt import check_text, composition, networks

COMPOSITIONS: list[tuple[str, list[tuple[str, float]]]] = [
    ("", [("", 1.0)]),
    ("a cat", [("a cat", 1.0)]),
    (" a cat \n", [(" a cat \n", 1.0)]),
    ("photo, 16:9", [("photo, 16:9", 1.0)]),
    ("a AND b", [("a", 1.0), (" b", 1.0)]),
    ("a AND b AND c", [("a", 1.0), (" b", 1.0), (" c", 1.0)]),
    ("a :0.5 AND b:2", [("a", 0.5), (" b", 2.0)]),
    ("a : -1 AND b", [("a", -1.0), (" b", 1.0)]),
    ("a:+.5 AND b: 1. ", [("a", 0.5), (" b", 1.0)]),
    ("a\n:\n1.5\nAND\nb", [("a", 1.5), ("\nb", 1.0)]),
    ("a:1e2 AND b", [("a:1e2", 1.0), (" b", 1.0)]),
    ("a:1.2.3 AND b:x", [("a:1.2.3", 1.0), (" b:x", 1.0)]),
    ("a:1:2 AND b::3", [("a:1", 2.0), (" b:", 3.0)]),
    ("(a:1.2) AND b", [("(a:1.2)", 1.0), (" b", 1.0)]),
    ("AND", [("", 1.0), ("", 1.0)]),
    ("a AND", [("a", 1.0), ("", 1.0)]),
    ("AND :2", [("", 1.0), ("", 2.0)]),
    ("a AND AND b", [("a", 1.0), ("", 1.0), (" b", 1.0)]),
    ("a and b ANDroid SAND", [("a and b ANDroid SAND", 1.0)]),
    ("a,AND,b", [("a,", 1.0), (",b", 1.0)]),
    ("a AND_b", [("a AND_b", 1.0)]),
    ("a [b AND c:3]", [("a [b", 1.0), (" c:3]", 1.0)]),
    ("a:１.５ AND b", [("a", 1.5), (" b", 1.0)]),
    ("a:10 AND b:-10", [("a", 10.0), (" b", -10.0)]),
]
LIKE_A1111: list[tuple[str, list[tuple[str, float]]]] = [
    ("photo, 16:9", [("photo, 16", 9.0)]),
    ("photo : 0.5 ", [("photo", 0.5)]),
    ("photo ", [("photo", 1.0)]),
    ("(a:1.2)", [("(a:1.2)", 1.0)]),
    ("a:2 AND b", [("a", 2.0), (" b", 1.0)]),
]


@pytest.mark.parametrize(("text", "expected"), COMPOSITIONS)
def test_a_prompt_has_the_parts_of_the_table(text: str, expected: list[tuple[str, float]]) -> None:
    assert composition(text) == expected


@pytest.mark.parametrize(("text", "expected"), LIKE_A1111)
def test_compatibility_reads_a_weight_without_an_and(text: str, expected: list[tuple[str, float]]) -> None:
    assert composition(text, compat="a1111") == expected


@pytest.mark.parametrize("weight", ["11", "-10.5", "9" * 400])
def test_a_part_weight_beyond_10_is_refused(weight: str) -> None:
    with pytest.raises(RequestError, match="beyond 10") as caught:
        composition(f"a AND b:{weight}")
    assert caught.value.field == "prompt"


@pytest.mark.parametrize(
    "text", ["", "a cat", "émoji 👩‍👩‍👧‍👦", "\u202ertl", "\x1b[31m", "Steps: 1, Sampler: Euler", "a" * 65_536]
)
def test_a_text_that_can_be_a_prompt_is_given_back(text: str) -> None:
    assert check_text(text, "prompt") is text


@pytest.mark.parametrize("value", [None, 123, b"x", [], ["a"], 1.5, True])
def test_what_is_no_string_is_refused(value: object) -> None:
    with pytest.raises(RequestError, match="negative_prompt must be a string, not") as caught:
        check_text(value, "negative_prompt")
    assert caught.value.field == "negative_prompt"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\x00b", "NUL at character 1"),
        ("\ud800", r"a lone surrogate \(U\+D800\) at character 0"),
        ("ab\udfff", r"a lone surrogate \(U\+DFFF\) at character 2"),
        ("a" * 65_537, "longer than 64 KiB"),
        ("é" * 32_769, "longer than 64 KiB"),
        ("(" * 10_000_000, "longer than 64 KiB"),
    ],
)
def test_a_text_that_would_fail_later_is_refused_at_once(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        check_text(text, "prompt")
    assert caught.value.field == "prompt"
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "rest", "found"),
    [
        ("a cat", "a cat", []),
        ("a <lora:style:0.8> cat", "a  cat", [("lora", "style:0.8")]),
        ("<lora:a><hypernet:b:1>", "", [("lora", "a"), ("hypernet", "b:1")]),
        ("<lora:../../x:1>", "", [("lora", "../../x:1")]),
        ("<lora:>", "<lora:>", []),
        ("a < b, c > d", "a < b, c > d", []),
        ("<b>", "<b>", []),
        ("<lora:a", "<lora:a", []),
        ("<lora:a <lora:b:1>", "", [("lora", "a <lora:b:1")]),
        ("<a:b> <c:d", " <c:d", [("a", "b")]),
    ],
)
def test_tags_of_extra_networks_are_taken_out(text: str, rest: str, found: list[tuple[str, str]]) -> None:
    assert networks(text) == (rest, found)
