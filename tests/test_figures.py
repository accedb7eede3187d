"""The house keeps its size and shape; `python tests/figures.py` prints the figures, and who is over them."""

from __future__ import annotations

from pathlib import Path

import figures
import pytest

LINES, USED_ONCE = 26_000, 0.08  # the aim is 8,000: lower it whenever the source allows it


@pytest.fixture(scope="module")
def texts() -> dict[Path, str]:
    return figures.sources()


def test_the_source_grows_no_longer(texts: dict[Path, str]) -> None:
    assert sum(map(figures.lines_of, texts.values())) <= LINES, "\n" + figures.report()


def test_functions_are_short_and_none_is_long(texts: dict[Path, str]) -> None:
    functions = figures.functions(texts)
    lengths = sorted(function.lines for function in functions)
    assert [function for function in functions if function.lines > 60] == []
    assert lengths[9 * len(lengths) // 10] < 35


def test_few_helpers_are_used_once(texts: dict[Path, str]) -> None:
    once = figures.used_once(texts)
    assert len(once) <= USED_ONCE * len(figures.functions(texts)), "\n" + figures.report()


def test_one_picture_runs_through_few_files_and_not_deep(sample_store: Path, tmp_path: Path) -> None:
    way = figures.one_picture(sample_store, tmp_path)
    assert len(way.files) <= 28, way.files  # the aim is 20
    assert len(way.deepest) <= 12, way.deepest
    assert "runtime/pipeline.py" in way.files
    assert (tmp_path / "first.png").exists()
    assert (tmp_path / "second.png").exists()
