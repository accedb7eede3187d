"""How large a sheet is drawn, and what its header says of sizes, also where cells are missing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import PIL.Image
import pytest

from clipskip import sheet as sheets
from clipskip.axes import Axis, parse_axis, requests
from clipskip.request import Request
from clipskip.sheet import Sheet, draw

BASE = Request(prompt="a ring", seed=1, clip_skip=1, negative_clip_skip=1, width=64, height=64)


def sheet(axes: list[Axis], made: int = 10**6) -> Sheet:
    """A sheet whose first cells are grey pictures of the size that their requests say."""
    results: list[Any] = [None] * len(cells := requests(BASE, *axes))
    for i, cell in enumerate(cells[:made]):
        picture = PIL.Image.new("L", (cell.width or 0, cell.height or 0))
        results[i] = SimpleNamespace(images=[picture], request=cell, model=SimpleNamespace(name="m"), warnings=[])
    return Sheet(BASE, tuple(axes), tuple(results))


@pytest.mark.parametrize("axes", [["seed=1-9"], ["seed=1-4", "cfg=1-7"], ["seed=1-2", "cfg=1-3", "steps=1-4"]])
def test_cells_are_drawn_smaller_by_no_more_than_they_must(axes: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = sheet([parse_axis(text) for text in axes])
    whole = draw(drawn)
    monkeypatch.setattr(sheets, "MOST_PIXELS", pixels := whole.width * whole.height)
    assert draw(drawn).size == whole.size
    monkeypatch.setattr(sheets, "MOST_PIXELS", pixels - 1)
    with pytest.warns(RuntimeWarning, match="its cells are drawn at 9.% of their size"):
        smaller = draw(drawn)
    assert 0.8 * pixels < smaller.width * smaller.height < pixels


@pytest.mark.parametrize("axes", [["width=64,128", "height=64,128"], ["size=64x64,128x64"], ["hires_scale=1.5,2"]])
def test_a_size_that_an_axis_varies_is_not_said_of_all_cells_where_some_are_missing(axes: list[str]) -> None:
    part = sheet([parse_axis(text) for text in axes], made=1)
    assert "size" not in part.locked()
    assert "64x64" not in part.header
    assert sheet([parse_axis("seed=1,2")], made=1).locked()["size"] == "64x64"
