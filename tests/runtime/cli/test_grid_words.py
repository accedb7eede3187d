"""What of `clipskip grid` people type by mistake, and what an interrupt says."""

import os

import pytest

import clipskip
from clipskip.__main__ import main
from clipskip.cli.output import Destination

FAST = ("--steps", "1", "--width", "64", "--height", "64", "--seed", "3")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("-", "--x", "cfg=1", "-o", "s.png"), "a sheet is of one prompt, and - is a list"),
        (("-p", "-", "--x", "cfg=1", "-o", "s.png"), "generate STORE -"),
        (("a ring", "--x", "cfg=1", "-o", "-", "--html", "-"), "--html is a .html file, not -"),
        (("a ring", "--x", "cfg=1", "-o", "s.png", "--cells", "-"), "do not fit into one file -"),
        (("--x", "cfg=1", "-o", "s.png"), "give one of: a PROMPT"),
    ],
)
def test_what_is_no_sheet_is_refused_before_a_store_is_opened(run, tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    status, _, err = run("grid", "no store", *words, *FAST)
    assert (status, told in err, os.listdir(tmp_path)) == (2, True, []), err


@pytest.fixture(scope="module")
def drawn(sample_store, tmp_path_factory):
    """A folder with a sheet along one axis, of prompts, and its cells."""
    out = tmp_path_factory.mktemp("drawn")
    places = ("-o", str(out / "s.png"), "--cells", str(out / "sig1.0cells"))
    assert main(["grid", str(sample_store), "--x", 'prompt="a cat, sitting",a dog', *places, *FAST]) == 0
    return out


def test_a_prompt_axis_needs_no_prompt_beside_it(drawn):
    prompts = [clipskip.read_ledger(drawn / "s.png", cell=(place,)).request.prompt for place in (1, 2)]
    assert prompts == ["a cat, sitting", "a dog"]


def test_a_folder_for_cells_may_be_called_anything_but_what_is_a_file(run, drawn, tmp_path):
    assert sorted(os.listdir(drawn / "sig1.0cells")) == ["00001-3.png", "00002-3.png"]
    Destination(tmp_path / "cells.png", False, 2, "cells", None)
    assert (tmp_path / "cells.png").is_dir()
    (tmp_path / "README.md").write_text("mine")
    words = ("a ring", "--x", "cfg=1", "-o", tmp_path / "s.png", "--cells", tmp_path / "README.md")
    status, _, err = run("grid", "no store", *words, *FAST)
    assert (status, f"cannot write to {tmp_path}/README.md" in err) == (7, True), err


def test_the_place_of_a_cell_has_as_many_numbers_as_there_are_axes(run, drawn):
    status, _, err = run("generate", "no store", "--from", drawn / "s.png", "--cell", "1,1")
    assert (status, "place along x: --cell 2 is the last" in err) == (3, True), err


def test_an_interrupt_says_that_what_was_finished_is_kept(run, sample_store, tmp_path, interrupt):
    interrupt(2)
    words = ("a ring", "--x", "steps=1,2", "-o", tmp_path / "s.png", *FAST[2:])
    status, _, err = run("grid", sample_store, *words)
    assert (status, err.splitlines()[-1]) == (130, "interrupted; what was finished was kept")
    assert "nothing half-made" not in err
