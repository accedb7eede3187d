"""What is encoded, how often, and what the U-Net's rows look at. The numbers are checked in test_context_reference."""

import time

import numpy as np
import pytest
from facts import MODEL, step_artefact

from clipskip.context import TextStage
from clipskip.errors import RequestError
from clipskip.limits import Limits
from clipskip.prompt import NO_CONCEPTS
from clipskip.request import Request
from clipskip.resolve import resolve
from clipskip.tokenizer import Tokenizer

LIMITS = Limits.of(step_artefact(T=(77, 4 * 77)), 2**30, max_batch=None, build_command="clipskip build S")


class Encoder:
    """Gives every token row a context that names it, and remembers what it was asked."""

    def __init__(self):
        self.calls = []

    def __call__(self, layers, tokens):
        self.calls.append((layers, len(tokens)))
        return (tokens[:, :, None] + 1000 * layers + np.arange(4)).astype(np.float32)


@pytest.fixture
def stage(sample_checkpoint):
    encoder = Encoder()
    stage = TextStage(Tokenizer.open(sample_checkpoint / "tokenizer"), NO_CONCEPTS, encoder, LIMITS)
    return stage, encoder


def wanted(prompt, **fields):
    return resolve(Request(**{"prompt": prompt, "steps": 10, "seed": 1, **fields}), MODEL)


def test_prompt_and_negative_become_two_parts_whose_weights_sum_to_one(stage):
    (made,) = stage[0].condition([wanted("a red circle", cfg=7)])
    assert [part.weight for part in made.parts] == [7, -6]
    assert made.chunks == 1


def test_without_guidance_the_negative_prompt_is_not_encoded(stage):
    (made,) = stage[0].condition([wanted("a red circle", cfg=1, negative_prompt="blue")])
    assert [part.weight for part in made.parts] == [1]
    assert stage[1].calls == [(12, 1)]


def test_and_makes_one_part_each(stage):
    (made,) = stage[0].condition([wanted("a circle AND a star :0.5", cfg=4)])
    assert [part.weight for part in made.parts] == [4, 2, -5]


def test_and_with_weights_that_sum_to_one_needs_no_negative_without_guidance(stage):
    (made,) = stage[0].condition([wanted("a circle :0.25 AND a star :0.75", cfg=1)])
    assert [part.weight for part in made.parts] == [0.25, 0.75]


@pytest.mark.parametrize(("prompt", "same"), [("a circle AND ", "a circle"), ("[a:b:0]", "b"), ("a [x|x]", "a x")])
def test_syntax_that_changes_nothing_gives_the_plain_context(stage, prompt, same):
    one, other = stage[0].condition([wanted(prompt), wanted(same)])
    for call in range(10):
        first, second = one.parts[0], other.parts[0]
        np.testing.assert_array_equal(first.contexts[first.variant(call)], second.contexts[second.variant(call)])


def test_a_schedule_switches_one_call_late_as_in_a1111(stage):
    (made,) = stage[0].condition([wanted("[a circle:a star:5]")])
    assert [made.parts[0].variant(call) for call in range(10)] == [0] * 6 + [1] * 4


def test_two_stage_samplers_run_on_a_schedule_made_for_twice_the_steps(stage):
    (made,) = stage[0].condition([wanted("[a circle:a star:0.5]", sampler="Heun")])
    assert [made.parts[0].variant(call) for call in (10, 11)] == [0, 1]


def test_each_distinct_text_is_encoded_once_however_often_it_alternates(stage):
    stage[0].condition([wanted("a [circle|star] here", cfg=1)])
    assert stage[1].calls == [(12, 2)]


def test_all_requests_of_a_depth_share_one_call_of_its_engine(stage):
    requests = [wanted("one", clip_skip=2), wanted("two", clip_skip=2), wanted("three", clip_skip=13)]
    stage[0].condition(requests)
    assert sorted(stage[1].calls) == [(0, 2), (11, 3)]  # the empty negative prompt stands once for each depth


def test_what_was_encoded_is_not_encoded_again(stage):
    stage[0].condition([wanted("a red circle")])
    stage[0].condition([wanted("a red circle", seed=2, width=256)])
    stage[0].condition([wanted("a red circle", cfg=3, steps=7)])
    assert len(stage[1].calls) == 1


def test_the_shorter_of_prompt_and_negative_gets_chunks_of_the_empty_prompt(stage):
    (made,) = stage[0].condition([wanted("a BREAK b BREAK c", negative_prompt="d")])
    positive, negative = (part.contexts[0] for part in made.parts)
    assert made.chunks == 3
    assert positive.shape == negative.shape == (3 * 77, 4)
    np.testing.assert_array_equal(negative[77:154], negative[154:])


def test_a_prompt_of_too_many_chunks_is_refused_and_nothing_is_encoded(stage):
    with pytest.raises(RequestError, match="5 chunks of 75 tokens; the engines take 4"):
        stage[0].condition([wanted("fine"), wanted("BREAK " * 4 + "a")])
    assert stage[1].calls == []


def test_a_cached_context_takes_less_than_a_fifth_of_a_millisecond(stage):
    request = wanted("a (red:1.2) circle on [a green:a blue:0.5] background, " * 12)
    stage[0].condition([request])
    times = []
    for _ in range(50):
        start = time.perf_counter()
        stage[0].condition([request])
        times.append(time.perf_counter() - start)
    assert min(times) < 0.0002
