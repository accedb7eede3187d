"""The same wrong value gets the same words and the same exit status from Python, JSON, the command line and /render."""

import json

import pytest

import clipskip
from clipskip.__main__ import main
from clipskip.errors import RequestError
from clipskip.fields import parse

TYPED = [
    ("clip_skip", "--clip-skip", "clipskip", ["0", "14", "-1", "nan", "inf", "two", "1_0", "２"]),
    ("clip_skip_diffusers", "--clip-skip-diffusers", "clipskipdiffusers", ["13", "-1", "x"]),
    ("negative_clip_skip", "--negative-clip-skip", "negclipskip", ["0", "14", "x"]),
    ("seed", "--seed", "seed", ["-2", "18446744073709551616", "1.5", "x"]),
    ("steps", "--steps", "steps", ["0", "1001", "2.5", "x"]),
    ("cfg", "--cfg", "guidance", ["-5", "101", "nan", "1e5"]),
    ("width", "--width", "width", ["65", "0", "63.5", "x"]),
    ("batch", "--batch", "batch", ["0", "101", "1.5"]),
    ("sampler", "--sampler", "sampler", ["DPM", "adaptive"]),
    ("schedule", "--schedule", "schedule", ["linear"]),
    ("rng", "--rng", "rng", ["gpu"]),
    ("subseed_strength", "--subseed-strength", "subseedstrength", ["1.5", "-0.5", "x"]),
    ("emphasis", "--emphasis", "emphasis", ["loud"]),
    ("comma_backtrack", "--comma-backtrack", "commabacktrack", ["75", "-1"]),
]
CASES = [(field, option, command, text) for field, option, command, texts in TYPED for text in texts]
TEXTS = ("sampler", "schedule", "rng", "emphasis")


@pytest.fixture(scope="module")
def pipe(sample_store):
    with clipskip.open(sample_store) as pipe:
        yield pipe


def refusal(make):
    with pytest.raises(RequestError) as caught:
        make()
    return caught.value.message, caught.value.hint, caught.value.field


@pytest.mark.parametrize(("field", "option", "command", "text"), CASES)
def test_all_front_ends_refuse_in_the_same_words(pipe, sample_store, tmp_path, capsys, field, option, command, text):
    value = text if field in TEXTS else parse(text)
    python = refusal(lambda: pipe("a cat", **{field: value}))
    from_json = refusal(lambda: pipe(clipskip.Request.from_json(json.dumps({"prompt": "a cat", field: value}))))
    render = refusal(lambda: pipe(clipskip.parse_render(f"/render /{command}:{text} a cat")))
    status = main(["generate", str(sample_store), "a cat", f"{option}={text}", "--json", "--out", str(tmp_path)])
    error = json.loads(capsys.readouterr().out)["error"]
    assert status == 2
    assert python == from_json == render == (error["message"], error["hint"], error["field"])
