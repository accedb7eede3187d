"""The latency report on the sample store: complete, and sane where the clock allows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clipskip.bench import latency
from clipskip.bench.measure import Contenders, Seconds, interleaved


def once(contenders: Contenders, rounds: int, warmups: int = 1) -> dict[str, Seconds]:
    return interleaved({name: run for name, run in contenders.items() if "process" not in name}, 1, 0)


def test_the_report_has_every_stage_and_its_last_line_is_json(
    sample_store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(latency, "interleaved", once)
    latency.main([str(sample_store), "--steps", "5"])
    lines = capsys.readouterr().out.splitlines()
    report = json.loads(lines[-1])
    depths = {f"text-{layers:02}" for layers in range(13)}
    engines = depths | {"step", "decode"}
    assert set(report["stages"]) == engines | {f"open {role}" for role in engines} | {
        "picture, 5 steps",
        "host, per step",
    }
    assert report["stages"]["text-00"]["median_ms"] < report["stages"]["text-12"]["median_ms"]
    assert 0 < report["stages"]["host, per step"]["median_ms"] < 10
    assert len(lines) == len(report["stages"]) + 3


def test_with_json_only_the_json_line_goes_to_stdout(
    sample_store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(latency, "measure", lambda *_, **__: {"stages": {"step": {
        "median_ms": 1.0, "min_ms": 1.0, "max_ms": 1.0, "runs": 5}}})  # fmt: skip
    latency.main([str(sample_store), "--json"])
    out, err = capsys.readouterr()
    assert json.loads(out)["stages"]["step"]["runs"] == 5
    assert "step" in err
