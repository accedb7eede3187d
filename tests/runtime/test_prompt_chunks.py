"""Chunks of 77 tokens under CLIP's real vocabulary, against AUTOMATIC1111's rules written out by hand."""

from __future__ import annotations

import dataclasses
import random

import pytest
from pace import pace

from clipskip.errors import RequestError
from clipskip.prompt import Chunk, Spans, attention, chunks, empty_chunk
from clipskip.tokenizer import Tokenizer

BOS, EOS, A, CAT, DOG, COMMA = 49406, 49407, 320, 2368, 1929, 267
ROWS = 49408  # the first id of a textual inversion's vector


def chunk(*body: int) -> tuple[int, ...]:
    return (BOS, *body, *[EOS] * (76 - len(body)))


def tokens(found: list[Chunk]) -> list[tuple[int, ...]]:
    return [each.tokens for each in found]


def weights(found: list[Chunk]) -> list[tuple[float, ...]]:
    return [each.weights for each in found]


def cats(count: int) -> str:
    return " ".join(["cat"] * count)


# What the bodies of the chunks are, without padding.
BODIES: list[tuple[str, list[list[int]]]] = [
    ("", [[]]),
    ("cat", [[CAT]]),
    (" a  CAT\n", [[A, CAT]]),
    ("a cat, dog", [[A, CAT, COMMA, DOG]]),
    ("(a) cat", [[A, CAT]]),
    ("d(og)", [[323, 8555]]),  # "d" and "og", not "dog"
    ("(cat)(dog)", [[1481, 1929]]),  # one fragment, "catdog"
    (cats(75), [[CAT] * 75]),
    (cats(76), [[CAT] * 75, [CAT]]),
    (cats(150), [[CAT] * 75, [CAT] * 75]),
    (cats(151), [[CAT] * 75, [CAT] * 75, [CAT]]),
    # the comma at index 55 moves what follows it, the one at 54 does not
    (f"{cats(55)}, {cats(20)}", [[*[CAT] * 55, COMMA], [CAT] * 20]),
    (f"{cats(55)}, {cats(19)}", [[*[CAT] * 55, COMMA, *[CAT] * 19]]),
    (f"{cats(54)}, {cats(21)}", [[*[CAT] * 54, COMMA, *[CAT] * 20], [CAT]]),
    (f"{cats(74)}, dog", [[*[CAT] * 74, COMMA], [DOG]]),
    (f"{cats(60)}, {cats(5)}, {cats(9)}", [[*[CAT] * 60, COMMA, *[CAT] * 5, COMMA], [CAT] * 9]),
    # a comma never causes the move, and opens the next chunk without being one to move after
    (f"{cats(60)}, {cats(14)}, dog", [[*[CAT] * 60, COMMA, *[CAT] * 14], [COMMA, DOG]]),
    (f"{cats(75)}, {cats(75)}", [[CAT] * 75, [COMMA, *[CAT] * 74], [CAT]]),
    # the next chunk forgets the comma that it was cut at
    (f"{cats(60)}, {cats(80)}", [[*[CAT] * 60, COMMA], [CAT] * 75, [CAT] * 5]),
    # BREAK
    ("a BREAK cat", [[A], [CAT]]),
    ("BREAK cat", [[], [CAT]]),
    ("cat BREAK", [[CAT]]),
    ("BREAK", [[]]),
    ("a BREAK BREAK cat", [[A], [], [CAT]]),
    (f"{cats(75)} BREAK dog", [[CAT] * 75, [DOG]]),
    (f"{cats(70)}, BREAK {cats(75)}", [[*[CAT] * 70, COMMA], [CAT] * 75]),
    ("a (BREAK) cat", [[A, 2568, CAT]]),
    ("a<|endoftext|>cat", [[A, EOS, CAT]]),
]


@pytest.mark.parametrize(("text", "bodies"), BODIES)
def test_a_text_has_the_chunks_of_the_table(clip_tokenizer: Tokenizer, text: str, bodies: list[list[int]]) -> None:
    assert tokens(chunks(text, clip_tokenizer)) == [chunk(*body) for body in bodies]


def test_each_token_has_the_weight_of_its_fragment(clip_tokenizer: Tokenizer) -> None:
    [found] = chunks("a (cat:1.5) [dog]", clip_tokenizer)
    assert found.tokens == chunk(A, CAT, DOG)
    assert found.weights == (1.0, 1.0, 1.5, 1 / 1.1, *[1.0] * 73)


def test_weights_move_with_their_tokens(clip_tokenizer: Tokenizer) -> None:
    first, second = weights(chunks(f"{cats(60)}, (dog:1.5) {cats(14)}", clip_tokenizer))
    assert first == (1.0,) * 77
    assert second == (1.0, 1.5, *[1.0] * 75)


def test_a_break_in_brackets_is_a_word_of_negative_weight(clip_tokenizer: Tokenizer) -> None:
    [found] = chunks("a (BREAK) cat", clip_tokenizer)
    assert found.weights[:4] == (1.0, 1.0, -1.1, 1.0)


@pytest.mark.parametrize("mode", ["Original", "No norm", "Ignore"])
def test_the_emphasis_changes_only_the_arithmetic(clip_tokenizer: Tokenizer, mode: str) -> None:
    text = "a (cat:1.3) BREAK [dog]"
    assert chunks(text, clip_tokenizer, emphasis=mode) == chunks(text, clip_tokenizer)


def test_without_emphasis_brackets_and_break_are_text(clip_tokenizer: Tokenizer) -> None:
    [found] = chunks("(cat:1.5) BREAK \\(", clip_tokenizer, emphasis="None")
    assert found.tokens == chunk(*clip_tokenizer.ids("(cat:1.5) BREAK \\("))
    assert found.weights == (1.0,) * 77


@pytest.mark.parametrize(("backtrack", "lengths"), [(0, [75, 1]), (14, [75, 1]), (15, [61, 15]), (74, [61, 15])])
def test_the_comma_may_be_so_far_back(clip_tokenizer: Tokenizer, backtrack: int, lengths: list[int]) -> None:
    found = chunks(f"{cats(60)}, {cats(15)}", clip_tokenizer, comma_backtrack=backtrack)
    assert [each.tokens.index(EOS) - 1 for each in found] == lengths


def test_the_empty_chunk_is_that_of_an_empty_prompt(clip_tokenizer: Tokenizer) -> None:
    assert empty_chunk(clip_tokenizer) == Chunk(chunk(), (1.0,) * 77)


def test_a_vocabulary_without_a_comma_never_moves(clip_tokenizer: Tokenizer) -> None:
    other = dataclasses.replace(clip_tokenizer, comma=None)
    assert tokens(chunks(f"{cats(60)}, {cats(15)}", other)) == [chunk(*[CAT] * 60, COMMA, *[CAT] * 14), chunk(CAT)]


# Which tokens stand for the name of a textual inversion.
NAMES: Spans = (("moody", range(3)), ("moody cat", range(3, 4)), ("cat, dog", range(4, 6)), ("", range(1)))
NAMED: list[tuple[str, list[int]]] = [
    ("moody", [ROWS, ROWS + 1, ROWS + 2]),
    ("MooDY", [ROWS, ROWS + 1, ROWS + 2]),
    ("a moody dog", [A, ROWS, ROWS + 1, ROWS + 2, DOG]),
    ("moody cat", [ROWS + 3]),
    ("moody  Cat", [ROWS + 3]),
    ("moody (cat)", [ROWS, ROWS + 1, ROWS + 2, CAT]),
    ("moody moody", [ROWS, ROWS + 1, ROWS + 2] * 2),
    ("cat, dog", [ROWS + 4, ROWS + 5]),
    ("cat,", [CAT, COMMA]),
    ("moodysson", [4953, 1444, 7271]),
]


@pytest.mark.parametrize(("text", "body"), NAMED)
def test_the_name_of_an_inversion_stands_for_its_vectors(clip_tokenizer: Tokenizer, text: str, body: list[int]) -> None:
    assert tokens(chunks(text, clip_tokenizer, spans=NAMES)) == [chunk(*body)]


def test_all_vectors_have_the_weight_of_the_name(clip_tokenizer: Tokenizer) -> None:
    [found] = chunks("(moody:1.4) cat", clip_tokenizer, spans=NAMES)
    assert found.weights[:6] == (1.0, 1.4, 1.4, 1.4, 1.0, 1.0)


def test_vectors_stay_in_one_chunk(clip_tokenizer: Tokenizer) -> None:
    vectors = [ROWS, ROWS + 1, ROWS + 2]
    fits = chunks(f"{cats(72)} moody", clip_tokenizer, spans=NAMES)
    assert tokens(fits) == [chunk(*[CAT] * 72, *vectors)]
    moves = chunks(f"{cats(73)} moody", clip_tokenizer, spans=NAMES)
    assert tokens(moves) == [chunk(*[CAT] * 73), chunk(*vectors)]


def test_vectors_move_with_a_comma(clip_tokenizer: Tokenizer) -> None:
    found = chunks(f"{cats(60)}, a moody dog {cats(10)}", clip_tokenizer, spans=NAMES)
    assert tokens(found) == [chunk(*[CAT] * 60, COMMA), chunk(A, ROWS, ROWS + 1, ROWS + 2, DOG, *[CAT] * 10)]


def test_an_inversion_fills_a_chunk_but_not_more(clip_tokenizer: Tokenizer) -> None:
    full = chunks("a moody cat", clip_tokenizer, spans=(("moody", range(75)),))
    assert tokens(full) == [chunk(A), chunk(*range(ROWS, ROWS + 75)), chunk(CAT)]
    with pytest.raises(RequestError, match="76 vectors does not fit"):
        chunks("a moody cat", clip_tokenizer, spans=(("moody", range(76)),))


def test_two_models_with_the_same_names_do_not_mix(clip_tokenizer: Tokenizer) -> None:
    first = chunks("moody", clip_tokenizer, spans=(("moody", range(1)),))
    second = chunks("moody", clip_tokenizer, spans=(("moody", range(1, 2)),))
    assert (first[0].tokens[1], second[0].tokens[1]) == (ROWS, ROWS + 1)


def test_a_weighted_prompt_of_300_tokens_takes_milliseconds(clip_tokenizer: Tokenizer) -> None:
    draw = random.Random(0)
    words = ["portrait", "young woman", "long red hair", "in the forest", "sunset", "cinematic", "intricate"]
    text = ", ".join(f"({draw.choice(words)} {draw.choice(words)}:1.{draw.randint(1, 9)})" for _ in range(110))
    assert sum(len(clip_tokenizer.ids(fragment)) for fragment, _ in attention(text)) >= 300
    assert pace(lambda: chunks(text, clip_tokenizer), times=5) < 1  # 0.0015 s on a quiet core
