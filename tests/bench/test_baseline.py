"""`clipskip bench --baseline OLD.json`: what is refused in the first second, and what is kept whatever happens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clipskip.__main__ import main
from clipskip.bench import baseline, store

DOCS = Path(__file__).parents[2] / "docs" / "performance"
ROW = {"median_ms": 10.0, "p25_ms": 9.0, "p75_ms": 11.0, "p90_ms": 12.0, "p99_ms": 12.0, "spread": 0.2, "runs": 5}


def report(stages: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A report of 20 steps of the sample model at 64x64 pixels, one or two images in a call."""
    facts = {"bench": "store", "model": "sample", "target": "onnxruntime", "size": 64, "steps": 20, "batches": [1, 2]}
    box = {"processor": "one", "cores": 2, "gpus": [], "date": "2026-01-01", "commit": None}
    seen = {"load_before": 0.0, "load_after": 0.0, "others": 0.0}
    memory = {"first_picture": {"peak": 1000}, "depths_open": []}
    rest = {"machine": box, "memory": memory, "load": seen, "doubts": {}, "image_steps_per_second": {}, "disk": {}}
    return {**facts, **rest, "stages": stages or {"step": ROW, "step, 2 images": ROW}, **more}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (json.dumps(report(machine=3)), "machine.processor is missing"),
        (json.dumps(report(memory={})), "memory.first_picture.peak is None, no number above 0"),
        (json.dumps(report(memory={"first_picture": {"peak": "much"}})), "memory.first_picture.peak is 'much'"),
        (json.dumps(report({"step": ROW | {"median_ms": 0}})), "stages.step.median_ms is 0, no number above 0"),
        (json.dumps(report({"step": ROW | {"median_ms": "x"}})), "stages.step.median_ms is 'x'"),
        (json.dumps(report({"step": [1]})), "stages.step.median_ms is None"),
        (json.dumps(report({"step": ROW | {"p75_ms": float("nan")}})), "NaN is not a number"),
        (json.dumps({**report(), "stages": {}}), "it has no stages"),
        ("[]", "it has no stages"),
        ("", "it has no stages"),
        (None, "old.json is missing"),
    ],
)
def test_a_report_that_is_none_is_refused_by_its_figure_before_anything_runs(
    text: str | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(store, "measure")
    if text is not None:
        (tmp_path / "old.json").write_text(text)
    assert main(["bench", "store", "--baseline", str(tmp_path / "old.json")]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path}/old.json is no report of the benchmark: " in said
    assert told in said


@pytest.mark.parametrize(
    ("old", "told"),
    [
        ((DOCS / "sample-peers.json").read_text(), "of something else: bench 'peers' there, 'store' here"),
        (json.dumps(report(size=128)), "of something else: size 128 there, 64 here"),
        (json.dumps(report()), "a figure is missing that the baseline has: step, 2 images"),
    ],
)
def test_a_report_of_something_else_is_refused_before_anything_is_measured(
    old: str, told: str, sample_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.delattr(store.Bench, "openings")
    (tmp_path / "old.json").write_text(old)
    asked = [
        "--size",
        "64",
        "--batch",
        "1",
        "--baseline",
        str(tmp_path / "old.json"),
        "--out",
        str(tmp_path / "n.json"),
    ]
    assert main(["bench", str(sample_store), *asked]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "n.json").exists()


def test_a_report_is_kept_that_turns_out_to_lack_a_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    new, path = report(), tmp_path / "new" / "report.json"
    monkeypatch.setattr(store, "measure", lambda *_: new)
    (tmp_path / "old.json").write_text(json.dumps(report({**new["stages"], "text-12": ROW})))
    assert main(["bench", "store", "--baseline", str(tmp_path / "old.json"), "--out", str(path)]) == 2
    assert "a figure is missing that the baseline has: text-12" in capsys.readouterr().err
    assert baseline.read(path) == new


def test_an_interrupted_run_leaves_no_report_and_an_old_one_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "measure", interrupted)
    (tmp_path / "old.json").write_text("as it was")
    for path in tmp_path / "new" / "report.json", tmp_path / "old.json":
        assert main(["bench", "store", "--out", str(path)]) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]
    assert (tmp_path / "old.json").read_text() == "as it was"


@pytest.mark.parametrize(("runs", "slower"), [(1, []), (2, []), (3, ["step"])])
def test_a_row_of_few_runs_is_not_called_slower_and_says_why(runs: int, slower: list[str]) -> None:
    late = {"median_ms": 30.0, "p25_ms": 29.0, "p75_ms": 31.0, "runs": runs}
    found = baseline.compare(report({"step": late, "step, 2 images": ROW}), report(), 0.1)
    assert found["slower"] == slower
    assert ("or there are fewer than 3: step" in baseline.text(found)) != bool(slower)
