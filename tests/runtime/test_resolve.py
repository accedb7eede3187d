"""Every default filled in, every wrong value refused in the same words."""

import dataclasses

import pytest
from facts import MODEL

from clipskip.errors import RequestError
from clipskip.request import Request
from clipskip.resolve import resolve


def resolved(**fields):
    return resolve(Request(**{"prompt": "a cat", "seed": 1, **fields}), MODEL)


def test_a_bare_prompt_gets_every_default():
    found = resolve(Request(prompt="a cat"), MODEL)
    assert (found.width, found.height, found.layers, found.negative_layers) == (128, 128, 12, 12)
    assert (found.sampler.name, found.schedule) == ("DPM++ 2M", "karras")
    assert 0 <= found.seeds[0][0] < 2**32
    filled = dataclasses.asdict(found.request)
    assert [name for name, value in filled.items() if value is None] == ["clip_skip_diffusers", "subseed", "compat"]


def test_resolving_a_resolved_request_changes_nothing():
    once = resolved(clip_skip=3.7, sampler="euler a karras", seed=-1, rng="NV", emphasis="no norm").request
    assert resolve(once, MODEL).request == once


def test_the_recommended_clip_skip_is_the_default():
    model = dataclasses.replace(MODEL, recommended_clip_skip=2)
    found = resolve(Request(prompt=""), model)
    assert (found.request.clip_skip, found.layers) == (2, 11)


@pytest.mark.parametrize(
    ("given", "sampler", "schedule"),
    [
        ({"sampler": "dpm2m"}, "DPM++ 2M", "karras"),
        ({"sampler": "dpm++ 2m karras"}, "DPM++ 2M", "karras"),
        ({"sampler": "DPM++ 2M SDE Exponential"}, "DPM++ 2M SDE", "exponential"),
        ({"sampler": "dpmpp_2m_sde"}, "DPM++ 2M SDE", "exponential"),
        ({"sampler": "EULER A"}, "Euler a", "uniform"),
        ({"sampler": "euler_ancestral"}, "Euler a", "uniform"),
        ({"sampler": "Euler a SGM Uniform"}, "Euler a", "sgm_uniform"),
        ({"sampler": "ddim"}, "DDIM", "uniform"),
        ({"sampler": "heun", "schedule": "Karras"}, "Heun", "karras"),
        ({"schedule": "SGM uniform"}, "DPM++ 2M", "sgm_uniform"),
        ({"sampler": "Euler Karras", "schedule": "karras"}, "Euler", "karras"),
    ],
)
def test_sampler_names_are_matched_without_case_spaces_or_punctuation(given, sampler, schedule):
    found = resolved(**given)
    assert (found.sampler.name, found.schedule) == (sampler, schedule)


REFUSED = [
    ({"steps": 0}, "steps", "steps must be 1..1000, not 0"),
    ({"steps": 1001}, "steps", "steps must be 1..1000, not 1001"),
    ({"steps": 2.5}, "steps", "steps must be a whole number, not 2.5"),
    ({"steps": "20"}, "steps", "steps must be a whole number, not '20'"),
    ({"steps": True}, "steps", "steps must be a whole number, not True"),
    ({"cfg": -5}, "cfg", "cfg must be 0..100, not -5"),
    ({"cfg": 100.5}, "cfg", "cfg must be 0..100, not 100.5"),
    ({"cfg": float("nan")}, "cfg", "cfg must be a finite number, not nan"),
    ({"cfg": float("inf")}, "cfg", "cfg must be a finite number, not inf"),
    ({"width": 65}, "width", "width must be a multiple of 64 pixels, not 65; nearest: 64 or 128"),
    ({"width": 0}, "width", "width must be a multiple of 64 pixels, not 0; nearest: 64"),
    ({"height": -64}, "height", "height must be a multiple of 64 pixels, not -64; nearest: 64"),
    ({"height": 10**9}, "height", "height must be at most 65536 pixels, not 1000000000"),
    ({"width": 4096, "height": 4096}, "width", "4096x4096 is above the limit of 4194304 pixels"),
    ({"batch": 0}, "batch", "batch must be 1..100, not 0"),
    ({"batch": 101}, "batch", "batch must be 1..100, not 101"),
    ({"seed": 2**64}, "seed", "seed must be 0..2^64-1, or -1 for a random one, not 18446744073709551616"),
    ({"seed": -2}, "seed", "seed must be 0..2^64-1, or -1 for a random one, not -2"),
    ({"seed": 1.5}, "seed", "seed must be a whole number, not 1.5"),
    ({"subseed_strength": 1.5}, "subseed_strength", "subseed_strength must be 0..1, not 1.5"),
    ({"comma_backtrack": 75}, "comma_backtrack", "comma_backtrack must be 0..74, not 75"),
    ({"rng": "gpu"}, "rng", "rng must be one of cpu, nv; not 'gpu'"),
    ({"emphasis": "loud"}, "emphasis", "emphasis must be one of Original, No norm, Ignore, None; not 'loud'"),
    ({"compat": "comfy"}, "compat", "compat must be one of a1111; not 'comfy'"),
    (
        {"prompt": "a <lora:style:0.8> cat"},
        "prompt",
        "the prompt asks for <lora:style:0.8>, and networks cannot be changed by a request",
    ),
    ({"prompt": "a\0"}, "prompt", "prompt has NUL at character 1"),
    ({"negative_prompt": "\ud800"}, "negative_prompt", "negative_prompt has a lone surrogate (U+D800) at character 0"),
    ({"prompt": "x" * 65537}, "prompt", "prompt is longer than 64 KiB"),
    ({"prompt": 5}, "prompt", "prompt must be a string, not 5"),
    ({"prompt": None}, "prompt", "prompt must be a string, not None"),
    (
        {"sampler": "DPM adaptive"},
        "sampler",
        "DPM adaptive chooses its steps while it runs, and every sampler here is a table made beforehand",
    ),
    (
        {"sampler": "Euler Karras", "schedule": "exponential"},
        "schedule",
        "sampler 'Euler Karras' names the schedule karras, and schedule says exponential",
    ),
]


@pytest.mark.parametrize(("given", "field", "message"), REFUSED, ids=[message[:40] for _, _, message in REFUSED])
def test_a_wrong_value_is_refused_by_name_with_what_would_be_right(given, field, message):
    with pytest.raises(RequestError) as caught:
        resolved(**given)
    assert (caught.value.message, caught.value.field) == (message, field)


def test_an_unknown_sampler_is_refused_with_the_closest_one():
    with pytest.raises(RequestError) as caught:
        resolved(sampler="Euler b")
    assert caught.value.hint == "did you mean 'Euler a'?" or caught.value.hint == "did you mean 'Euler'?"
    assert "DPM++ 2M SDE" in caught.value.message


def test_a_negative_prompt_without_guidance_is_noted():
    assert not [note for note in resolved(cfg=2, negative_prompt="x").notes if "negative prompt" in note]
    assert [note for note in resolved(cfg=1, negative_prompt="x").notes if "negative prompt" in note]


def test_a_batch_counts_seeds_up_and_wraps_around():
    assert [seed for seed, _ in resolved(seed=2**64 - 1, batch=3).seeds] == [2**64 - 1, 0, 1]
