"""What prompts of other programs hold beside text, comments and tags; and prompts that would fill the memory."""

from __future__ import annotations

import resource
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from resolving import resolved, sample_tokenizer

from clipskip.errors import RequestError
from clipskip.prompt import chunks, parts
from clipskip.prompt.parts import MOST_CONTEXTS, without_comments
from clipskip.request import Request

COMMENTED = {
    "a line": "a cat,\n# try without the hat\nin a hat",
    "the rest of a line": "a cat, # best so far\nin a hat",
    "the end": "a cat,\nin a hat # v3, more (detail:1.3)",
    "the first line": "# quality\na cat,\nin a hat",
    "with a carriage return": "a cat, # best so far\r\nin a hat",
    "several": "#a\n#b\na cat,\n#c\n#d\nin a hat\n#e\n#f",
    "a tag, a network and brackets": "a cat, # <a:b> <lora:x:1> [((\nin a hat # AND",
}


@pytest.mark.parametrize("emphasis", ["Original", "None"])
@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
@pytest.mark.parametrize("typed", COMMENTED.values(), ids=COMMENTED)
def test_a_comment_is_no_text_of_either_prompt(typed: str, field: str, emphasis: str) -> None:
    plain = resolved(Request(**{"prompt": "b", field: "a cat,\nin a hat"}, emphasis=emphasis, seed=1))
    found = resolved(Request(**{"prompt": "b", field: typed}, emphasis=emphasis, seed=1))
    assert found.texts == plain.texts
    assert "#" not in getattr(found.request, field)  # nor in the metadata, as in AUTOMATIC1111
    assert [note for note in found.notes if note not in plain.notes] == [
        "comments were left out of the prompts, from # to the end of the line (a # that is meant: ＃)"
    ]


@pytest.mark.parametrize(
    ("typed", "left"),
    [("", ""), ("a", "a"), ("#", ""), ("a#b", "a"), ("a\n#b", "a\n"), ("#a\n\nb", "\nb"), ("a \n b#\n", "a \n b\n")],
)
def test_a_comment_takes_its_line_along_where_it_is_all_of_it(typed: str, left: str) -> None:
    assert without_comments(typed) == left


@pytest.mark.parametrize("typed", ["＃1 dad", "&num;1 dad"])
def test_a_number_sign_can_be_meant(typed: str) -> None:
    (chunk,) = resolved(Request(prompt=typed, cfg=1)).texts[0].variants[0]
    ids = sample_tokenizer().ids("#1 dad")
    assert list(chunk.tokens[1 : 1 + len(ids)]) == ids


@pytest.mark.parametrize(
    "tag",
    [
        "<hypernet:old:1.0>",
        "<HYPERNET:old>",
    ],
)
def test_hypernetworks_are_refused(tag: str) -> None:
    with pytest.raises(RequestError, match="hypernetworks are not supported") as caught:
        resolved(f"a cat {tag}")
    assert caught.value.field == "prompt"


@pytest.mark.parametrize(
    ("tag", "hint"),
    [
        ("<clip:skip:2>", "clip skip is a setting, clip_skip"),
        ("<inversion:autumn:1.0>", "called by its bare name"),
        ("<segment:face>", ""),
        ("<locon:style:0.7>", "a LoRA of any kind is called <lora:name:weight>"),
        ("<loractl:net:0@0,1@0.5>", ""),
        ("<cut:\x1b[31m>", r"<cut:\x1b[31m>"),
    ],
)
def test_unknown_tags_leave_the_prompt_and_are_noted(tag: str, hint: str) -> None:
    found, plain = resolved(f"a {tag}circle", cfg=1), resolved("a circle", cfg=1)
    assert found.texts == plain.texts
    assert tag in found.request.prompt  # the metadata keeps it, as AUTOMATIC1111's does
    (note,) = set(found.notes) - set(plain.notes)
    assert note.startswith("tags that are unknown here were left out of the prompt: <")
    assert hint in note
    assert note.isprintable()


def test_many_tags_make_one_note_of_one_line() -> None:
    note = resolved("".join(f"<tag:{number}>" for number in range(5000))).notes[-1]
    assert note.endswith("<tag:3>, <tag:4>, ...")


@pytest.mark.parametrize(
    "text", ["i <3 cats", "<name> of a cat", "a<b", "a < b: c > d", "<:x>", "<a:>", "<lora:x", "<>"]
)
def test_other_angle_brackets_are_text(text: str) -> None:
    found = resolved(text, cfg=1)
    assert found.texts[0].variants[0] == tuple(chunks(text, sample_tokenizer()))
    assert not any("tag" in note for note in found.notes)


def test_a_tag_in_the_negative_prompt_is_text_as_in_a1111() -> None:
    found = resolved("", negative_prompt="<clip:skip:2>", cfg=7)
    assert found.texts[1].variants[0] == tuple(chunks("<clip:skip:2>", sample_tokenizer()))
    assert any(note.startswith("tags in the negative prompt are read as words") for note in found.notes)


def alternations(*options: int, word: str = "a") -> str:
    return " ".join("[" + "|".join(f"{word}{place}" for place in range(count)) + "]" for count in options)


BOMBS = {
    "coprime": alternations(2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, word="word"),
    "coprime and long": alternations(2, 3, 5, 7, 11, 13) + " x" * 30_000,
    "coprime and nothing": "".join("[" + "|" * (count - 1) + "]" for count in (2, 3, 5, 7, 11, 13, 17, 19)) * 500,
    "coprime and brackets": alternations(7, 11, 13) + "(" * 1_800,
    "coprime and entities": alternations(7, 11, 13) + "&amp;" * 300,
    "schedules": "".join(f"[a:b:{step}]" for step in range(6_000)),
    "parts": "[a|b|c]AND " * 5_900,
    "fewer parts": " AND ".join([alternations(3, 5)] * 100),
    "breaks": "[a|b|c]" + "BREAK " * 9_000,
}


@pytest.mark.parametrize("evaluations", [1_000, 20_000])
@pytest.mark.parametrize("prompt", BOMBS.values(), ids=BOMBS)
def test_no_prompt_fills_the_memory_or_takes_long_d24(prompt: str, evaluations: int) -> None:
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    error, contexts = None, 0
    try:
        texts, _ = parts.joined(parsed(prompt, evaluations), 64, sample_tokenizer())
        contexts = sum(len(text.variants) * text.length for text in texts)
    except RequestError as refusal:
        error = refusal
    assert contexts <= MOST_CONTEXTS
    assert error is None or (error.field == "prompt" and error.hint)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150 * 2**10  # KiB
    assert time.process_time() - start < 10  # at most 2 s on a quiet core


def parsed(prompt: str, evaluations: int) -> tuple[parts.Text, ...]:
    once = ((evaluations, 1),)
    guidance, words = parts.Guidance(7, ""), (sample_tokenizer(), ())
    return parts.parse(Request(prompt=prompt), guidance, (once, once), range(12, -1, -1), evaluations, words)


def test_the_contexts_of_a_prompt_are_bounded_and_the_refusal_says_how() -> None:
    with pytest.raises(RequestError, match=r"1155 texts, of 1155 chunks in all; 1024 is the limit"):
        parsed(alternations(3, 5, 7, 11), 1_200)
    assert len(parsed(alternations(3, 5, 7, 11), 1_000)[0].variants) == 1_000
    with pytest.raises(RequestError, match=r"of 2000 chunks in all"):
        parsed(alternations(3, 5, 7, 11) + " BREAK x", 1_000)


def test_padding_for_a_long_negative_counts_too() -> None:
    with pytest.raises(RequestError, match=r"101 texts, of 4141 chunks in all"):
        resolved(alternations(10, 11), negative_prompt="BREAK " * 40 + "a", cfg=7, steps=100, pad_cond_uncond=True)


PIECES = [
    *"()[]:|\\, .ab3-<>#\n＃，（",
    "BREAK",
    " AND ",
    "[a:",
    ":2]",
    "|b]",
    "<x:y>",
    "<lora:",
    "&amp;",
    "&#38;",
    ":1.2)",
    "é",
]


@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join), st.text(max_size=20), st.integers(1, 60))
def test_any_prompts_are_resolved_or_refused(prompt: str, negative: str, steps: int) -> None:
    try:
        found = resolved(prompt, negative_prompt=negative, steps=steps)
    except RequestError:
        return
    assert resolved(found.request).texts == found.texts
