"""docs/performance.md is what its reports say, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clipskip.bench import plots, report

DOCS = Path(__file__).parents[2] / "docs"
PATHS = sorted((DOCS / "performance").glob("*.json"))


@pytest.fixture(scope="module")
def reports() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in PATHS]


def test_the_document_in_the_tree_is_written_from_the_reports_in_the_tree(reports: list[dict[str, Any]]) -> None:
    assert {each["bench"] for each in reports} == {"store", "peers"}
    assert (DOCS / "performance.md").read_text() == report.document(reports)
    assert sum(path.stat().st_size for path in DOCS.glob("performance-*.png")) < 300_000


def test_each_figure_is_the_report_s(reports: list[dict[str, Any]], tmp_path: Path) -> None:
    store, peers = (next(each for each in reports if each["bench"] == kind) for kind in ("store", "peers"))
    store["stages"]["step"]["median_ms"], peers["by_skip"]["2"]["told"] = 123.4, False
    peers["not_reproduced"], peers["left_out"] = ["step 256, OpenVINO (1.0 and 1.5)"], {"optimum-onnx": "no network"}
    (tmp_path / "a.json").write_text(json.dumps(store))
    (tmp_path / "b.json").write_text(json.dumps(peers))
    report.main([str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--out", str(tmp_path / "out.md")])
    lines = (tmp_path / "out.md").read_text().splitlines()
    assert any(line.split()[:4] == ["|", "step", "|", "123"] for line in lines)
    assert any(line.startswith("| 2 ") and "**not distinguishable**" in line for line in lines)
    assert "- left out: optimum-onnx: no network" in lines
    assert any("not so step 256, OpenVINO (1.0 and 1.5)" in line for line in lines)
    with Image.open(tmp_path / f"out-{store['model']}.png") as picture:
        assert picture.width > 800


def test_without_the_other_report_only_what_needs_it_is_missing(reports: list[dict[str, Any]], tmp_path: Path) -> None:
    peers = next(each for each in reports if each["bench"] == "peers")
    text = report.document([peers])
    assert "### Stages" not in text
    assert "### What is possible" in text
    plots.draw(None, peers, tmp_path / "one.png")
    assert (tmp_path / "one.png").stat().st_size > 1000
