"""The same wrong value gets the same words and the same exit status from Python, JSON, the command line and /render."""

import json

import pytest

import clipskip
from clipskip.__main__ import main
from clipskip.errors import RequestError
from clipskip.fields import TEXT, parse
from clipskip.request import FIELDS

TYPED = {  # row of the table of faults, and what is refused there: field and what was typed, with other fields
    "d01": ("clip_skip", "0"),
    "d02": ("clip_skip", "14"),
    "d02-diffusers": ("clip_skip_diffusers", "13"),
    "d02-negative": ("negative_clip_skip", "14"),
    "d03": ("clip_skip", "-1"),
    "d03-diffusers": ("clip_skip_diffusers", "-1"),
    "d03-negative": ("negative_clip_skip", "0"),
    "d04-nan": ("clip_skip", "nan"),
    "d04-inf": ("clip_skip", "inf"),
    "d05-word": ("clip_skip", "two"),
    "d05-underscore": ("clip_skip", "1_0"),
    "d05-fullwidth": ("clip_skip", "２"),
    "d05-schedule": ("clip_skip", "[9:1:0.4]"),
    "d05-diffusers": ("clip_skip_diffusers", "x"),
    "d05-negative": ("negative_clip_skip", "x"),
    "d07": ("steps", "0"),
    "d08-negative": ("steps", "-1"),
    "d08-fraction": ("steps", "2.5"),
    "d08-nan": ("steps", "nan"),
    "d08-word": ("steps", "x"),
    "d09": ("steps", "10001"),
    "d09-ddim": ("steps", "1001", "sampler", "DDIM"),
    "d09-ddim-one": ("steps", "1", "sampler", "DDIM"),
    "d11": ("cfg", "100.5"),
    "d12": ("cfg", "-5"),
    "d13": ("cfg", "nan"),
    "d14-inf": ("cfg", "inf"),
    "d14-exponent": ("cfg", "1e999"),
    "d15": ("cfg", "seven"),
    "d16": ("width", "65"),
    "d16-one": ("width", "1"),
    "d16-fraction": ("width", "63.0"),
    "d16-height": ("height", "100"),
    "d17": ("width", "0"),
    "d18": ("width", "-64"),
    "d19": ("width", "1000000000"),
    "d19-pixels": ("width", "2048", "height", "2056"),
    "d20": ("width", "2056"),
    "d20-small": ("height", "56"),
    "d21": ("batch", "0"),
    "d21-negative": ("batch", "-1"),
    "d21-fraction": ("batch", "1.5"),
    "d21-many": ("batch", "101"),
    "d38": ("seed", "18446744073709551616"),
    "d38-negative": ("seed", "-2"),
    "d38-fraction": ("seed", "1.5"),
    "d38-word": ("seed", "x"),
    "d38-subseed": ("subseed", "18446744073709551616"),
    "d38-delta": ("eta_noise_seed_delta", "18446744073709551616"),
    "d38-strength": ("subseed_strength", "1.5"),
    "d39": ("sampler", "DPM"),
    "d39-missing": ("sampler", "LMS Karras"),
    "d39-adaptive": ("sampler", "dpm_adaptive"),
    "d39-schedule": ("schedule", "linear"),
    "d39-missing-schedule": ("schedule", "normal"),
    "rng": ("rng", "gpu"),
    "emphasis": ("emphasis", "loud"),
    "comma": ("comma_backtrack", "75"),
    "comma-negative": ("comma_backtrack", "-1"),
}
UNTYPED = {  # what only Python and JSON can say
    "d05": ("clip_skip", "2"),
    "d06": ("clip_skip", True),
    "d08-text": ("steps", "20"),
    "d15-text": ("cfg", "7.5"),
    "d16-text": ("width", "64"),
    "d23-none": ("prompt", None),
    "d23-number": ("prompt", 123),
    "d23-list": ("prompt", ["a", None]),
    "d38-text": ("seed", "1"),
    "d38-flag": ("seed", True),
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


@pytest.mark.parametrize("typed", TYPED.values(), ids=TYPED)
def test_all_front_ends_refuse_in_the_same_words(pipe, sample_store, tmp_path, capsys, typed):
    texts = dict(zip(typed[::2], typed[1::2], strict=True))
    values = {name: text if FIELDS[name].kind is TEXT else parse(text) for name, text in texts.items()}
    commands = " ".join(f"/{name.replace('_', '')}:{json.dumps(text)}" for name, text in texts.items())
    refusals = {
        refusal(lambda: pipe("a cat", **values)),
        refusal(lambda: from_json(pipe, values)),
        refusal(lambda: pipe(clipskip.parse_render(f"/render {commands} a cat"))),
    }
    options = [f"{FIELDS[name].option}={text}" for name, text in texts.items()]
    status = main(["generate", str(sample_store), "a cat", *options, "--json", "--out", str(tmp_path)])
    error = json.loads(capsys.readouterr().out)["error"]
    assert status == 2
    assert refusals == {(error["message"], error["hint"], error["field"])}


@pytest.mark.parametrize(("field", "value"), UNTYPED.values(), ids=UNTYPED)
def test_python_and_json_refuse_in_the_same_words(pipe, field, value):
    fields = {"prompt": "a cat", field: value}
    python = refusal(lambda: pipe(clipskip.Request(**fields)))
    assert python == refusal(lambda: from_json(pipe, fields))
    assert python[2] == field


@pytest.mark.parametrize(("fields", "becomes"), TAKEN.values(), ids=TAKEN)
def test_python_and_json_take_the_same_values(pipe, fields, becomes):
    small = {"prompt": "a cat", "width": 64, "height": 64, "steps": 1, "seed": 1, **fields}
    python, parsed = pipe(clipskip.Request(**small)), from_json(pipe, small)
    assert {name: getattr(python.request, name) for name in becomes} == becomes
    assert (python.request, python.warnings) == (parsed.request, parsed.warnings)


def test_the_seeds_of_a_batch_wrap_around_at_2_to_the_64_d40(pipe):
    assert pipe("a cat", seed=2**64 - 1, batch=2, steps=1, width=64, height=64).seeds == (2**64 - 1, 0)
