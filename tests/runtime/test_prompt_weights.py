"""The weights of a text. The table was checked against a plain transcription of A1111's rules, to the last bit."""

from __future__ import annotations

import pytest

from clipskip.errors import RequestError
from clipskip.prompt import attention

UP, DOWN = 1.1, 1 / 1.1
BREAK = ("BREAK", -1.0)

TABLE: list[tuple[str, list[tuple[str, float]]]] = [
    # plain text and what is no syntax
    ("", [("", 1.0)]),
    ("normal text", [("normal text", 1.0)]),
    (" space around ", [(" space around ", 1.0)]),
    ("a: b, c:d", [("a: b, c:d", 1.0)]),
    ("16:9", [("16:9", 1.0)]),
    ("a:1.2)", [("a:1.2)", 1.0)]),
    ("a)", [("a)", 1.0)]),
    ("a]]", [("a]]", 1.0)]),
    ("{a} <b> |c|", [("{a} <b> |c|", 1.0)]),
    ("日本 (語)", [("日本 ", 1.0), ("語", UP)]),
    # round brackets
    ("(a)", [("a", UP)]),
    ("an (important) word", [("an ", 1.0), ("important", UP), (" word", 1.0)]),
    ("((a))", [("a", 1.2100000000000002)]),
    ("(((a)))", [("a", 1.3310000000000004)]),
    ("(unnecessary)(parens)", [("unnecessaryparens", UP)]),
    ("()", [("", 1.0)]),
    ("(())a", [("a", 1.0)]),
    ("(a) (b)", [("a", UP), (" ", 1.0), ("b", UP)]),
    ("(a (b) c)", [("a ", UP), ("b", 1.2100000000000002), (" c", UP)]),
    # square brackets
    ("[a]", [("a", DOWN)]),
    ("[[a]]", [("a", DOWN * DOWN)]),
    ("([a])", [("a", DOWN * UP)]),
    ("[(a)]", [("a", UP * DOWN)]),
    ("[a:0.5]", [("a:0.5", DOWN)]),
    # written weights
    ("(a:1.3)", [("a", 1.3)]),
    ("(a:1)", [("a", 1.0)]),
    ("(a: 1.3 )", [("a", 1.3)]),
    ("(a:\n1.3\t)", [("a", 1.3)]),
    ("(a:.5)", [("a", 0.5)]),
    ("(a:5.)", [("a", 5.0)]),
    ("(a:+1.5)", [("a", 1.5)]),
    ("(a:-3)", [("a", -3.0)]),
    ("(a:0)", [("a", 0.0)]),
    ("(a:10)", [("a", 10.0)]),
    ("(a:-10)", [("a", -10.0)]),
    ("(a:１.５)", [("a", 1.5)]),
    ("((a:1.3))", [("a", 1.4300000000000002)]),
    ("((a:1.5):0.5)", [("a", 0.75)]),
    ("(a (b:2) c:1.5)", [("a ", 1.5), ("b", 3.0), (" c", 1.5)]),
    ("([a]:2)", [("a", DOWN * 2)]),
    ("(:1.3)", [("", 1.0)]),
    ("(a:b:1.2)", [("a:b", 1.2)]),
    # written weights that are none
    ("(a:1.2.3)", [("a:1.2.3", UP)]),
    ("(a:.)", [("a:.", UP)]),
    ("(a:..5)b", [("a:..5", UP), ("b", 1.0)]),
    ("(a: 1.2.3 )", [("a: 1.2.3 ", UP)]),
    ("((a:1.2.3))", [("a:1.2.3", 1.2100000000000002)]),
    ("(a:nan)", [("a:nan", UP)]),
    ("(a:inf)", [("a:inf", UP)]),
    ("(a:1e5)", [("a:1e5", UP)]),
    ("(a:-)", [("a:-", UP)]),
    ("(a:--1)", [("a:--1", UP)]),
    ("(a:)", [("a:", UP)]),
    ("(a:1 2)", [("a:1 2", UP)]),
    ("(a:²)", [("a:²", UP)]),
    # left open, closed too often, crossing
    ("(unbalanced", [("unbalanced", UP)]),
    ("[unbalanced", [("unbalanced", DOWN)]),
    ("a ((b", [("a ", 1.0), ("b", 1.2100000000000002)]),
    ("(a))", [("a", UP), (")", 1.0)]),
    (")))", [(")))", 1.0)]),
    ("(a:1.3", [("a:1.3", UP)]),
    ("(a]", [("a]", UP)]),
    ("(a [b) c]", [("a ", UP), ("b", UP * DOWN), (" c", DOWN)]),
    ("[a (b] c)", [("a ", DOWN), ("b", DOWN * UP), (" c", UP)]),
    ("([a", [("a", UP * DOWN)]),
    # escapes
    (r"\(literal\]", [("(literal]", 1.0)]),
    (r"\(a:1.3\)", [("(a:1.3)", 1.0)]),
    (r"(a\))", [("a)", UP)]),
    (r"\[\]", [("[]", 1.0)]),
    (r"\\", [("\\", 1.0)]),
    (r"\\(a)", [("\\", 1.0), ("a", UP)]),
    (r"\\\(a", [(r"\(a", 1.0)]),
    (r"a\b", [("ab", 1.0)]),
    ("a\\", [("a", 1.0)]),
    (r"\:", [(":", 1.0)]),
    # BREAK
    ("BREAK", [("", 1.0), BREAK, ("", 1.0)]),
    ("a BREAK b", [("a", 1.0), BREAK, ("b", 1.0)]),
    ("a\nBREAK\n\nb", [("a", 1.0), BREAK, ("b", 1.0)]),
    ("BREAK BREAK", [("", 1.0), BREAK, ("", 1.0), BREAK, ("", 1.0)]),
    ("a,BREAK,b", [("a,", 1.0), BREAK, (",b", 1.0)]),
    ("BREAKFAST aBREAK break BREAK_", [("BREAKFAST aBREAK break BREAK_", 1.0)]),
    ("(a) BREAK (b)", [("a", UP), ("", 1.0), BREAK, ("", 1.0), ("b", UP)]),
    ("(a BREAK b)", [("a", UP), ("BREAK", -UP), ("b", UP)]),
    ("[BREAK]", [("", DOWN), ("BREAK", -DOWN), ("", DOWN)]),
    ("(a BREAK b:1)", [("a", 1.0), BREAK, ("b", 1.0)]),
    # A1111's own example
    (
        "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
        [
            ("a ", 1.0),
            ("house", 1.5730000000000004),
            (" ", UP),
            ("on", 1.0),
            (" a ", UP),
            ("hill", 0.55),
            (", sun, ", UP),
            ("sky", 1.4641000000000006),
            (".", UP),
        ],
    ),
]


@pytest.mark.parametrize(("text", "expected"), TABLE)
def test_a_text_has_the_weights_of_the_table_d26_d27(text: str, expected: list[tuple[str, float]]) -> None:
    assert attention(text) == expected


@pytest.mark.parametrize(
    "text",
    ["(a:11)", "(a:-10.1)", f"(a:{'9' * 45})", f"(a:{'9' * 400})", "[[(a:12)]]", "((a:5):5)", "((BREAK:4):4)", "(:12)"],
)
def test_a_weight_beyond_10_is_refused_d28(text: str) -> None:
    with pytest.raises(RequestError, match="beyond 10") as caught:
        attention(text)
    assert caught.value.field == "prompt"


@pytest.mark.parametrize("brackets", [25, 1_000, 100_000])
def test_brackets_that_multiply_beyond_10_are_refused_at_any_depth(brackets: int) -> None:
    with pytest.raises(RequestError, match="beyond 10"):
        attention("(" * brackets + "a")
    with pytest.raises(RequestError, match="beyond 10"):
        attention("(" * brackets + "a" + ")" * brackets)


def test_brackets_without_text_have_no_weight_to_refuse() -> None:
    assert attention("(" * 100_000) == [("", 1.0)]


def test_24_brackets_are_not_too_many() -> None:
    [(text, weight)] = attention("(" * 24 + "a")
    assert text == "a"
    assert weight == pytest.approx(1.1**24)


def test_a_weight_of_12_outside_brackets_is_text() -> None:
    assert attention("a:12)") == [("a:12)", 1.0)]


@pytest.mark.parametrize("depth", [31, 32, 33, 100, 5_000])
def test_factors_count_at_any_depth(depth: int) -> None:
    """Deeper than the brackets whose order is kept, only the last digits may differ."""
    text = "(" * depth + "[" * depth + "a" + ":1.25)" + ")" * (depth - 1) + "]" * depth
    [(_, weight)] = attention(text)
    assert weight == pytest.approx(1.25 / 1.1, rel=1e-9)


def test_the_message_shows_the_place_without_control_characters() -> None:
    with pytest.raises(RequestError) as caught:
        attention("(\x1b[31mred" + "é" * 100 + ":11)")
    assert str(caught.value).isascii()
    assert "\x1b" not in str(caught.value)
