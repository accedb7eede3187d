"""`clipskip grid` as a user meets it: the sheet, the page, single files, and what an interrupt leaves."""

import json
import os
import subprocess
import sys

import lora_files
import PIL.Image
import pytest

import clipskip
from clipskip.__main__ import main
from clipskip.engines.store import Store
from clipskip.engines.variants import changeable
from clipskip.pipeline import Pipeline

FAST = ("--steps", "2", "--size", "64x64", "--seed", "3")


@pytest.fixture(scope="module")
def drawn(sample_store, tmp_path_factory):
    """A folder with the sheet of two depths by two prompts, its page, and its cells."""
    out = tmp_path_factory.mktemp("drawn")
    axes = ("--x", "clip_skip=1,7", "--y", "prompt_sr=ring,star")
    places = ("-o", str(out / "s.png"), "--html", str(out / "s.html"), "--cells", str(out / "cells"))
    assert main(["grid", str(sample_store), "a ring", *axes, *places, *FAST]) == 0
    return out


def test_a_sheet_has_a_page_and_files_of_its_cells_beside_it(drawn):
    assert sorted(os.listdir(drawn)) == ["cells", "s.html", "s.png"]
    files = sorted((drawn / "cells").iterdir())
    assert [file.name for file in files] == [f"0000{number}-3.png" for number in (1, 2, 3, 4)]
    assert (drawn / "s.html").read_text().count("data:image/png;base64,") == 4
    assert clipskip.read_ledger(files[2]).request == clipskip.read_ledger(drawn / "s.png", cell=(1, 2)).request


def test_a_cell_is_repeated_from_the_sheet(run, drawn, sample_store, tmp_path):
    options = ("--cell", "2,2", "-o", tmp_path / "one.png")
    status, _, _ = run("generate", sample_store, "--from", drawn / "s.png", *options)
    assert status == 0
    assert (tmp_path / "one.png").read_bytes() == (drawn / "cells" / "00004-3.png").read_bytes()


def test_a_sheet_is_repeated_by_no_cell_with_the_way_to_name_one(run, drawn, sample_store, tmp_path):
    status, _, err = run("generate", sample_store, "--from", drawn / "s.png", "-o", tmp_path)
    assert status == 3
    assert "a sheet of 2 x 2 cells, not one picture" in err
    assert "--cell 2,2" in err


def test_inspect_shows_the_axes_and_what_differs_between_cells(run, drawn):
    _, shown, _ = run("inspect", drawn / "s.png")
    rows = [line.split(maxsplit=1) for line in shown.split("\n") if line]
    assert ["x", "clip_skip 1, clip_skip 7"] in rows
    assert ["y", "ring, star"] in rows
    assert ["cell", "2,2  prompt: a star, clip_skip: 7, negative_clip_skip: 7"] in rows
    _, shown, _ = run("inspect", drawn / "s.png", "--json")
    told = json.loads(shown)
    assert [cell["request"]["prompt"] for cell in told["cells"]] == ["a ring", "a ring", "a star", "a star"]
    assert told["axes"][1] == {"field": "prompt_sr", "values": ["ring", "star"]}


def test_an_interrupt_keeps_the_cells_that_are_finished(run, sample_store, tmp_path, interrupt):
    interrupt(1)
    sheet = tmp_path / "s.png"
    axes = ("--x", "steps=2,1", "--y", "cfg=1,7", "-o", sheet, "--html", tmp_path / "s.html")
    status, shown, err = run("grid", sample_store, "a ring", *axes, *FAST[2:], "--json")
    told = json.loads(shown)
    assert (status, told["error"]["code"]) == (130, "interrupted")
    assert "2 of 4 cells are finished, and in" in err
    assert [cell and cell["cfg"] for cell in told["cells"]] == [1, None, 7, None]
    assert clipskip.read_ledger(sheet, cell=(1, 2)).request.cfg == 7
    assert "not made" in (tmp_path / "s.html").read_text()


def test_an_interrupt_before_the_first_cell_leaves_nothing(run, sample_store, tmp_path, monkeypatch):
    def interrupted(self, *requests):
        raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "steps", interrupted)
    status, _, _ = run("grid", sample_store, "a ring", "--x", "cfg=1,7", "-o", tmp_path / "s.png", *FAST)
    assert (status, os.listdir(tmp_path)) == (130, [])


def test_a_sheet_on_standard_output_is_nothing_but_the_picture(sample_store, tmp_path):
    words = ["a ring", "--x", "cfg=1", "-o", "-", "--html", str(tmp_path / "s.html"), "--cells", str(tmp_path / "c")]
    command = [sys.executable, "-m", "clipskip", "grid", str(sample_store), *words, *FAST]
    done = subprocess.run(command, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert clipskip.read_ledger(done.stdout, cell=(1,)).request.prompt == "a ring"
    assert done.stdout.endswith(b"IEND\xaeB`\x82")


def test_checkpoints_stand_side_by_side(run, sample_store, tmp_path):
    other = tmp_path / "another"
    other.symlink_to(sample_store)
    elsewhere = tmp_path / "deep" / "third"
    elsewhere.parent.mkdir()
    elsewhere.symlink_to(sample_store)
    axes = ("--x", f"store={elsewhere}", "--y", "clip_skip=6,7", "-o", tmp_path / "s.png")
    status, shown, _ = run("grid", other, "a ring", *axes, *FAST, "--json")
    assert status == 0
    assert shown.count("above 5 results are erratic") == 1
    assert json.loads(shown)["axes"][0]["values"] == [str(elsewhere)]  # both are one store
    with PIL.Image.open(tmp_path / "s.png") as image:
        truth = json.loads(image.info["clipskip"])
    assert truth["sheet"]["axes"][0] == {"field": "store", "values": ["third"]}


def test_the_weight_of_a_lora_is_an_axis(run, sample_store, tmp_path):
    parameters = {name: shape for name, shape in changeable(Store(sample_store), "fp32").items() if "text" in name}
    style = lora_files.write(tmp_path / "style.safetensors", parameters, scale=0.5)
    axes = ("--x", "lora:style=0-1(+0.5)", "--loras", style, "--cells", tmp_path / "c", "-o", tmp_path / "s.png")
    status, shown, _ = run("grid", sample_store, "a ring", *axes, *FAST, "--json")
    told = json.loads(shown)
    assert (status, [cell["loras"] for cell in told["cells"]]) == (0, [["style:0"], ["style:0.5"], ["style:1"]])
    pictures = []
    for file in told["files"]:
        with PIL.Image.open(file) as image:
            pictures.append(image.tobytes())
    assert len(set(pictures)) == 3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--x", "cfg=1", "--out", "s.jpg"), "--out is a .png file, not s.jpg"),
        (("--x", "cfg=1", "--out", "s.png", "--html", "s.txt"), "--html is a .html file, not s.txt"),
        (("--x", "cfg=1", "--z", "seed=1", "--out", "s.png"), "--z without --y"),
        (("--x", "cfg=1", "--y", "cfg=2", "--out", "s.png"), "two axes vary cfg"),
        (("--x", "prompt_sr=dog,cat", "--out", "s.png"), "'dog', which is in neither prompt"),
        (("--x", "cfg=1", "--out", "s.png", "--font", "no.ttf"), "no.ttf is missing"),
        (("--x", "store=nowhere", "--out", "s.png"), "no engine store in"),
        (("--x", "lora:none=0,1", "--out", "s.png"), "there is no LoRA 'none'"),
    ],
)
def test_what_no_sheet_can_be_is_refused_before_any_work(run, sample_store, tmp_path, monkeypatch, options, told):
    monkeypatch.chdir(tmp_path)
    status, _, err = run("grid", sample_store, "a ring", *options, *FAST)
    assert (status in (2, 3, 4), told in err, os.listdir(tmp_path)) == (True, True, []), err


def test_a_page_that_is_there_is_not_replaced_unasked(run, sample_store, tmp_path):
    (tmp_path / "s.html").write_text("mine")
    axes = ("--x", "cfg=1", "-o", tmp_path / "s.png", "--html", tmp_path / "s.html")
    status, _, err = run("grid", sample_store, "a ring", *axes, *FAST)
    assert (status, (tmp_path / "s.html").read_text(), os.listdir(tmp_path)) == (2, "mine", ["s.html"])
    assert "--overwrite" in err
