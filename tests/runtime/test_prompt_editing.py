"""Which text a prompt is at which step. The table was checked against A1111 1.10's grammar, run by lark 1.1.2."""

from __future__ import annotations

import pytest

from clipskip.prompt import editing

TABLE: list[tuple[str, int, list[tuple[int, str]]]] = [
    # no schedule
    ("", 10, [(10, "")]),
    ("test", 10, [(10, "test")]),
    ("(a:1.2) [b] ((c))", 10, [(10, "(a:1.2) [b] ((c))")]),
    ("[]", 10, [(10, "[]")]),
    ("[a:b]", 10, [(10, "[a:b]")]),
    ("[a:b:c]", 10, [(10, "[a:b:c]")]),
    ("[a:b:c:3]", 10, [(10, "[a:b:c:3]")]),
    ("[a:b:c:d]", 10, [(10, "[a:b:c:d]")]),
    ("[a:5", 10, [(10, "[a:5")]),
    ("a [unbalanced", 10, [(10, "a [unbalanced")]),
    ("[a]:3]", 10, [(10, "[a]:3]")]),
    ("[(a]:b:3)", 10, [(10, "[(a]:b:3)")]),
    ("[(a:b:c):3]", 10, [(10, "[(a:b:c):3]")]),
    ("[a:(b:c:3]", 10, [(10, "[a:(b:c:3]")]),
    ("[a:[b:c]:3]", 10, [(10, "[a:[b:c]:3]")]),
    # the three forms
    ("a [b:3]", 10, [(3, "a "), (10, "a b")]),
    ("a [b: 3]", 10, [(3, "a "), (10, "a b")]),
    ("[a::5]", 10, [(5, "a"), (10, "")]),
    ("[:a:5]", 10, [(5, ""), (10, "a")]),
    ("a [b : c : 1] d", 10, [(1, "a b  d"), (10, "a  c  d")]),
    ("[:5]", 10, [(5, ""), (10, "")]),
    ("[::5]", 10, [(5, ""), (10, "")]),
    ("[ : 3]", 10, [(3, ""), (10, " ")]),
    ("[a: :3]", 10, [(3, "a"), (10, " ")]),
    (" [a:3] ", 10, [(3, "  "), (10, " a ")]),
    ("[\n:\n2\n]", 10, [(2, ""), (10, "\n")]),
    ("[a:2\u3000]", 10, [(2, ""), (10, "a")]),
    ("[a:b:2] [c:d:7]", 10, [(2, "a c"), (7, "b c"), (10, "b d")]),
    ("[a:b:4] [c:d:4]", 10, [(4, "a c"), (10, "b d")]),
    # numbers
    ("a [b:.5] c", 10, [(5, "a  c"), (10, "a b c")]),
    ("[a:b:0.5]", 20, [(10, "a"), (20, "b")]),
    ("[a:b:0.99]", 10, [(9, "a"), (10, "b")]),
    ("[a:b:1.0]", 10, [(10, "a")]),
    ("[a:1.2]", 10, [(10, "")]),
    ("[a:b:5.]", 10, [(10, "a")]),
    ("[a:b:1]", 10, [(1, "a"), (10, "b")]),
    ("[a:b:0]", 10, [(10, "b")]),
    ("[a:b:0.0]", 10, [(10, "b")]),
    ("[a:b:.05]", 10, [(10, "b")]),
    ("[a:b:-3]", 10, [(10, "b")]),
    ("[a:b:-.5]", 10, [(10, "b")]),
    ("[a:b:+2]", 10, [(2, "a"), (10, "b")]),
    ("[a:b:10]", 10, [(10, "a")]),
    ("[a:b:11]", 10, [(10, "a")]),
    ("[a:b:1e0]", 10, [(1, "a"), (10, "b")]),
    ("[a:b:.5e0]", 10, [(5, "a"), (10, "b")]),
    ("[a:b:20e-1]", 10, [(2, "a"), (10, "b")]),
    ("[a:b:1e999]", 10, [(10, "a")]),
    ("[a:b:-1e999]", 10, [(10, "b")]),
    ("[a:b:--5]", 10, [(10, "[a:b:--5]")]),
    ("[a:b:5 5]", 10, [(10, "[a:b:5 5]")]),
    ("[a:b:.]", 10, [(10, "[a:b:.]")]),
    ("[a:b:３]", 10, [(10, "[a:b:３]")]),
    ("[a:b:5e]", 10, [(10, "[a:b:5e]")]),
    # alternation
    ("[a|b]", 4, [(1, "a"), (2, "b"), (3, "a"), (4, "b")]),
    ("[fe|]male", 3, [(1, "female"), (2, "male"), (3, "female")]),
    ("[fe|||]male", 5, [(1, "female"), (2, "male"), (3, "male"), (4, "male"), (5, "female")]),
    ("[|a]", 2, [(1, ""), (2, "a")]),
    ("[|]", 2, [(1, ""), (2, "")]),
    ("[a|(b:1.1)]", 3, [(1, "a"), (2, "(b:1.1)"), (3, "a")]),
    ("[a|b] [c|d|e]", 4, [(1, "a c"), (2, "b d"), (3, "a e"), (4, "b c")]),
    ("[a | b ]", 2, [(1, "a "), (2, " b ")]),
    ("[a|b]", 1, [(1, "a")]),
    # a bar outside an alternation makes all of the prompt literal
    ("a | b [c:3]", 10, [(10, "a | b [c:3]")]),
    ("(a|b) [c:3]", 10, [(10, "(a|b) [c:3]")]),
    ("[a|b:3] [c:3]", 10, [(10, "[a|b:3] [c:3]")]),
    ("[a:b|c:3]", 10, [(10, "[a:b|c:3]")]),
    ("[a:1|b:2]", 10, [(10, "[a:1|b:2]")]),
    ("[a|b [c:3]", 10, [(10, "[a|b [c:3]")]),
    ("[a|(b:c:d)] [c:3]", 10, [(10, "[a|(b:c:d)] [c:3]")]),
    ("a [{b|d{:.5] c", 10, [(10, "a [{b|d{:.5] c")]),
    # nesting
    ("a[b:[c:d:2]:1]e", 10, [(1, "abe"), (2, "ace"), (10, "ade")]),
    ("a [[[b]]:2]", 10, [(2, "a "), (10, "a [[b]]")]),
    ("[(a:2):3]", 10, [(3, ""), (10, "(a:2)")]),
    ("(a [b:c:3] d:1.2)", 10, [(3, "(a b d:1.2)"), (10, "(a c d:1.2)")]),
    ("[[a:b:2]:c:4]", 10, [(2, "a"), (4, "b"), (10, "c")]),
    ("[a|[b:c:3]]", 5, [(1, "a"), (2, "b"), (3, "a"), (4, "c"), (5, "a")]),
    ("[[a|b]:c:3]", 5, [(1, "a"), (2, "b"), (3, "a"), (4, "c"), (5, "c")]),
    ("[a:[b|c]:2]", 5, [(1, "a"), (2, "a"), (3, "b"), (4, "c"), (5, "b")]),
    ("[[a:1]|[b:2]]", 5, [(1, ""), (2, ""), (3, "a"), (4, "b"), (5, "a")]),
    ("[[a|b]|c]", 4, [(1, "a"), (2, "c"), (3, "a"), (4, "c")]),
    # literal brackets beside schedules
    ("((a][:b:c [d:3]", 10, [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
    ("([a:3]", 10, [(3, "("), (10, "(a")]),
    ("[[a:b:1] x", 10, [(1, "[a x"), (10, "[b x")]),
    ("[a:3] ]", 10, [(3, " ]"), (10, "a ]")]),
    ("[a:3]]", 10, [(3, "]"), (10, "a]")]),
    ("[a:b] [c:d:2]", 10, [(2, "[a:b] c"), (10, "[a:b] d")]),
    # escapes
    (r"\[a:3\]", 10, [(10, r"\[a:3\]")]),
    (r"a\[b:3]", 10, [(10, r"a\[b:3]")]),
    (r"[a:\]:3]", 10, [(3, "a"), (10, r"\]")]),
    (r"[a\:b:3]", 10, [(3, ""), (10, r"a\:b")]),
    (r"a\|b [c:3]", 10, [(3, r"a\|b "), (10, r"a\|b c")]),
    (r"a\b [c:3]", 10, [(3, r"a\b "), (10, r"a\b c")]),
    ("[c:3] a\\", 10, [(10, "[c:3] a\\")]),
    ("[c:3] a\\\nb", 10, [(10, "[c:3] a\\\nb")]),
    # A1111's own example
    (
        "fantasy landscape with a [mountain:lake:0.25] and [an oak:a christmas tree:0.75][ in foreground::0.6]"
        "[: in background:0.25] [shoddy:masterful:0.5]",
        100,
        [
            (25, "fantasy landscape with a mountain and an oak in foreground shoddy"),
            (50, "fantasy landscape with a lake and an oak in foreground in background shoddy"),
            (60, "fantasy landscape with a lake and an oak in foreground in background masterful"),
            (75, "fantasy landscape with a lake and an oak in background masterful"),
            (100, "fantasy landscape with a lake and a christmas tree in background masterful"),
        ],
    ),
]


@pytest.mark.parametrize(("text", "steps", "expected"), TABLE)
def test_a_prompt_is_the_texts_of_the_table(text: str, steps: int, expected: list[tuple[int, str]]) -> None:
    assert editing(text, steps) == expected


def test_options_whose_counts_share_no_factor_meet_after_their_product() -> None:
    texts = [text for _, text in editing("[a|b][c|d|e]", 12)]
    assert texts[:6] == ["ac", "bd", "ae", "bc", "ad", "be"]
    assert texts[6:] == texts[:6]


@pytest.mark.parametrize("depth", [10, 20_000])
def test_schedules_nest_at_any_depth(depth: int) -> None:
    assert editing("[" * depth + "a" + "::3]" * depth, 10) == [(3, "a"), (10, "")]


@pytest.mark.parametrize("depth", [10, 20_000])
def test_alternations_nest_at_any_depth(depth: int) -> None:
    assert editing("[" * depth + "a" + "|b]" * depth, 3) == [(1, "a"), (2, "b"), (3, "a")]
