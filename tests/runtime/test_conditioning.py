"""What is encoded, how often, and what the U-Net's rows are fed. Numbers: see test_conditioning_reference."""

import gc
import weakref
from contextlib import contextmanager

import numpy as np
import pytest
from facts import MODEL, step_artefact

from clipskip.backends import backend_named
from clipskip.conditioning import MOST_ROWS, TextEncoder
from clipskip.engines.manifest import Artefact, AxisRange
from clipskip.engines.store import Store
from clipskip.engines.variants import PLAIN, Mix
from clipskip.errors import RequestError
from clipskip.inversions import Inversions
from clipskip.pipeline import Pipeline, Settings
from clipskip.request import Request
from clipskip.resolve import Limits, resolve
from clipskip.tokenizer import Tokenizer

LIMITS = Limits.of(step_artefact(T=(77, 4 * 77)), 2**30, max_batch=None, build_command="clipskip build S")
NO_INVERSIONS = Inversions(np.zeros((1, 4), np.float32))


class Texts:
    """Text engines that give every token row a context that names it; `calls` is what they were asked."""

    def __init__(self, **axes):
        self.axes = {name: AxisRange(1, 1, most) for name, most in axes.items()}
        self.calls = []

    @contextmanager
    def use(self, role, mix=None):
        self.role = role
        self.artefact = Artefact(role, "onnx", "fp32", (), (), self.axes)
        yield self

    def mix(self, role, loras):
        return PLAIN

    def run(self, feeds):
        tokens = feeds["tokens"]
        self.calls.append((self.role.layers, len(tokens)))
        return {"context": (tokens[:, :, None] + 1000 * self.role.layers + np.arange(4)).astype(np.float32)}


@pytest.fixture
def texts():
    return Texts()


@pytest.fixture
def encoder(texts):
    return TextEncoder(texts, NO_INVERSIONS.vectors, round_up=False)


@pytest.fixture(scope="module")
def resolved(sample_checkpoint):
    tokenizer = Tokenizer.open(sample_checkpoint / "tokenizer")

    def make(prompt, **fields):
        request = Request(**{"prompt": prompt, "steps": 10, "seed": 1, **fields})
        return resolve(request, MODEL, LIMITS, tokenizer, NO_INVERSIONS)

    return make


def context(row, call=0):
    return row.feeds(call)["context"]


def test_prompt_and_negative_become_two_rows_whose_weights_sum_to_one(encoder, resolved):
    (rows,) = encoder.rows([resolved("a red circle", cfg=7)])
    assert [row.weight for row in rows] == [7, -6]
    assert [context(row).shape for row in rows] == [(77, 4)] * 2


def test_without_guidance_the_negative_prompt_is_not_encoded(encoder, texts, resolved):
    (rows,) = encoder.rows([resolved("a red circle", cfg=1, negative_prompt="blue")])
    assert [row.weight for row in rows] == [1]
    assert texts.calls == [(12, 1)]


def test_and_makes_one_row_each(encoder, resolved):
    (rows,) = encoder.rows([resolved("a circle AND a star :0.5", cfg=4)])
    assert [row.weight for row in rows] == [4, 2, -5]


def test_and_with_weights_that_sum_to_one_needs_no_negative_without_guidance(encoder, resolved):
    (rows,) = encoder.rows([resolved("a circle :0.25 AND a star :0.75", cfg=1)])
    assert [row.weight for row in rows] == [0.25, 0.75]


@pytest.mark.parametrize(("prompt", "same"), [("a circle AND ", "a circle"), ("[a:b:0]", "b"), ("a [x|x]", "a x")])
def test_syntax_that_changes_nothing_gives_the_plain_context(encoder, resolved, prompt, same):
    (one, *_), (other, *_) = encoder.rows([resolved(prompt), resolved(same)])
    for call in range(10):
        np.testing.assert_array_equal(context(one, call), context(other, call))


def switches(row, calls):
    """Whether each call looks at something else than the first."""
    return [row.feeds(call) is not row.feeds(0) for call in calls]


def test_a_schedule_switches_one_call_late_as_in_a1111(encoder, resolved):
    ((row, *_),) = encoder.rows([resolved("[a circle:a star:5]")])
    assert switches(row, range(10)) == [False] * 6 + [True] * 4


def test_two_stage_samplers_run_on_a_schedule_made_for_twice_the_steps(encoder, resolved):
    ((row, *_),) = encoder.rows([resolved("[a circle:a star:0.5]", sampler="Heun")])
    assert switches(row, (10, 11)) == [False, True]


def test_each_distinct_text_is_encoded_once_however_often_it_alternates(encoder, texts, resolved):
    encoder.rows([resolved("a [circle|star] here", cfg=1)])
    assert texts.calls == [(12, 2)]


def test_all_requests_of_a_depth_share_one_call_of_its_engine(encoder, texts, resolved):
    encoder.rows([resolved("one", clip_skip=2), resolved("two", clip_skip=2), resolved("three", clip_skip=13)])
    assert sorted(texts.calls) == [(0, 2), (11, 3)]  # the empty negative prompt stands once for each depth


def test_what_was_encoded_is_not_encoded_again(encoder, texts, resolved):
    encoder.rows([resolved("a red circle")])
    encoder.rows([resolved("a red circle", seed=2, width=256)])
    encoder.rows([resolved("a red circle", cfg=3, steps=7)])
    assert len(texts.calls) == 1


def test_requests_of_one_text_share_its_arrays(encoder, resolved):
    (one,), (other,) = encoder.rows([resolved("a (red:1.2) circle", cfg=1, seed=seed) for seed in (1, 2)])
    assert context(one) is context(other)


def test_a_text_keeps_its_own_length(encoder, resolved):
    ((positive, negative),) = encoder.rows([resolved("a BREAK b", negative_prompt="d")])
    assert (context(positive).shape, context(negative).shape) == ((2 * 77, 4), (77, 4))


def test_an_engine_gets_no_more_rows_than_it_takes_and_few_different_numbers(resolved):
    requests = [resolved(f"text {number}", cfg=1) for number in range(5)]
    for round_up in (False, True):
        texts = Texts(R=3)
        TextEncoder(texts, NO_INVERSIONS.vectors, round_up=round_up).rows(requests)
        assert [rows for _, rows in texts.calls] == [3, 2]
    texts = Texts(R=64)
    (*rows,) = TextEncoder(texts, NO_INVERSIONS.vectors, round_up=True).rows(requests)
    assert texts.calls == [(12, 8)]
    assert len({context(row).tobytes() for (row,) in rows}) == 5


def test_more_vectors_of_inversions_than_the_engines_take_are_refused(resolved):
    encoder = TextEncoder(Texts(E=2), np.zeros((3, 4), np.float32), round_up=False)
    with pytest.raises(RequestError, match="the embeddings have 3 vectors; the engines take 2"):
        encoder.rows([resolved("a")])


def test_more_vectors_of_inversions_than_the_engines_take_are_refused_when_the_store_is_opened(sample_store):
    vectors = np.zeros((65_537, MODEL.width), np.float32)
    backend, settings = backend_named("onnxruntime", 0), Settings(0, None, False, None, ())
    with pytest.raises(RequestError, match="the embeddings have 65537 vectors; the engines take 65536") as caught:
        Pipeline(Store(sample_store), backend, Inversions(vectors), settings)
    assert caught.value.field == "embeddings"


def test_a_thousand_texts_are_encoded_in_small_calls(resolved):
    texts, prompt = Texts(R=1024), "[a|b|c] [a|b|c|d|e] [a|b|c|d|e|f|g] [a|b|c|d|e|f|g|h|i|j|k]"
    ((row,),) = TextEncoder(texts, NO_INVERSIONS.vectors, round_up=False).rows([resolved(prompt, cfg=1, steps=1000)])
    assert len(row.variants) == 1000
    assert max(rows for _, rows in texts.calls) == MOST_ROWS


class File:
    """Stands for a LoRA file that was read."""


def test_what_is_remembered_of_a_mix_is_its_key_and_not_the_files_in_it(encoder, texts, resolved):
    file = File()
    gone = weakref.ref(file)
    texts.mix = lambda role, loras, file=file: Mix(f"key of {role}", ((file, 1.0),))
    first = encoder.rows([resolved("a red circle")])
    texts.mix = lambda role, loras: Mix(f"key of {role}", ((File(), 1.0),))
    del file
    gc.collect()
    assert gone() is None
    assert encoder.rows([resolved("a red circle")])[0][0] is first[0][0]
    assert len(texts.calls) == 1
    texts.mix = lambda role, loras: Mix(f"another of {role}", ((File(), 1.0),))
    encoder.rows([resolved("a red circle")])
    assert len(texts.calls) == 2
