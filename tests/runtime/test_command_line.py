"""The command line as a user meets it: results on stdout, the rest on stderr, an exit status for each outcome."""

import json
import os
import shutil
import signal
import subprocess
import sys

import PIL.Image
import pytest

from clipskip.__main__ import main
from clipskip.engines.manifest import STEP
from clipskip.engines.store import Store

FAST = ("--steps", "2", "--width", "64", "--height", "64")


@pytest.fixture
def run(capsys):
    """Run one command in this process; gives its status, stdout and stderr."""

    def call(*arguments):
        status = main([str(each) for each in arguments])
        return status, *capsys.readouterr()

    return call


def picture(path):
    with PIL.Image.open(path) as image:
        image.load()
    return image


def test_generate_writes_pictures_that_carry_their_request(run, sample_store, tmp_path):
    options = ("--clip-skip", "2", "--seed", "5", "--batch", "2", "--out", tmp_path, *FAST)
    status, out, _ = run("generate", sample_store, "a red circle", *options)
    assert status == 0
    assert out.split() == [str(tmp_path / "00001-5.png"), str(tmp_path / "00002-6.png")]
    assert "Clip skip: 2" in picture(tmp_path / "00002-6.png").info["parameters"]


def test_generate_repeats_the_request_in_a_picture(run, sample_store, tmp_path):
    first, second = tmp_path / "first.png", tmp_path / "second.png"
    options = ("--clip-skip", "3", "--sampler", "Euler a", "--out", first, *FAST)
    run("generate", sample_store, "a (red:1.2) circle", *options)
    status, _, _ = run("generate", sample_store, "--from", first, "--out", second)
    assert status == 0
    assert picture(first).tobytes() == picture(second).tobytes()


def test_generate_writes_other_formats_and_repeats_them_e3(run, sample_store, tmp_path):
    name = "x.jpg"
    status, out, _ = run("generate", sample_store, "a red circle", "--out", tmp_path / name, "--seed", "3", *FAST)
    assert (status, out) == (0, f"{tmp_path / name}\n")
    assert picture(tmp_path / name).format == "JPEG"
    status, out, _ = run("generate", sample_store, "--from", tmp_path / name, "--out", tmp_path / "y.png", "--json")
    assert json.loads(out)["pictures"][0]["request"]["seed"] == 3


def test_repeating_a_picture_of_another_program_says_what_is_left_out_and_inspect_shows_it_c1(
    run, sample_store, tmp_path
):
    text = tmp_path / "x.txt"
    text.write_text("a ring\nSteps: 2, Sampler: Euler a, Seed: 5, Size: 64x64, Eta: 0.5, Version: v1.9.4\n")
    status, out, err = run("generate", sample_store, "--from", text, "--out", tmp_path / "y.png", "--json")
    expected = ["not honoured from the picture: Eta: 0.5", "the picture's settings have no CFG scale: 7 is used"]
    assert (status, json.loads(out)["warnings"][:2]) == (0, expected)
    assert all(f"note: {warning}" in err for warning in expected)
    _, out, _ = run("generate", sample_store, "--from", text, "--cfg", "3", "--out", tmp_path / "z.png", "--json")
    assert json.loads(out)["warnings"][:1] == expected[:1]
    assert not any("CFG" in warning for warning in json.loads(out)["warnings"])
    status, out, _ = run("inspect", text, "--json")
    found = json.loads(out)
    assert (status, found["program"], found["request"]["seed"]) == (0, "AUTOMATIC1111 v1.9.4", 5)
    assert (found["ignored"], found["filled"]) == ({"Eta": "0.5"}, {"cfg": "7"})
    _, out, _ = run("inspect", text)
    assert "not honoured  Eta: 0.5\nfilled in     cfg: 7\n" in out
    assert run("inspect", tmp_path / "y.png")[1].splitlines()[1].split() == ["program", "clipskip"]


def test_a_render_line_goes_before_the_options(run, sample_store, tmp_path):
    line = "/render /clipskip:4 /seed:9 a blue star"
    status, out, _ = run("generate", sample_store, line, "--clip-skip", "2", "--json", "--out", tmp_path, *FAST)
    request = json.loads(out)["pictures"][0]["request"]
    assert (status, request["clip_skip"], request["seed"], request["prompt"]) == (0, 4, 9, "a blue star")


def test_a_file_gives_one_request_per_line(run, sample_store, tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_text("a red circle\n\n/render /seed:3 a blue star\n")
    status, out, _ = run("generate", sample_store, "--lines", lines, "--out", tmp_path, "--json", *FAST)
    prompts = [each["request"]["prompt"] for each in json.loads(out)["pictures"]]
    assert (status, prompts) == (0, ["a red circle", "a blue star"])


def test_lines_come_from_standard_input(sample_store, tmp_path):
    command = [sys.executable, "-m", "clipskip", "generate", sample_store, "-", "--out", tmp_path, "--json", *FAST]
    lines = "/render /seed:3 a ring\na star\n"
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["pictures"]) == 2


def test_grid_draws_a_labelled_sheet(run, sample_store, tmp_path):
    sheet = tmp_path / "sheet.png"
    axes = ("--x", "clip_skip=1-3", "--y", "cfg=1,7")
    status, out, _ = run("grid", sample_store, "a red circle", *axes, "--out", sheet, "--json", *FAST)
    cells = json.loads(out)["cells"]
    assert (status, len(cells), len({cell["seed"] for cell in cells})) == (0, 6, 1)
    assert picture(sheet).width > 4 * 64


@pytest.mark.parametrize(
    ("arguments", "status", "code", "message"),
    [
        (["--clip-skip", "0"], 2, "request", "clip_skip must be 1..13, not 0"),
        (["--clip-skip", "two"], 2, "request", "clip_skip must be 1..13, not 'two'"),
        (["--clip-skip", "14"], 2, "request", "clip_skip must be 1..13, not 14"),
        (["--steps", "0"], 2, "request", "steps must be 1..1000, not 0"),
        (["--cfg", "nan"], 2, "request", "cfg must be a finite number, not 'nan'"),
        (["--width", "65"], 2, "request", "width must be a multiple of 64 pixels, not 65"),
        (["--sampler", "Euler b"], 2, "request", "sampler must be one of"),
        (["--target", "tpu"], 2, "request", "target must be one of"),
        (["--embeddings", "/nowhere.safetensors"], 3, "checkpoint", "/nowhere.safetensors"),
        (["--out", "/proc/nowhere"], 7, "storage", "/proc/nowhere"),
    ],
)
def test_a_wrong_value_is_refused_as_in_python(run, sample_store, tmp_path, arguments, status, code, message):
    found, out, err = run("generate", sample_store, "a cat", "--json", "--out", tmp_path, *FAST, *arguments)
    error = json.loads(out)["error"]
    assert (found, error["code"], message in error["message"]) == (status, code, True), error
    assert error["message"] in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [[], ["a", "--from", "b.png"], ["--lines", "/nowhere/at/all"]])
def test_generate_needs_exactly_one_source_that_is_there(run, sample_store, tmp_path, arguments):
    status, _, err = run("generate", sample_store, *arguments, "--out", tmp_path)
    assert status in (2, 3)
    assert err.startswith("clipskip: ")


def test_a_store_that_is_not_there_names_the_command_that_makes_it(run, tmp_path):
    status, _, err = run("generate", tmp_path / "none", "a cat", "--out", tmp_path)
    assert status == 4
    assert "clipskip export" in err


def test_inspect_and_verify_tell_what_a_store_holds(run, sample_store):
    status, out, _ = run("inspect", sample_store)
    assert (status, "text-12" in out) == (0, True)
    status, out, _ = run("verify", sample_store, "--json")
    assert status == 0
    assert len(json.loads(out)["artefacts"]) == 17


def test_a_flipped_bit_is_found_before_anything_is_opened(run, sample_store, tmp_path):
    store = shutil.copytree(sample_store, tmp_path / "store")
    victim = store / Store(store).find(STEP, "onnx", "fp32").files[1].path
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    status, _, err = run("generate", store, "a cat", "--out", tmp_path / "out", *FAST)
    assert (status, "step.bin" in err, "SHA-256" in err) == (4, True, True)
    assert run("verify", store)[0] == 4


def test_control_characters_do_not_reach_the_terminal(run, sample_store, tmp_path):
    _, _, err = run("generate", sample_store, "a cat", "--sampler", "\x1b[31mred", "--out", tmp_path)
    assert "\x1b" not in err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_generate_with_its_own_status(sample_store, tmp_path, number, status):
    command = [sys.executable, "-m", "clipskip", "generate", sample_store, "a cat", "--steps", "900", "--out", tmp_path]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    assert b"calls" in process.stderr.readline()  # it is at work
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert b"Traceback" not in err
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("stderr", ["2>/dev/full", "2>&-"], ids=["full", "closed"])
def test_a_stderr_that_takes_nothing_loses_no_picture(sample_store, tmp_path, stderr):
    options = ["--cfg", "1", "--negative", "which gives a note", "--out", tmp_path, *FAST]
    command = [sys.executable, "-m", "clipskip", "generate", sample_store, "a cat", *options]
    done = subprocess.run(["sh", "-c", f'exec "$@" {stderr}', "sh", *command], timeout=120)
    assert done.returncode == 0
    assert len(os.listdir(tmp_path)) == 1
