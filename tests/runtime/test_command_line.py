"""The command line as a user meets it: results on stdout, the rest on stderr, an exit status for each outcome."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys

import PIL.Image
import pytest
from copies import copy_of
from hollow import hollow

from clipskip import __main__ as entrance
from clipskip.__main__ import main, parse
from clipskip.cli import lists, pictures
from clipskip.engines import tensorrt
from clipskip.engines.gpu import Device
from clipskip.engines.manifest import STEP
from clipskip.engines.store import Store
from clipskip.engines.tensorrt import Built
from clipskip.pipeline import Pipeline

FAST = ("--steps", "2", "--width", "64", "--height", "64")


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


def test_generate_writes_other_formats_and_repeats_them(run, sample_store, tmp_path):
    name = "x.jpg"
    status, out, _ = run("generate", sample_store, "a red circle", "--out", tmp_path / name, "--seed", "3", *FAST)
    assert (status, out) == (0, f"{tmp_path / name}\n")
    assert picture(tmp_path / name).format == "JPEG"
    status, out, _ = run("generate", sample_store, "--from", tmp_path / name, "--out", tmp_path / "y.png", "--json")
    assert json.loads(out)["pictures"][0]["request"]["seed"] == 3


def test_repeating_a_picture_of_another_program_says_what_is_left_out_and_inspect_shows_it(run, sample_store, tmp_path):
    text = tmp_path / "x.txt"
    text.write_text("a ring\nSteps: 2, Sampler: Euler a, Seed: 5, Size: 64x64, Refiner: x, Version: v1.9.4\n")
    status, out, err = run("generate", sample_store, "--from", text, "--out", tmp_path / "y.png", "--json")
    expected = ["not honoured from the picture: Refiner: x", "the picture's settings have no CFG scale: 7 is used"]
    assert (status, json.loads(out)["warnings"][:2]) == (0, expected)
    assert all(f"note: {warning}" in err for warning in expected)
    _, out, _ = run("generate", sample_store, "--from", text, "--cfg", "3", "--out", tmp_path / "z.png", "--json")
    assert json.loads(out)["warnings"][:1] == expected[:1]
    assert not any("CFG" in warning for warning in json.loads(out)["warnings"])
    status, out, _ = run("inspect", text, "--json")
    found = json.loads(out)
    assert (status, found["program"], found["request"]["seed"]) == (0, "AUTOMATIC1111 v1.9.4", 5)
    assert (found["ignored"], found["filled"]) == ({"Refiner": "x"}, {"cfg": "7"})
    _, out, _ = run("inspect", text)
    assert "not honoured  Refiner: x\nfilled in     cfg: 7\n" in out
    assert run("inspect", tmp_path / "y.png")[1].splitlines()[1].split() == ["program", "clipskip"]


@pytest.mark.parametrize(
    ("text", "honoured"),
    [
        (
            "a\nSteps: 2, Sampler: DEIS, Schedule type: Karras, Seed: 5, Size: 64x64",
            "Steps, Schedule type, Seed, Size",
        ),
        ("a\nSteps: 2, Sampler: Euler, Seed: 5, Size: 130x120, Clip skip: 2", "Steps, Sampler, Seed, Clip skip"),
        ("a\nSteps: 2, Sampler: Euler, Seed: 5, Size: 64x64, Clip skip: 99", "Steps, Sampler, Seed, Size"),
        ("a <hypernet:b:1>\nSteps: 2, Sampler: Euler, Seed: 5", "Steps, Sampler, Seed"),
        ("a\nSteps: 2, Sampler: Euler, Seed: 5, Hypernet: b", "Steps, Sampler, Seed"),
    ],
)
def test_inspect_says_what_generate_will_refuse_in_the_same_words(run, sample_store, tmp_path, text, honoured):
    (tmp_path / "x.txt").write_text(text)
    status, out, _ = run("generate", sample_store, "--from", tmp_path / "x.txt", "--json", "--out", tmp_path / "a.png")
    told, found, _ = run("inspect", tmp_path / "x.txt", "--json")
    error, found = json.loads(out)["error"], json.loads(found)
    assert (status, told) == (2, 0)
    refused = {"message": error["message"], "hint": error["hint"]}
    assert (found["refused"], ", ".join(found["honoured"])) == (
        {error["field"]: refused},
        honoured,
    )
    rows = [line.split(maxsplit=1) for line in run("inspect", tmp_path / "x.txt")[1].splitlines()]
    assert ["refused", "; ".join(filter(None, refused.values()))] in rows


def test_a_render_line_goes_before_the_options(run, sample_store, tmp_path):
    line = "/render /clipskip:4 /seed:9 a blue star"
    status, out, _ = run("generate", sample_store, line, "--clip-skip", "2", "--json", "--out", tmp_path, *FAST)
    request = json.loads(out)["pictures"][0]["request"]
    assert (status, request["clip_skip"], request["seed"], request["prompt"]) == (0, 4, 9, "a blue star")


def test_a_render_line_names_no_file_on_the_command_line_either_and_options_do(run, sample_store, tmp_path):
    PIL.Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    line, lines = f"/render /image:{tmp_path}/red.png a star", tmp_path / "lines.txt"
    lines.write_text(f"{line}\n--prompt a --image {tmp_path}/missing.png\n")
    status, _, err = run("generate", sample_store, line, "--out", tmp_path, *FAST)
    assert (status, "image must be a data URL here" in err, "options such as --image" in err) == (2, True, True)
    status, _, err = run("generate", sample_store, "--lines", lines, "--out", tmp_path, *FAST)
    assert (status, "lines.txt:1: image must be a data URL" in err, "lines.txt:2: cannot use image" in err) == (
        2,
        True,
        True,
    )


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
    assert picture(sheet).width > 3 * 64


@pytest.mark.parametrize(
    ("arguments", "status", "code", "message"),
    [
        (["--clip-skip", "0"], 2, "request", "clip_skip must be 1..13, not 0"),
        (["--clip-skip", "two"], 2, "request", "clip_skip must be 1..13, not 'two'"),
        (["--clip-skip", "14"], 2, "request", "clip_skip must be 1..13, not 14"),
        (["--steps", "0"], 2, "request", "steps must be 1..10000, not 0"),
        (["--cfg", "nan"], 2, "request", "cfg must be a finite number, not 'nan'"),
        (["--width", "65"], 2, "request", "width must be a multiple of 8 pixels, not 65"),
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
    assert len(json.loads(out)["artefacts"]) == 20  # 16 graphs, three forms for the CPU, the tokenizer


def test_a_flipped_bit_is_found_before_anything_is_opened(run, sample_store, tmp_path):
    store = copy_of(sample_store, tmp_path / "store")
    victim = store / Store(store).find(STEP, "onnx", "fp32").files[-1].path
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    status, _, err = run("generate", store, "a cat", "--out", tmp_path / "out", *FAST)
    assert (status, "step.bin" in err, "SHA-256" in err) == (4, True, True)
    assert run("verify", store)[0] == 4


def test_control_characters_do_not_reach_the_terminal_d35(run, sample_store, tmp_path):
    _, _, err = run("generate", sample_store, "a cat", "--sampler", "\x1b[31mred", "--out", tmp_path)
    assert "\x1b" not in err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_generate_with_its_own_status_e5(sample_store, tmp_path, number, status):
    command = [sys.executable, "-m", "clipskip", "generate", sample_store, "a cat", "--steps", "900", "--out", tmp_path]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    assert b"calls" in process.stderr.readline()  # it is at work
    process.send_signal(number)
    _, err = process.communicate(timeout=240)
    assert process.returncode == status, err
    assert b"Traceback" not in err
    assert os.listdir(tmp_path) == []


LISTED = """\ufeffa red circle\r
\r
# a comment\r
/render /steps:5 /seed:3 a blue star\r
--prompt "a ring" --steps 1 --cfg_scale 5 --width 64 --height 64 --seed 9 --n_iter 2 --restore_faces false\r
  --prompt a green ring --negative_prompt "red, dark" --sampler_name "Euler a"
"""


def test_a_list_has_prompts_render_lines_and_lines_of_options(run, sample_store, tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_bytes(LISTED.encode())
    status, out, _ = run("generate", sample_store, "--lines", lines, "--out", tmp_path, "--json", *FAST)
    made = [
        (
            each["line"],
            request["prompt"],
            request["negative_prompt"],
            request["steps"],
            request["cfg"],
            request["sampler"],
        )
        for each in json.loads(out)["pictures"]
        for request in [each["request"]]
    ]
    assert status == 0
    assert made == [
        (1, "a red circle", "", 2, 7, "DPM++ 2M"),
        (4, "a blue star", "", 5, 7, "DPM++ 2M"),
        (5, "a ring", "", 1, 5, "DPM++ 2M"),
        (5, "a ring", "", 1, 5, "DPM++ 2M"),
        (6, "a green ring", "red, dark", 2, 7, "Euler a"),
    ]
    names = [os.path.basename(each["file"]) for each in json.loads(out)["pictures"]]
    assert [name[:5] for name in names] == ["00001", "00002", "00003", "00004", "00005"]
    assert names[1:4] == ["00002-3.png", "00003-9.png", "00004-10.png"]


def test_all_lines_are_checked_before_the_first_picture_and_named(run, sample_store, tmp_path):
    lines, out = tmp_path / "lines.txt", tmp_path / "out"
    lines.write_text('a cat\n/steps:0 a\n/seed:x a\n\n--prompt "a --steps 2\n--prompt a --styles x\n/clipskip:14 a\n')
    status, answer, err = run("generate", sample_store, "--lines", lines, "--out", out, "--json", *FAST)
    assert (status, list(out.iterdir())) == (2, [])
    expected = ["2: steps must be", "3: seed must be", "5: the line's quotes", "6: --styles x", "7: clip_skip must be"]
    for place in expected:
        assert f"{lines}:{place}" in err
        assert f"{lines}:{place}" in json.loads(answer)["error"]["message"]
    lines.write_text("/steps:0 a\n" * 30)
    _, _, err = run("generate", sample_store, "--lines", lines, "--out", out, *FAST)
    assert "30 lines are refused" in err
    assert f"{lines}:20: " in err
    assert f"{lines}:21: " not in err
    assert "and 10 more" in err


def test_a_line_for_a_depth_that_was_not_built_is_found_before_the_first_picture(run, sample_store, tmp_path):
    store = copy_of(sample_store, tmp_path / "store")
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["artefacts"] = [each for each in manifest["artefacts"] if each["role"] != "text-09"]
    (store / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "lines.txt").write_text("a cat\n/clipskip:4 a cat\n")
    out = tmp_path / "out"
    status, _, err = run("generate", store, "--lines", tmp_path / "lines.txt", "--out", out, *FAST)
    assert (status, list(out.iterdir())) == (4, [])
    assert f"{tmp_path / 'lines.txt'}:2: " in err
    assert "text-09" in err


def test_lines_with_loras_that_cannot_be_used_are_named_together(run, sample_store, tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"<html>")
    hollow(tmp_path / "other.safetensors", {"lora_unet_nowhere.lora_up.weight": (2, 2)})
    lines, out = tmp_path / "lines.txt", tmp_path / "out"
    lines.write_text("a cat\na <lora:broken:1>\n/steps:0 a\na <lora:other:1>\na <lora:none:1>\n")
    options = ("--loras", tmp_path, "--lines", lines, "--out", out, *FAST)
    status, _, err = run("generate", sample_store, *options)
    assert (status, list(out.iterdir())) == (3, [])
    assert "4 lines are refused" in err
    for place in ("2: ", "3: steps must be", "4: none of the 1 tensors", "5: there is no LoRA"):
        assert f"{lines}:{place}" in err
    assert "broken.safetensors: this is a web page" in err


def test_names_are_printed_as_the_pictures_are_saved_and_an_interrupt_keeps_them(sample_store, tmp_path):
    (tmp_path / "lines.txt").write_text("/seed:7 a cat\n/steps:900 /seed:8 a cat\n")
    command = [sys.executable, "-m", "clipskip", "generate", sample_store, "--lines", tmp_path / "lines.txt"]
    process = subprocess.Popen(
        [*command, "--out", tmp_path / "out", *FAST], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    first = tmp_path / "out" / "00001-7.png"
    assert process.stdout.readline() == f"{first}\n"  # while the second is being made
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=240)
    assert (process.returncode, rest) == (130, "")
    assert "1 of 2 pictures are saved" in err
    assert "Traceback" not in err
    assert list((tmp_path / "out").iterdir()) == [first]


def test_a_batch_is_saved_in_parts_that_share_calls_and_is_the_same(run, sample_store, tmp_path, monkeypatch):
    options = ("--subseed", "7", "--subseed-strength", "0.3", "--batch", "3", "--seed", str(2**64 - 1), "--json", *FAST)
    _, whole, _ = run("generate", sample_store, "a cat", "--out", tmp_path / "whole", *options)
    monkeypatch.setattr(lists, "TOGETHER", 2)
    calls: list[int] = []
    steps = Pipeline.steps
    monkeypatch.setattr(Pipeline, "steps", lambda *given: calls.append(len(given) - 1) or steps(*given))
    _, parts, _ = run("generate", sample_store, "a cat", "--out", tmp_path / "parts", *options)
    expected, found = (json.loads(each)["pictures"] for each in (whole, parts))
    assert [each["request"] for each in found] == [each["request"] for each in expected]
    assert [picture(each["file"]).tobytes() for each in found] == [picture(each["file"]).tobytes() for each in expected]
    assert calls == [1, 1]


def test_a_failure_keeps_what_is_saved_and_json_says_what_that_is(run, sample_store, tmp_path, monkeypatch):
    save = pictures.output.Destination.save

    def interrupted(destination, seed, write):
        if seed == 8:
            raise KeyboardInterrupt
        return save(destination, seed, write)

    monkeypatch.setattr(pictures.output.Destination, "save", interrupted)
    (tmp_path / "lines.txt").write_text("/seed:7 a cat\n/seed:8 a cat\n")
    status, out, _ = run(
        "generate", sample_store, "--lines", tmp_path / "lines.txt", "--out", tmp_path, "--json", *FAST
    )
    answer = json.loads(out)
    assert (status, answer["error"]["code"]) == (130, "interrupted")
    assert [each["file"] for each in answer["pictures"]] == [str(tmp_path / "00001-7.png")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "there is no prompt"),
        (b"\n# only a comment\n", "there is no prompt"),
        (b"a\nb \xff", ":2: no UTF-8 (invalid start byte)"),
        (b"a" * (16 << 20) + b"a", "more than 16 MiB"),
        (b"a\n" * 12, "at most 10 lines"),
        (b"a\0b", ":1: prompt has NUL"),
    ],
    ids=["empty", "comments", "bytes", "large", "long", "nul"],
)
def test_a_list_that_is_none_is_refused(run, sample_store, tmp_path, monkeypatch, text, message):
    (tmp_path / "lines.txt").write_bytes(text)
    monkeypatch.setattr(lists, "MOST_LINES", 10)
    status, _, err = run("generate", sample_store, "--lines", tmp_path / "lines.txt", "--out", tmp_path / "out", *FAST)
    assert (status, message in err) == (3 if "MiB" in message else 2, True)


def test_the_memory_that_standard_input_takes_is_bounded(run, sample_store, tmp_path, monkeypatch):
    with open("/dev/zero") as endless:
        monkeypatch.setattr(sys, "stdin", endless)
        status, _, err = run("generate", sample_store, "-", "--out", tmp_path)
    assert (status, "standard input has more than 16 MiB" in err) == (3, True)
    monkeypatch.setattr(sys, "stdin", None)
    status, _, err = run("generate", sample_store, "-", "--out", tmp_path)
    assert (status, "it is closed" in err) == (3, True)


def test_a_prompt_with_nul_is_refused_d33(run, sample_store, tmp_path):
    status, out, _ = run("generate", sample_store, "a\0b", "--out", tmp_path / "out", "--json", *FAST)
    assert (status, json.loads(out)["error"]["message"]) == (2, "prompt has NUL at character 1")


def test_a_prompt_of_bytes_that_are_no_text_is_refused_d34(run, sample_store, tmp_path):
    status, out, _ = run("generate", sample_store, "a \udcff", "--out", tmp_path / "out", "--json", *FAST)
    assert out.isascii()
    assert (status, json.loads(out)["error"]["field"]) == (2, "prompt")


VERBS = {
    "lines": ["generate", "STORE", "--lines", "PATH"],
    "from": ["generate", "STORE", "--from", "PATH"],
    "embeddings": ["generate", "STORE", "a cat", "--embeddings", "PATH"],
    "out": ["generate", "STORE", "a cat", "--steps", "0", "--out", "PATH"],
    "sheet": ["grid", "STORE", "a cat", "--steps", "0", "--x", "seed=1", "--overwrite", "--out", "PATH"],
    "store": ["generate", "PATH", "a cat"],
    "inspect": ["inspect", "PATH"],
    "verify": ["verify", "PATH"],
    "gc": ["gc", "PATH"],
    "build": ["build", "PATH", "--target", "tensorrt-rtx"],
    "export": ["export", "PATH", "--out", "out"],
}


@pytest.mark.parametrize(
    "path", ["a\0b", "x" * 300, "x" * 300 + ".png", "/dev/zero", "fifo", "fifo.png", "\udcff", "/dev/stdin"]
)
@pytest.mark.parametrize("verb", VERBS)
def test_a_path_that_is_none_is_refused_without_a_traceback_a22(run, sample_store, tmp_path, monkeypatch, verb, path):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    os.mkfifo("fifo.png")
    words = {"PATH": path, "STORE": str(sample_store)}
    status, out, err = run(*(words.get(word, word) for word in VERBS[verb]), "--json")
    assert out.isascii()
    assert json.loads(out)["error"]["message"]
    assert (status in (2, 3, 4, 7), "Traceback" in err) == (True, False)


@pytest.mark.parametrize("name", ["a b", "$(touch x)", "a\nb", "-rf", "\udcff", "ä猫", "%d"])
def test_a_folder_may_have_any_name_that_the_disk_takes_a25(run, sample_store, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    status, out, _ = run("generate", sample_store, "a cat", "--seed", "1", f"--out={name}", "--json", *FAST)
    assert (status, out.isascii()) == (0, True)
    assert json.loads(out)["pictures"][0]["file"] == os.path.join(name, "00001-1.png")
    assert os.listdir() == [name]


class Narrow(io.TextIOWrapper):
    """A stream that takes ASCII only."""

    def __init__(self):
        super().__init__(io.BytesIO(), encoding="ascii", write_through=True)


@pytest.mark.parametrize("stream", ["full", "closed", "none", "ascii"])
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_stream_that_takes_nothing_loses_no_picture(sample_store, tmp_path, monkeypatch, name, stream):
    out, note = tmp_path / "ä\udcff", ["--cfg", "1", "--negative", "which gives a note"]
    with open("/dev/full", "w") as full, open(os.devnull) as closed:
        closed.close()
        narrow = Narrow()
        monkeypatch.setattr(sys, name, {"full": full, "closed": closed, "none": None, "ascii": narrow}[stream])
        arguments = ["generate", str(sample_store), "a 猫", "--seed", "3", *note, "--out", str(out), *FAST]
        assert main(arguments) == 0
    assert os.listdir(out) == ["00001-3.png"]
    if (name, stream) == ("stdout", "ascii"):
        assert narrow.buffer.getvalue().endswith(b"/\\xe4\\udcff/00001-3.png\n")


def test_with_all_three_streams_closed_the_picture_is_made(sample_store, tmp_path):
    command = [sys.executable, "-m", "clipskip", "generate", sample_store, "a cat", "--out", tmp_path, "--json", *FAST]
    done = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], timeout=120)
    assert done.returncode == 0
    (made,) = tmp_path.iterdir()
    assert picture(made).size == (64, 64)


def test_a_full_stdout_stops_no_help_and_an_answer_that_it_does_not_take_is_a_failure(sample_store):
    store = str(sample_store)
    for status, *verb in ((0, "--help"), (0, "--version"), (7, "inspect", store), (7, "verify", store, "--json")):
        with open("/dev/full", "w") as full:
            done = subprocess.run([sys.executable, "-m", "clipskip", *verb], stdout=full, stderr=subprocess.PIPE)
        assert (done.returncode, b"No space left" in done.stderr, b"Traceback" in done.stderr) == (
            status,
            status > 0,
            0,
        )


def test_a_reader_of_the_answer_that_is_gone_is_no_failure(sample_store):
    command = f"{sys.executable} -m clipskip inspect '{sample_store}'; echo $? >&2"
    done = subprocess.run(["bash", "-c", f"({command}) | true"], stderr=subprocess.PIPE, text=True)
    assert done.stderr.strip() == "0"


def test_a_picture_that_is_made_stays_where_the_answer_about_it_is_lost(sample_store, tmp_path):
    command = [sys.executable, "-m", "clipskip", "generate", sample_store, "a cat", "--out", tmp_path, "--json", *FAST]
    with open("/dev/full", "w") as full:
        assert subprocess.run(command, stdout=full, stderr=subprocess.DEVNULL).returncode == 7
    assert len(os.listdir(tmp_path)) == 1


def test_a_warning_is_one_line_and_in_the_json_c15(sample_store, tmp_path):
    store = copy_of(sample_store, tmp_path / "store")
    (store / "manifest.json").chmod(0o646)
    for status, *rest in ((0, *FAST), (2, "--steps", "0")):
        command = [sys.executable, "-m", "clipskip", "generate", store, "a cat", "--out", tmp_path / "out", "--json"]
        done = subprocess.run([*command, "--clip-skip", "2", *rest], capture_output=True, text=True)
        (told,) = json.loads(done.stdout)["warnings"]
        assert (done.returncode, told.startswith("others may write to")) == (status, True)
        assert done.stderr.splitlines()[0] == f"warning: {told}"
        assert "RuntimeWarning" not in done.stderr


@pytest.mark.parametrize(
    ("number", "status", "code"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_while_arguments_are_parsed_has_its_status_b1(run, monkeypatch, number, status, code):
    handler = signal.getsignal(number)

    def interrupted(arguments):
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # one that comes twice, as from a shell and from `timeout`
        signal.pause()

    monkeypatch.setattr(entrance, "parse", interrupted)
    found, out, err = run("inspect", "a", "--json")
    assert (found, json.loads(out)["error"]["code"]) == (status, code)
    assert "Traceback" not in err
    assert signal.getsignal(number) is handler


STARTING = """
import signal, sys
from clipskip.__main__ import main

at, number, events, running = int(sys.argv[1]), int(sys.argv[2]), 0, False

def hear(event, arguments):
    global events
    events += running
    if running and events == at:
        signal.raise_signal(number)

sys.addaudithook(hear)
running = True
status = main(sys.argv[3:])
running = False
print(events, file=sys.stderr)
sys.exit(status)
"""


def test_a_signal_at_any_moment_of_the_start_has_its_status_and_one_line_e5(sample_store, tmp_path):
    """Moments are counted in what Python reports of itself, imports and files above all, so that no clock matters."""
    command = ["generate", str(sample_store), "a cat", "--clip-skip", "2", "--json", "--out", str(tmp_path), *FAST]

    def start(at, number):
        arguments = [sys.executable, "-c", STARTING, str(at), str(int(number)), *command]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=120)

    events = int(start(0, signal.SIGINT).stderr.split()[-1])
    for at, number in zip(range(1, events, events // 12), [signal.SIGINT, signal.SIGTERM] * 7, strict=False):
        done = start(at, number)
        word = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}[number]
        assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (128 + number, word), (at, done.stderr)
        said = [line for line in done.stderr.splitlines()[:-1] if line and " calls, " not in line]  # on a slow machine
        assert said == [f"{word}; nothing half-made was kept"]


def test_a_signal_that_a_library_makes_an_import_error_of_has_its_status_e5(sample_store, tmp_path):
    (tmp_path / "onnxruntime.py").write_text(
        "import signal\n"
        "try:\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "except BaseException as error:\n"
        "    raise ImportError('initialization failed') from error\n"
    )
    command = [sys.executable, "-m", "clipskip", "generate", sample_store, "a cat", "--out", tmp_path / "out"]
    surroundings = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr.strip()) == (130, "interrupted; nothing half-made was kept")


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ([], 2),
        (["generate"], 2),
        (["generate", "a", "b", "--bogus"], 2),
        (["build", "a", "--target", "tpu"], 2),
        (["generate", "/nowhere", "a cat", "--from", "b"], 2),
        (["generate", "STORE", "--from", "/nowhere"], 3),
        (["inspect", "/nowhere"], 4),
        (["--json", "inspect", "/nowhere"], 4),
        (["generate", "STORE", "a cat", "--out", "/proc/x"], 7),
    ],
)
def test_every_failure_has_its_status_and_one_json_object_b18(run, sample_store, arguments, status):
    found, out, _ = run(*(str(sample_store) if word == "STORE" else word for word in arguments), "--json")
    assert (found, out.count("\n")) == (status, 1)
    assert set(json.loads(out)["error"]) == {"code", "message", "field", "path", "hint"}


def test_a_bug_is_reported_as_one_in_json_too_b18(run, monkeypatch):
    monkeypatch.setattr(entrance, "parse", lambda arguments: 1 / 0)
    status, out, err = run("inspect", "a", "--json")
    assert (status, json.loads(out)["error"]["code"]) == (1, "bug")
    assert "ZeroDivisionError" in err
    assert "This is a bug" in err


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        *[
            ([option, "x"], "negative_prompt", "x")
            for option in ("-n", "--negative", "--negative-prompt", "--negative_prompt")
        ],
        *[([o, "3"], "cfg", 3) for o in ("--cfg", "--cfg-scale", "--cfg_scale", "--guidance", "--guidance-scale")],
        *[([option, "2"], "clip_skip", 2) for option in ("--clip-skip", "--clip_skip", "--clipskip")],
        *[([option, "2"], "batch", 2) for option in ("-b", "--batch", "--batch-count", "--batch_size")],
        (["--sampling-method", "Euler"], "sampler", "Euler"),
        (["--scheduler", "karras"], "schedule", "karras"),
        (["-W", "64"], "width", 64),
        (["-H", "64"], "height", 64),
        (["-s", "-1"], "seed", -1),
        (["--size", "64x128"], "height", 128),
    ],
)
def test_a_setting_has_the_names_that_other_programs_give_it(options, field, value):
    for arguments in (
        ["S", "a cat", *options],
        ["S", *options, "a cat"],
        [*options, "S", "a cat"],
        ["S", *options, "-p", "a cat"],
    ):
        request = pictures.request_of(parse(["generate", *arguments]))
        assert (request.prompt, getattr(request, field)) == ("a cat", value)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["gnerate"], "did you mean 'generate'?"),
        (["generate", "S", "a", "--step", "3"], "did you mean '--steps'?"),
        (["generate", "S", "a", "--negatve=x"], "did you mean '--negative'?"),
        (["generate", "S", "a", "cat"], "quoted as one"),
        (["build", "S", "--target", "tensorr"], "did you mean 'tensorrt'?"),
        (["generate", "STORE", "a", "--rng", "cuda"], "'nv' is the closest one"),
        (["generate", "STORE", "a", "--target", "tensorr"], "did you mean 'tensorrt'?"),
        (["generate", "S", "a", "--size", "64x64", "--width", "64"], "width is given twice"),
        (["grid", "S", "a", "--out", "a.png", "--x", "batch=1,2"], "batch is no axis"),
        (["grid", "S", "a", "--out", "a.png", "--x", "seed=1", "--batch", "2"], "not a batch of 2"),
    ],
)
def test_what_is_mistyped_is_answered_with_what_was_meant(run, sample_store, tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(*(str(sample_store) if word == "STORE" else word for word in arguments))
    assert (status, told in err) == (2, True), err


def test_help_lists_what_there_is_to_choose_from(run, capsys):
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    told = capsys.readouterr().out
    assert all(
        name in told for name in ("onnxruntime-cuda", "DPM++ 2M SDE", "Euler a", "karras", "sgm_uniform", "--cfg-scale")
    )


def test_a_picture_goes_to_standard_output(sample_store, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Narrow())
    assert main(["generate", str(sample_store), "a cat", "--seed", "3", "--out", "-", *FAST]) == 0
    made = tmp_path / "made.png"
    made.write_bytes(sys.stdout.buffer.getvalue())
    assert "Seed: 3" in picture(made).info["parameters"]


def test_a_picture_is_not_mixed_with_json_and_its_loss_is_a_failure(run, sample_store, monkeypatch):
    status, out, _ = run("generate", sample_store, "a cat", "--out", "-", "--json", *FAST)
    assert (status, json.loads(out)["error"]["field"]) == (2, "out")
    assert run("generate", sample_store, "a cat", "--batch", "2", "--out", "-", *FAST)[0] == 2
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(["generate", str(sample_store), "a cat", "--out", "-", *FAST]) == 7


def test_verify_holds_the_manifest_against_what_export_or_build_printed(run, sample_store):
    kept = hashlib.sha256((sample_store / "manifest.json").read_bytes()).hexdigest()
    status, out, _ = run("verify", sample_store, "--manifest-sha256", kept, "--json")
    assert (status, json.loads(out)["artefacts"]["manifest"]) == (0, None)
    status, out, _ = run("verify", sample_store, "--manifest-sha256", "0" * 64)
    assert (status, "another SHA-256" in out) == (4, True)


@pytest.mark.parametrize(
    "option",
    ["--max-batch=4", "--sizes=512", "--workspace=1", "--compute-capability=8.9", "--skips=1", "--device=0"],
)
def test_an_option_that_the_target_does_not_take_is_refused(run, sample_store, option):
    status, _, err = run("build", sample_store, "--target", "onnxruntime", option)
    assert (status, "takes no" in err) == (2, True)
    assert run("build", sample_store, "--target", "onnxruntime")[0] == 0


def test_the_gpu_to_build_on_is_handed_on_and_means_nothing_to_tensorrt_rtx(run, sample_store, monkeypatch):
    asked = []
    engines = [Built("step", "8.9", rebuilt=False)]
    monkeypatch.setattr(tensorrt, "build", lambda store, **how: asked.append(how["device"]) or engines)
    status, out, _ = run("build", sample_store, "--target", "tensorrt", "--device", "1")
    assert (status, asked) == (0, [Device("cuda", 1)])
    assert out.splitlines()[:2] == ["step  up to date", "for compute capability 8.9"]
    status, _, err = run("build", sample_store, "--target", "tensorrt-rtx", "--device", "0")
    assert (status, "builds without a GPU" in err, len(asked)) == (2, True, 1)


def test_forms_for_cuda_are_built_once_for_the_skips_that_are_named(run, sample_fp16_store, tmp_path):
    store = copy_of(sample_fp16_store, tmp_path / "store")
    command = "build", store, "--target", "onnxruntime-cuda", "--skips", "1,13"
    status, _, err = run(*command, "--sizes", "512")
    assert (status, "--target onnxruntime-cuda takes no sizes" in err) == (2, True)
    status, out, err = run(*command, "--json")
    built = {engine["role"]: engine["rebuilt"] for engine in json.loads(out)["engines"]}
    assert built == dict.fromkeys(("text-00-cuda", "text-12-cuda", "step-cuda", "decode-cuda", "encode-cuda"), True)
    status, out, err = run(*command)
    assert (status, out.count("up to date")) == (0, 5)
    assert json.loads(run("verify", store, "--json")[1])["artefacts"]["step onnx fp16 cuda"] is None


def test_building_forms_without_what_it_takes_says_what_to_install(sample_fp16_store):
    code = "import sys; sys.modules['onnx_ir'] = None; from clipskip.__main__ import main; sys.exit(main(sys.argv[1:]))"
    command = "build", str(sample_fp16_store), "--target", "onnxruntime-cuda"
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True)
    assert done.returncode == 5
    assert "building forms needs onnx-ir" in done.stderr
    assert "pip install onnx-ir" in done.stderr
