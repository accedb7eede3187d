"""Sheets: made together, equal to single pictures, drawn, and read back."""

from contextlib import contextmanager

import numpy as np
import PIL.Image
import pytest

import clipskip
from clipskip import cells, sheet
from clipskip.axes import Axis, parse_axis
from clipskip.errors import CheckpointError, RequestError
from clipskip.request import Request
from clipskip.sheet import Sheet, draw, merged

SMALL = {"steps": 2, "width": 64, "height": 64, "seed": 3}
BASE = Request(prompt="a red circle", **SMALL)


@pytest.fixture(scope="module")
def real(sample_store):
    """A pipeline whose steps run, unlike `pipe`."""
    with clipskip.open(sample_store) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def made(real):
    """Two depths by two cfg by two numbers of steps."""
    return real.grid(BASE, "clip_skip=1,9", "cfg=1,7", "steps=2,3")


def test_a_sheet_is_its_single_pictures_bit_for_bit(made, real):
    for result in made.results:
        alone = real(result.request)
        assert np.array_equal(alone.images[0], result.images[0])
    assert len({result.images[0].tobytes() for result in made.results}) == 8
    assert [(each.request.clip_skip, each.request.cfg, each.request.steps) for each in made.results] == [
        (skip, cfg, steps) for steps in (2, 3) for cfg in (1, 7) for skip in (1, 9)
    ]


def test_thirteen_depths_share_every_call(pipe, seen):
    seen.calls.clear()
    pipe.grid(BASE, "clip_skip=1-13")
    assert [len(feeds["timestep"]) >= 13 for feeds in seen.calls] == [True, True]


def test_progress_counts_every_call_once(pipe):
    stages = list(sheet.steps(BASE, [parse_axis("steps=2,3"), parse_axis("cfg=1,7")], opened(pipe)))
    assert [stage.calls for stage in stages] == [10] * len(stages)
    assert [stage.call for stage in stages] == sorted(stage.call for stage in stages)
    assert stages[-1].call == 10
    assert [len(stage.sheet.made) for stage in stages if stage.call == 4][-1] == 2


def opened(pipe):
    @contextmanager
    def use(store):
        yield pipe

    return use


def test_stores_are_opened_once_and_closed_one_after_the_other(pipe):
    told = []

    @contextmanager
    def use(store):
        told.append(f"open {store}")
        yield pipe
        told.append(f"close {store}")

    axes = [parse_axis("store=b/one,b/two"), parse_axis("clip_skip=1,2")]
    for stage in sheet.steps(BASE, axes, use):
        if stage.sheet.made:
            told.append(len(stage.sheet.made))
    told = [each for i, each in enumerate(told) if each not in told[:i]]
    assert told == ["open b/one", "open b/two", 2, "close b/one", 4, "close b/two"]
    assert stage.sheet.names() == ["store one, clip_skip 1", "store two, clip_skip 1", "store one, clip_skip 2",
                                   "store two, clip_skip 2"]  # fmt: skip


def test_a_pipeline_is_one_store(pipe):
    with pytest.raises(RequestError, match="a pipeline is one store's"):
        pipe.grid(BASE, "store=a,b")


def test_what_one_cell_cannot_be_is_refused_before_any_is_made_and_names_it(pipe, seen):
    seen.calls.clear()
    with pytest.raises(RequestError, match="clip_skip 14: clip_skip must be"):
        pipe.grid(BASE, "clip_skip=12-14")
    assert seen.calls == []


def test_the_picture_of_a_sheet_holds_the_request_of_every_cell(made, real, tmp_path):
    made.save(tmp_path / "s.png")
    ledger = clipskip.read_ledger(tmp_path / "s.png", cell=(2, 1, 2))
    assert (ledger.request.clip_skip, ledger.request.cfg, ledger.request.steps) == (9, 1, 3)
    assert ledger.request == made.results[5].request
    assert np.array_equal(real(ledger).images[0], made.results[5].images[0])


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_a_sheet_of_another_format_holds_the_requests_too(made, tmp_path, suffix):
    made.save(tmp_path / f"s.{suffix}")
    assert clipskip.read_ledger(tmp_path / f"s.{suffix}", cell=(2, 1, 2)).request == made.results[5].request


def test_a_sheet_of_too_many_words_is_kept_without_them(pipe, tmp_path):
    words = tuple("x" * 60_000 + str(i) for i in range(20))
    long = pipe.grid(Request(prompt="", emphasis="None", **SMALL | {"steps": 1}), Axis("prompt", ("a", "b")))
    long = Sheet(long.base, (Axis("prompt", words),), long.results * 10)
    with pytest.warns(RuntimeWarning, match="above 1 MiB"):
        long.save(tmp_path / "s.png")
    with pytest.raises(CheckpointError, match="no settings are in this picture"):
        clipskip.read_ledger(tmp_path / "s.png", cell=(1,))


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        (None, "a sheet of 2 x 2 x 2 cells, not one picture"),
        ((3, 1, 1), "no cell 3,1,1"),
        ((0, 1, 1), "no cell 0,1,1"),
        ((1, 1), "no cell 1,1 "),
    ],
)
def test_a_sheet_is_no_picture_without_a_cell_that_it_has(made, tmp_path, cell, told):
    made.save(tmp_path / "s.png")
    with pytest.raises(CheckpointError, match=told):
        clipskip.read_ledger(tmp_path / "s.png", cell=cell)


def test_a_picture_has_no_cells(made, tmp_path):
    made.results[0].save(tmp_path / "p.png")
    with pytest.raises(CheckpointError, match="no sheet with cells"):
        clipskip.read_ledger(tmp_path / "p.png", cell=(1, 1))


def test_a_cell_that_was_not_made_is_grey_and_says_so(made, tmp_path):
    part = Sheet(made.base, made.axes, (*made.results[:-1], None))
    assert draw(part).getpixel((draw(part).width - 10, draw(part).height - 20)) == (0xDD, 0xDD, 0xDD)
    part.save(tmp_path / "s.png")
    with pytest.raises(CheckpointError, match="the cell 2,2,2 was not made"):
        clipskip.read_ledger(tmp_path / "s.png", cell=(2, 2, 2))


@pytest.mark.parametrize(
    "broken",
    [
        '{"axes": [], "first": {}, "cells": []}',
        '{"axes": [{"field": "cfg", "values": [1, 2]}], "first": {"request": {}}, "cells": [{"request": {}}]}',
        '{"axes": [{"field": "cfg", "values": 1}], "first": {"request": {}}, "cells": [{"request": {}}]}',
        '{"axes": [{"field": "cfg", "values": [1]}], "first": {"request": {}}, "cells": [3]}',
        '{"axes": [{"field": "cfg", "values": [1]}], "first": {"request": {}}, "cells": [{"request": 1}]}',
        '{"axes": [{"field": "cfg", "values": [1]}], "first": [], "cells": [{"request": {}}]}',
        '{"axes": [{"field": "cfg", "values": [1]}, {"field": "a", "values": [1]}, {"field": "b", "values": [1]}, '
        '{"field": "c", "values": [1]}], "first": {"request": {}}, "cells": [{"request": {}}]}',
        f'{{"axes": [{{"field": "cfg", "values": {[1] * 9000}}}], "first": {{}}, "cells": [{"null," * 8999}null]}}',
        "3",
    ],
)
def test_a_broken_text_is_refused(broken):
    with pytest.raises(CheckpointError, match="the text `clipskip` is broken"):
        cells.of_truth(f'{{"schema": 1, "sheet": {broken}}}')


def test_a_cell_whose_request_is_none_is_refused_by_its_place():
    text = '{"schema": 1, "sheet": {"axes": [{"field": "cfg", "values": [1]}], "first": {"schema": 1, "request": {}}, '
    told = cells.of_truth(text + '"cells": [{"request": {"steps": "many"}}]}}')
    with pytest.raises(CheckpointError, match="the cell 1: "):
        told.ledger((1,))


def test_the_header_tells_what_all_cells_share_and_no_axis(made):
    assert made.locked() == {
        "model": "sample", "prompt": "a red circle", "seed": "3", "sampler": "DPM++ 2M", "schedule": "karras",
        "size": "64x64",
    }  # fmt: skip
    assert made.header == "sample · a red circle · seed 3 · DPM++ 2M · karras · 64x64"


def test_cells_lie_where_their_labels_say(made):
    flat = draw(made)
    left = next(x for x in range(flat.width) if flat.getpixel((x, flat.height - 30)) != (255, 255, 255))
    assert flat.width > left + 2 * 64
    last = np.asarray(flat)[-2 * sheet.GAP - 64 : -2 * sheet.GAP, -sheet.GAP - 64 : -sheet.GAP]
    assert np.array_equal(last, np.asarray(made.results[-1].images[0]))


def test_a_sheet_that_could_not_be_read_back_is_drawn_smaller(made, monkeypatch, tmp_path):
    monkeypatch.setattr(sheet, "MOST_PIXELS", 50_000)
    with pytest.warns(RuntimeWarning, match="its cells are drawn at"):
        picture = draw(made)
    assert picture.width * picture.height <= 50_000


def test_long_labels_count_in_what_can_be_read_back(made, monkeypatch):
    words = tuple(f"{number} words that go on and on and on and on and on" for number in range(8))
    monkeypatch.setattr(sheet, "MOST_PIXELS", 80_000)
    with pytest.warns(RuntimeWarning, match="its cells are drawn at"):
        picture = draw(Sheet(made.base, (Axis("cfg", (1.0,)), Axis("prompt", words)), made.results))
    assert picture.width * picture.height <= 80_000


def test_pictures_of_different_sizes_have_cells_of_one_size(pipe):
    picture = draw(pipe.grid(BASE, "width=64,128"))
    assert picture.width >= 2 * 128


def test_notes_that_differ_in_numbers_are_one():
    notes = [["clip_skip 1 is deep", "a"], ["clip_skip 3 is deep", "a"], ["clip_skip 2 is deep", "a"], ["a", "b", "b"]]
    assert merged(notes) == ["clip_skip 1, 2, 3 is deep (3 of 4 cells)", "a", "b (1 of 4 cells)"]
    assert merged([["cfg 1.5 of 7"], ["cfg 10 of 7"], ["cfg 2 of 7"]]) == ["cfg 1.5, 2, 10 of 7"]
    assert merged([[f"cfg {value}"] for value in (7, 10, 4, 1)]) == ["cfg 1 to 10"]


def test_a_sheet_of_a_strange_prompt_is_drawn(pipe):
    made = pipe.grid(Request(prompt="", negative_prompt="x" * 3000, **SMALL), Axis("prompt", ("", "a\nb " * 200)))
    assert isinstance(draw(made), PIL.Image.Image)
    assert made.labels[0][0] == '""'
