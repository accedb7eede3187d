"""Lists of JSON, and pictures that are named by what makes them, so that a restart goes on."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from clipskip import Pipeline, Request, read_request
from clipskip.cli.lists import named
from clipskip.errors import DeviceOutOfMemory, NumericalError
from clipskip.pictures import data_url

FAST = ("--steps", "2", "--size", "64x64")
LINES = """\
{"prompt": "a red circle", "seed": 7, "clip_skip": 2}
{"prompt": "a blue star", "guidance": 5, "steps": 1, "batch": 2, "seed": 3}
# comment
/render /seed:3 a ring
{"prompt": "a", "clip_skip": 14}
{"clip_skip": 2, "seed": 7, "prompt": "a red circle", "steps": 2}
{"prompt": "a
{"prompt": "a", "image": "/etc/passwd"}
"""


@pytest.fixture
def bulk(run, sample_store, tmp_path):
    """`generate --resume` of these lines into a folder: its status, what --json says, and stderr."""

    def call(lines, *options, folder="out"):
        (tmp_path / "lines.jsonl").write_text(lines)
        given = ("--lines", tmp_path / "lines.jsonl", "--resume", "--json", "--out", tmp_path / folder)
        status, out, err = run("generate", sample_store, *given, *FAST, *options)
        return status, json.loads(out), err

    return call


def test_a_line_of_a_list_is_a_request_as_json_before_the_options(run, sample_store, tmp_path):
    (tmp_path / "lines").write_text('{"prompt": "a", "guidance": 5, "steps": 1, "seed": 9}\n{a|b} is a prompt\n')
    options = ("--cfg", "3", "--seed", "4", "--out", tmp_path, "--json")
    _, out, _ = run("generate", sample_store, "--lines", tmp_path / "lines", *FAST, *options)
    asked = [picture["request"] for picture in json.loads(out)["pictures"]]
    assert [(each["prompt"], each["cfg"], each["steps"], each["seed"]) for each in asked] == [
        ("a", 5, 1, 9),
        ("{a|b} is a prompt", 3, 2, 4),
    ]
    (tmp_path / "lines").write_text('{"seed": 1}\n{"prompt": "a", "cfgs": 1}\n{"prompt": 1}\n')
    status, _, err = run("generate", sample_store, "--lines", tmp_path / "lines", *FAST, "--out", tmp_path)
    assert status == 2
    for told in ("1: the field 'prompt' is missing", "2: unknown field 'cfgs'", "3: prompt must be a string, not 1"):
        assert f"lines:{told}" in err


def test_a_restart_makes_what_is_missing_and_torn_and_nothing_else(bulk, tmp_path):
    status, answer, err = bulk(LINES)
    made = {picture["file"]: picture["line"] for picture in answer["pictures"]}
    assert (status, sorted(made.values())) == (2, [1, 2, 2, 4])
    assert [(each["line"], each["seed"]) for each in answer["there"]] == [(6, 7)]  # line 1's picture
    assert [each["line"] for each in answer["refused"]] == [5, 7, 8]
    assert f"{tmp_path}/lines.jsonl:5: clip_skip must be 1..13" in err
    assert "4 to make, 1 there already, 3 lines refused" in err
    assert "4 made, 1 there already, 3 lines refused" in err
    whole, torn, gone, empty = map(Path, made)
    expected = {path: path.read_bytes() for path in (torn, gone, empty)}
    torn.write_bytes(expected[torn][:-1])
    gone.unlink()
    empty.write_bytes(b"")
    before = whole.stat().st_mtime_ns
    _, answer, _ = bulk(LINES)
    assert {picture["file"] for picture in answer["pictures"]} == {str(torn), str(gone), str(empty)}
    assert {path: path.read_bytes() for path in expected} == expected
    assert whole.stat().st_mtime_ns == before
    status, answer, _ = bulk(LINES)
    assert (status, answer["pictures"], len(answer["there"])) == (2, [], 5)
    assert len(os.listdir(tmp_path / "out")) == 4


def test_names_are_those_of_what_the_pictures_are_made_from(bulk, tmp_path, pipe):
    image = data_url(Image.new("RGB", (64, 64), "red"))
    lines = [
        {"prompt": "a", "seed": 1, "subseed": 5, "subseed_strength": 0.5, "batch": 2},
        {"prompt": "a", "seed": 1, "image": image, "strength": 0.5, "steps": 4},
    ]
    _, answer, _ = bulk("\n".join(map(json.dumps, lines)))
    assert len(answer["pictures"]) == 3
    for picture in answer["pictures"]:
        request = read_request(picture["file"])
        request = request.over({"image": image}) if request.image else request
        assert Path(picture["file"]) == named(tmp_path / "out", pipe(request).origin(0))
    _, answer, _ = bulk("\n".join(map(json.dumps, lines)))
    assert (answer["pictures"], len(answer["there"])) == ([], 3)


def test_pictures_that_differ_have_other_names_whatever_they_ran_on(pipe):
    request = Request(prompt="a", seed=1, steps=2, width=64, height=64)
    (origin,) = pipe.origins(pipe.check(request))
    same = [replace(origin, engines={"step": "0"}), replace(origin, model=replace(origin.model, name="elsewhere"))]
    others = [
        *(pipe.origins(pipe.check(request.over(each)))[0] for each in ({"seed": 2}, {"clip_skip": 3}, {"cfg": 2})),
        replace(origin, model=replace(origin.model, model_sha256="0" * 64)),
        replace(origin, loras={"a": "0"}),
        replace(origin, inversions={"a": "0"}),
    ]
    assert {each.digest for each in same} == {origin.digest}
    assert len({each.digest for each in [origin, *others]}) == 7


def test_a_picture_with_a_default_said_has_the_name_of_one_without(pipe):
    plain = Request(prompt="a", seed=1, width=64, height=64)
    said = plain.over({"steps": 20, "sampler": "dpm++ 2m karras", "clip_skip_diffusers": 1})
    names = {pipe.origins(pipe.check(each))[0].digest for each in (plain.over({"schedule": "karras"}), said)}
    assert len(names) == 1


def test_a_line_without_a_seed_has_one_of_its_own_that_a_restart_draws_again(bulk):
    lines = 'a\nb\n/seed:-1 a\n{"prompt": "a", "seed": 1, "subseed_strength": 0.5}\na\n'
    _, answer, _ = bulk(lines)
    seeds = {picture["line"]: picture["request"]["seed"] for picture in answer["pictures"]}
    assert set(seeds) == {1, 2, 4}
    assert seeds[1] != seeds[2]
    assert [each["line"] for each in answer["there"]] == [3, 5]
    _, again, _ = bulk("".join(reversed(lines.splitlines(keepends=True))), folder="elsewhere")
    names = [{os.path.basename(picture["file"]) for picture in each["pictures"]} for each in (answer, again)]
    assert names[0] == names[1]


def test_lines_of_one_kind_share_calls_wherever_they_stand(bulk, monkeypatch):
    shared: list[int] = []
    steps = Pipeline.steps
    monkeypatch.setattr(Pipeline, "steps", lambda pipe, *given: shared.append(len(given)) or steps(pipe, *given))
    lines = "".join(f"/seed:{seed} /steps:{1 + seed % 2} a\n" for seed in range(6))
    status, _, _ = bulk(lines)
    assert (status, shared) == (0, [3, 3])


@pytest.mark.parametrize(
    ("kind", "code", "expected"), [(NumericalError, "numerical", 6), (DeviceOutOfMemory, "device_out_of_memory", 5)]
)
def test_a_picture_that_cannot_be_made_is_told_and_stops_no_other(bulk, monkeypatch, kind, code, expected):
    steps = Pipeline.steps

    def broken(pipe, *requests):
        if any(request.prompt == "broken" for request in requests):
            raise kind("the latents are not finite")
        yield from steps(pipe, *requests)

    monkeypatch.setattr(Pipeline, "steps", broken)
    status, answer, err = bulk("/seed:1 a\n/seed:2 broken\n/seed:3 b\n")
    assert (status, [picture["line"] for picture in answer["pictures"]]) == (expected, [1, 3])
    assert [(each["line"], each["code"]) for each in answer["refused"]] == [(2, code)]
    assert "lines.jsonl:2: the latents are not finite" in err


def test_overwrite_makes_all_of_it_anew(bulk):
    bulk("/seed:1 a\n")
    assert len(bulk("/seed:1 a\n", "--overwrite")[1]["pictures"]) == 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["a cat"], "--resume is for lists"),
        (["--lines", "x", "--preview", "x.png"], "no --preview"),
        (["--lines", "lines", "--out", "a.png"], "name a folder"),
        (["--lines", "lines", "--out", "-"], "name a folder"),
    ],
    ids=["prompt", "preview", "file", "stdout"],
)
def test_what_cannot_go_on_is_refused(run, sample_store, tmp_path, monkeypatch, options, told):
    monkeypatch.chdir(tmp_path)
    Path("lines").write_text("a\n")
    status, _, err = run("generate", sample_store, *options, "--resume")
    assert (status, told in err) == (2, True)


def test_an_interrupt_keeps_what_is_made_and_the_next_run_makes_the_rest(bulk, sample_store, tmp_path):
    (tmp_path / "lines.jsonl").write_text(lines := "/seed:7 /steps:1 a cat\n/seed:8 /steps:900 a cat\n")
    command = [sys.executable, "-m", "clipskip", "generate", sample_store, "--lines", tmp_path / "lines.jsonl"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*command, "--resume", "--out", tmp_path / "out", *FAST], **pipes)
    first = process.stdout.readline().strip()  # while the second is being made
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=240)
    assert (process.returncode, "1 made, 0 there already, 0 lines refused" in err) == (130, True)
    assert [str(path) for path in (tmp_path / "out").iterdir()] == [first]
    _, answer, _ = bulk(lines.replace("900", "2"))
    assert [each["file"] for each in answer["there"]] == [first]


def test_the_documented_bulk_run_works_as_it_stands(sample_store, tmp_path):
    page = Path(__file__).parents[3] / "docs" / "serving.md"
    (script,) = re.findall(r"\n    split .*\n(?:    .*\n)*", page.read_text())
    lines = [json.dumps({"prompt": f"a star {seed}", "steps": 1, "width": 64, "height": 64}) for seed in range(4)]
    (tmp_path / "requests.jsonl").write_text("\n".join(lines) + "\n")
    script = script.replace("STORE", str(sample_store)).replace("--target onnxruntime-cuda", "")
    script = script.replace("clipskip", f"{sys.executable} -m clipskip")
    done = subprocess.run(["sh", "-ec", script], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert (done.returncode, len(os.listdir(tmp_path / "pictures"))) == (0, 4), done.stderr
