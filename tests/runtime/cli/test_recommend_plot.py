"""`clipskip recommend --plot`: what is drawn, and what is refused before anything is measured."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from clipskip import __main__ as command
from clipskip.cli import recommend
from clipskip.recommend import LEAST, Verdict

LOSSES = np.load(Path(__file__).parents[1] / "data" / "depth_losses.npz")["second"]
BLUE, RED = (31, 119, 180), (214, 39, 40)


def test_what_is_alike_and_what_is_worse_are_drawn_apart() -> None:
    verdict = Verdict((1, 2, 3), LOSSES[:, :3])
    drawn = np.asarray(recommend.draw(verdict, recommend.empty_figure()))
    right = {colour: np.flatnonzero((drawn == colour).all(2).any(0)).mean() for colour in (BLUE, RED)}
    middle = drawn.shape[1] / 2
    assert right[RED] < middle < right[BLUE]  # clip skip 1 is worse, 2 and 3 are alike


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Names alone: nothing is read."""
    root = tmp_path / "pictures"
    root.mkdir()
    for number in range(LEAST):
        (root / f"{number}.png").touch()
        (root / f"{number}.txt").touch()
    return root


def test_a_plot_that_cannot_be_drawn_is_refused_before_the_store_is_opened(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = tmp_path / "taken.png"
    taken.touch()
    ask = ["recommend", str(tmp_path / "no store"), "--pictures", str(folder), "--plot"]
    for file, word in (("plot.svg", "written as"), (str(taken), "--overwrite")):
        assert command.main([*ask, str(tmp_path / file)]) == 2
        assert word in capsys.readouterr().err
    assert taken.read_bytes() == b""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert command.main([*ask, str(tmp_path / "plot.png")]) == 5
    assert "pip install 'matplotlib>=3.9'" in capsys.readouterr().err
