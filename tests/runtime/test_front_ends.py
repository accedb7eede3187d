"""The same wrong value gets the same words and the same exit status from Python, JSON, the command line and /render."""

import json

import pytest

import clipskip
from clipskip.__main__ import main
from clipskip.errors import RequestError
from clipskip.fields import TEXT, parse
from clipskip.request import FIELDS, Request
from clipskip.resolve import refusals

SAMPLERS = (
    "DPM++ 2M, DPM++ SDE, DPM++ 2M SDE, DPM++ 2M SDE Heun, DPM++ 2S a, DPM++ 3M SDE, Euler a, Euler, LMS, Heun, DPM2, "
    "DPM2 a, DPM fast, Restart, DDIM, DDIM CFG++, PLMS, UniPC, LCM, Euler CFG++, Euler a CFG++"
)
SCHEDULES = (
    "automatic, uniform, karras, exponential, polyexponential, sgm_uniform, kl_optimal, align_your_steps, simple, "
    "normal, ddim, beta"
)
FROM_1 = ": it counts from 1 (the last layer, diffusers' None or 0); 2 is the penultimate (diffusers' 1)"
FROM_0 = ": it counts from 0 (the last layer, clip_skip 1); 1 is the penultimate (clip_skip 2)"
TYPED = {  # row: the message, and what was typed, the field in question first
    "d01": (f"clip_skip must be 1..13, not 0{FROM_1}", {"clip_skip": "0"}),
    "d02": (f"clip_skip must be 1..13, not 14{FROM_1}", {"clip_skip": "14"}),
    "d02-diffusers": (f"clip_skip_diffusers must be 0..12, not 13{FROM_0}", {"clip_skip_diffusers": "13"}),
    "d02-negative": (f"negative_clip_skip must be 1..13, not 14{FROM_1}", {"negative_clip_skip": "14"}),
    "d03": (f"clip_skip must be 1..13, not -1{FROM_1}", {"clip_skip": "-1"}),
    "d03-diffusers": (f"clip_skip_diffusers must be 0..12, not -1{FROM_0}", {"clip_skip_diffusers": "-1"}),
    "d03-negative": (f"negative_clip_skip must be 1..13, not 0{FROM_1}", {"negative_clip_skip": "0"}),
    "d04-nan": (f"clip_skip must be 1..13, not 'nan'{FROM_1}", {"clip_skip": "nan"}),
    "d04-inf": (f"clip_skip must be 1..13, not 'inf'{FROM_1}", {"clip_skip": "inf"}),
    "d05-word": (f"clip_skip must be 1..13, not 'two'{FROM_1}", {"clip_skip": "two"}),
    "d05-underscore": (f"clip_skip must be 1..13, not '1_0'{FROM_1}", {"clip_skip": "1_0"}),
    "d05-fullwidth": (f"clip_skip must be 1..13, not '２'{FROM_1}", {"clip_skip": "２"}),
    "d05-schedule": (f"clip_skip must be 1..13, not 14 in '[9:14:0.4]'{FROM_1}", {"clip_skip": "[9:14:0.4]"}),
    "d05-words": (f"clip_skip must be 1..13, not 'late' in '[9:late:0.4]'{FROM_1}", {"clip_skip": "[9:late:0.4]"}),
    "d05-literal": (
        "clip_skip must be a number, or such as [9:1:0.4], [9:1:8] or [2|9], not '[9:1]'",
        {"clip_skip": "[9:1]"},
    ),
    "d05-diffusers": (f"clip_skip_diffusers must be 0..12, not 'x'{FROM_0}", {"clip_skip_diffusers": "x"}),
    "d05-negative": (f"negative_clip_skip must be 1..13, not 'x'{FROM_1}", {"negative_clip_skip": "x"}),
    "d07": ("steps must be 1..10000, not 0", {"steps": "0"}),
    "d08-negative": ("steps must be 1..10000, not -1", {"steps": "-1"}),
    "d08-fraction": ("steps must be a whole number, not 2.5", {"steps": "2.5"}),
    "d08-nan": ("steps must be a whole number, not 'nan'", {"steps": "nan"}),
    "d08-word": ("steps must be a whole number, not 'x'", {"steps": "x"}),
    "d09": ("steps must be 1..10000, not 10001", {"steps": "10001"}),
    "d09-ddim": ("steps must be 2..1000 for DDIM, not 1001", {"steps": "1001", "sampler": "DDIM"}),
    "d09-ddim-one": ("steps must be 2..1000 for DDIM, not 1", {"steps": "1", "sampler": "DDIM"}),
    "d11": ("cfg must be 0..100, not 100.5", {"cfg": "100.5"}),
    "d12": ("cfg must be 0..100, not -5", {"cfg": "-5"}),
    "d13": ("cfg must be a finite number, not 'nan'", {"cfg": "nan"}),
    "d14-inf": ("cfg must be a finite number, not 'inf'", {"cfg": "inf"}),
    "d14-exponent": ("cfg must be a finite number, not '1e999'", {"cfg": "1e999"}),
    "d15": ("cfg must be a finite number, not 'seven'", {"cfg": "seven"}),
    "d16": ("width must be a multiple of 8 pixels, not 65; nearest: 64 or 72", {"width": "65"}),
    "d16-one": ("width must be a multiple of 8 pixels, not 1; nearest: 64", {"width": "1"}),
    "d16-fraction": ("width must be a whole number, not 63.0", {"width": "63.0"}),
    "d16-height": ("height must be a multiple of 8 pixels, not 100; nearest: 96 or 104", {"height": "100"}),
    "d17": ("width must be a multiple of 8 pixels, not 0; nearest: 64", {"width": "0"}),
    "d18": ("width must be a multiple of 8 pixels, not -64; nearest: 64", {"width": "-64"}),
    "d19": ("1000000000x128 is above the limit of 4194304 pixels", {"width": "1000000000"}),
    "d19-pixels": ("2048x2056 is above the limit of 4194304 pixels", {"width": "2048", "height": "2056"}),
    "d20": ("width 2056 is outside 64..2048, which the engines were built for", {"width": "2056"}),
    "d20-small": ("height 56 is outside 64..2048, which the engines were built for", {"height": "56"}),
    "d21": ("batch must be 1..100, not 0", {"batch": "0"}),
    "d21-negative": ("batch must be 1..100, not -1", {"batch": "-1"}),
    "d21-fraction": ("batch must be a whole number, not 1.5", {"batch": "1.5"}),
    "d21-many": ("batch must be 1..100, not 101", {"batch": "101"}),
    "d38": (
        "seed must be 0..2^64-1, or -1 for a random one, not 18446744073709551616",
        {"seed": "18446744073709551616"},
    ),
    "d38-negative": ("seed must be 0..2^64-1, or -1 for a random one, not -2", {"seed": "-2"}),
    "d38-fraction": ("seed must be a whole number, not 1.5", {"seed": "1.5"}),
    "d38-word": ("seed must be a whole number, not 'x'", {"seed": "x"}),
    "d38-subseed": (
        "subseed must be 0..2^64-1, or -1 for a random one, not 18446744073709551616",
        {"subseed": "18446744073709551616"},
    ),
    "d38-delta": (
        "eta_noise_seed_delta must be within 2^64-1 of 0, not 18446744073709551616",
        {"eta_noise_seed_delta": "18446744073709551616"},
    ),
    "d38-strength": ("subseed_strength must be 0..1, not 1.5", {"subseed_strength": "1.5"}),
    "d39": (f"sampler must be one of {SAMPLERS}; not 'DPM'", {"sampler": "DPM"}),
    "d39-missing": (
        f"sampler must be one of {SAMPLERS}; not 'DEIS'",
        {"sampler": "DEIS Karras"},
    ),
    "d39-adaptive": (
        f"sampler must be one of {SAMPLERS}; not 'dpm_adaptive'",
        {"sampler": "dpm_adaptive"},
    ),
    "d39-schedule": (
        f"schedule must be one of {SCHEDULES}; not 'linear'",
        {"schedule": "linear"},
    ),
    "d39-missing-schedule": (
        f"schedule must be one of {SCHEDULES}; not 'turbo'",
        {"schedule": "turbo"},
    ),
    "rng": ("rng must be one of cpu, nv; not 'gpu'", {"rng": "gpu"}),
    "emphasis": ("emphasis must be one of Original, No norm, Ignore, None; not 'loud'", {"emphasis": "loud"}),
    "comma": ("comma_backtrack must be 0..74, not 75", {"comma_backtrack": "75"}),
    "comma-negative": ("comma_backtrack must be 0..74, not -1", {"comma_backtrack": "-1"}),
}
UNTYPED = {  # what only Python and JSON can say
    "d05": (f"clip_skip must be 1..13, not '2'{FROM_1}", {"clip_skip": "2"}),
    "d06": (f"clip_skip must be 1..13, not True{FROM_1}", {"clip_skip": True}),
    "d08-text": ("steps must be a whole number, not '20'", {"steps": "20"}),
    "d15-text": ("cfg must be a finite number, not '7.5'", {"cfg": "7.5"}),
    "d16-text": ("width must be a whole number, not '64'", {"width": "64"}),
    "d23-none": ("prompt must be a string, not None", {"prompt": None}),
    "d23-number": ("prompt must be a string, not 123", {"prompt": 123}),
    "d23-list": ("prompt must be a string, not ['a', None]", {"prompt": ["a", None]}),
    "d38-text": ("seed must be a whole number, not '1'", {"seed": "1"}),
    "d38-flag": ("seed must be a whole number, not True", {"seed": True}),
}
TAKEN = {  # field -> value, and what it becomes
    "d02-12": ({"clip_skip": 12}, {"clip_skip": 12}),
    "d02-13": ({"clip_skip": 13}, {"clip_skip": 13}),
    "d04-fraction": ({"clip_skip": 1.9}, {"clip_skip": 1}),
    "d04-whole": ({"clip_skip": 2.0}, {"clip_skip": 2}),
    "d10-0": ({"cfg": 0}, {"cfg": 0}),
    "d10-1": ({"cfg": 1}, {"cfg": 1}),
    "d11-100": ({"cfg": 100}, {"cfg": 100}),
    "d15-none": ({"cfg": None}, {"cfg": 7}),
    "d16-8": ({"width": 136, "height": 72}, {"width": 136, "height": 72}),
    "d22": ({"prompt": ""}, {"prompt": ""}),
    "d38-largest": ({"seed": 2**64 - 1}, {"seed": 2**64 - 1}),
    "d39-others": ({"sampler": "k_euler_a"}, {"sampler": "Euler a", "schedule": "uniform"}),
}


@pytest.fixture(scope="module")
def pipe(sample_store):
    with clipskip.open(sample_store) as pipe:
        yield pipe


def refusal(make):
    with pytest.raises(RequestError) as caught:
        make()
    return caught.value.message, caught.value.hint, caught.value.field


def from_json(pipe, fields):
    return pipe(clipskip.Request.from_json(json.dumps({"prompt": "a cat", **fields})))


def as_typed(texts):
    return {name: text if FIELDS[name].kind is TEXT else parse(text) for name, text in texts.items()}


@pytest.mark.parametrize(("message", "texts"), TYPED.values(), ids=TYPED)
def test_all_front_ends_refuse_in_the_same_words(pipe, sample_store, tmp_path, capsys, message, texts):
    values = as_typed(texts)
    commands = " ".join(f"/{name.replace('_', '')}:{json.dumps(text)}" for name, text in texts.items())
    refusals = {
        refusal(lambda: pipe("a cat", **values)),
        refusal(lambda: from_json(pipe, values)),
        refusal(lambda: pipe(clipskip.parse_render(f"/render {commands} a cat"))),
    }
    options = [f"{FIELDS[name].option}={text}" for name, text in texts.items()]
    status = main(["generate", str(sample_store), "a cat", *options, "--json", "--out", str(tmp_path)])
    error = json.loads(capsys.readouterr().out)["error"]
    assert (status, error["message"]) == (2, message)
    assert refusals == {(error["message"], error["hint"], error["field"])}


EVERY = {row: (message, as_typed(texts)) for row, (message, texts) in TYPED.items()} | UNTYPED


@pytest.mark.parametrize(("message", "wrong"), EVERY.values(), ids=EVERY)
def test_what_every_model_refuses_is_refused_in_the_same_words_without_one(message, wrong):
    told = {field: error.message for field, error in refusals(Request(**{"prompt": "a cat", **wrong})).items()}
    any_size = {"nearest: 64": "nearest: 8", "x128": "x512"} if message.endswith(("nearest: 64", "pixels")) else {}
    for here, anywhere in any_size.items():
        message = message.replace(here, anywhere)
    assert told == ({} if "engines were built for" in message else {next(iter(wrong)): message})


@pytest.mark.parametrize(("message", "wrong"), UNTYPED.values(), ids=UNTYPED)
def test_python_and_json_refuse_in_the_same_words(pipe, message, wrong):
    fields = {"prompt": "a cat", **wrong}
    python = refusal(lambda: pipe(clipskip.Request(**fields)))
    assert python == refusal(lambda: from_json(pipe, fields))
    assert (python[0], [python[2]]) == (message, [*wrong])


@pytest.mark.parametrize(("fields", "becomes"), TAKEN.values(), ids=TAKEN)
def test_python_and_json_take_the_same_values(pipe, fields, becomes):
    small = {"prompt": "a cat", "width": 64, "height": 64, "steps": 1, "seed": 1, **fields}
    python, parsed = pipe(clipskip.Request(**small)), from_json(pipe, small)
    assert {name: getattr(python.request, name) for name in becomes} == becomes
    assert (python.request, python.warnings) == (parsed.request, parsed.warnings)


def test_the_seeds_of_a_batch_wrap_around_at_2_to_the_64_d40(pipe):
    assert pipe("a cat", seed=2**64 - 1, batch=2, steps=1, width=64, height=64).seeds == (2**64 - 1, 0)
