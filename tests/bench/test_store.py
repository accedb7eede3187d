"""`clipskip bench STORE` on the sample store: complete, sane where the clock allows, and compared with what was."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from clipskip.__main__ import main
from clipskip.bench import baseline, machine, store
from clipskip.bench.report import chapter

DEPTHS = [f"text-{layers:02}" for layers in range(13)]
ENGINES = [*DEPTHS, "step", "decode"]


@pytest.fixture(scope="module")
def written(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One short run, by the command line."""
    path = tmp_path_factory.mktemp("bench") / "new" / "report.json"
    quick = ["--size", "64", "--steps", "4", "--batch", "1,2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "prepared", hurried(store.prepared))
        assert main(["bench", str(sample_store), *quick, "--out", str(path)]) == 0
    return path


def hurried(prepared: Any) -> Any:
    """As `prepared`, but the time is over from the start: every row has one run."""

    def at_once(*arguments: Any) -> store.Bench:
        bench: store.Bench = prepared(*arguments)
        bench.until = time.monotonic()
        return bench

    return at_once


def test_a_report_has_every_figure_and_says_which_have_few_runs(written: Path) -> None:
    report = json.loads(written.read_text())
    first = "first picture of a process, 1 step, files "
    others = ["step, 2 images", "picture, 4 steps", "host, per step", f"{first}on the disk", f"{first}in memory"]
    assert {*report["stages"]} == {*ENGINES, *(f"open {role}" for role in ENGINES), *others}
    assert report["stages"]["text-00"]["median_ms"] < report["stages"]["text-12"]["median_ms"]
    assert 0 < report["stages"]["host, per step"]["median_ms"] < 20
    assert {*report["image_steps_per_second"]} == {"1", "2"}
    assert len(report["memory"]["depths_open"]) == 13
    assert 0 < report["memory"]["first_picture"]["anonymous"] < report["memory"]["first_picture"]["peak"]
    assert report["disk"]["one depth"] < report["disk"]["all"] < 2 * report["disk"]["one depth"]
    assert report["machine"]["versions"]["onnxruntime"]
    assert "decode (1)" in report["doubts"]["few runs"]


def test_the_last_line_is_json_and_the_rest_is_for_people(written: Path) -> None:
    report = json.loads(written.read_text())
    lines = "\n".join(chapter(report["model"], report, None)).splitlines()
    assert all(any(line.startswith(f"| {name} ") for line in lines) for name in report["stages"])
    assert any("**Doubtful:** " in line and "few runs: open text-00 (1), open text-01 (1)" in line for line in lines)
    assert any(line.startswith("| 13 depths open, ") for line in lines)


def test_a_slower_row_is_named_and_is_the_exit_status(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = json.loads(written.read_text())
    report["stages"]["step"]["runs"] = baseline.FEW
    monkeypatch.setattr(store, "measure", lambda *_: report)
    old = json.loads(written.read_text())
    old["stages"]["step"] |= {key: old["stages"]["step"][key] / 2 for key in ("median_ms", "p75_ms")}
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert main(["bench", "store", "--baseline", str(written)]) == 0
    assert main(["bench", "store", "--baseline", str(tmp_path / "old.json"), "--threshold", "90"]) == 1
    *people, last = capsys.readouterr().out.splitlines()
    assert json.loads(last)["comparison"]["slower"] == ["step"]
    assert [line.split() for line in people if "SLOWER" in line] == [["step", "2.000", "SLOWER"]]
    assert people[-3:] == ["not within 10%: step", "slower by more than 90%: step", ""]


def test_a_wide_row_is_slower_only_where_its_middle_half_is() -> None:
    old = {"median_ms": 10.0, "p25_ms": 9.0, "p75_ms": 14.0}
    reports: list[dict[str, Any]] = [
        {**dict.fromkeys(baseline.SAME), "batches": [1], "stages": {"step": row}, "memory": {"first_picture": {}},
         "machine": {"processor": "one"}} for row in (old, {"median_ms": 13.0, "p25_ms": 12.0, "p75_ms": 15.0})
    ]  # fmt: skip
    found = baseline.compare(reports[1], reports[0], 0.1)
    assert (found["ratios"], found["slower"], found["apart"]) == ({"step": 1.3}, [], ["step"])
    assert "above 10%, not called slower, for the runs' middle halves are not apart" in baseline.text(found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 512}, "the baseline is of something else: size 512 there, 64 here"),
        (
            {"stages": {"step, 9 images": {"median_ms": 1.0, "p75_ms": 1.0}}},
            "a figure is missing that the baseline has",
        ),
    ],
)
def test_a_baseline_of_something_else_or_a_missing_figure_is_an_error(
    change: dict[str, Any], message: str, written: Path
) -> None:
    report = json.loads(written.read_text())
    with pytest.raises(baseline.RequestError, match=message):
        baseline.compare(report, {**report, **change}, 0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "12"], "the step engine takes sizes of 64 to"),
        (["--batch", "2,4"], "1 must be among them: not 2,4"),
        (["--steps", "2"], "steps must be at least 3"),
        (["--baseline", "nothing.json"], "nothing.json is no report of the benchmark"),
        (["--fidelity", "--baseline", "old.json"], "--fidelity measures no time: it takes no --baseline"),
        (["--fidelity", "--steps", "3"], "it takes no --steps"),
        (["--fidelity", "--target", "openvino"], "it takes no --target"),
        (["--steps", ""], "steps must be"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_runs(
    options: list[str], message: str, sample_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(sample_store), *options]) == 2
    assert message in capsys.readouterr().err


def test_a_busy_machine_is_said() -> None:
    seen = {"load_before": 64.0 * machine.cores(), "others": 0.5, "load_after": 0.0}
    assert len(machine.warnings(seen)) == 2
    assert machine.warnings({"load_before": 0.0, "others": 0.01, "load_after": 9.0}) == []
    assert machine.warnings({"load_before": None, "others": None, "load_after": None}) == []


def test_others_are_noticed_and_a_process_of_ours_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "busy", iter([10.0, 20.0]).__next__)
    monkeypatch.setattr(machine, "own", iter([1.0, 9.0]).__next__)
    assert machine.Watch().report()["others"] == 0.2


def test_the_kernel_s_figures_of_memory_are_read_as_bytes() -> None:
    said = "VmHWM:\t    900 kB\nRss:                 800 kB\nPss_Anon: 3 kB\nPss:  700 kB\nAnonymous:  600 kB\n"
    expected = {"peak": 921600, "rss": 819200, "pss": 716800, "anonymous": 614400}
    assert machine.memory(said) == expected


def test_fidelity_is_measured_by_its_own_module_and_what_that_lacks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = ModuleType("clipskip.bench.fidelity")
    vars(module).update(measure=lambda path, scenes: {"scenes": scenes}, table=lambda report: "the table")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert main(["bench", "store", "--fidelity", "--out", str(tmp_path / "out.json")]) == 0
    assert capsys.readouterr().out.splitlines() == ["the table", '{"scenes": 48}']
    assert json.loads((tmp_path / "out.json").read_text()) == {"scenes": 48}
    monkeypatch.setitem(sys.modules, module.__name__, None)
    assert main(["bench", "store", "--fidelity"]) == 5
    assert "fidelity needs clipskip.bench.fidelity" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_refused_before_minutes_of_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(store, "measure")
    (tmp_path / "file").touch()
    assert main(["bench", "store", "--out", str(tmp_path / "file" / "out.json")]) == 7
    assert f"cannot write {tmp_path}/file/out.json" in capsys.readouterr().err


def test_what_was_measured_is_kept_where_the_baseline_turns_out_to_be_of_something_else(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    report = {**json.loads(written.read_text()), "size": 128}
    monkeypatch.setattr(store, "measure", lambda path, asked, say, old: report)
    assert main(["bench", "store", "--baseline", str(written), "--out", str(tmp_path / "out.json")]) == 2
    assert "size 64 there, 128 here" in capsys.readouterr().err
    assert json.loads((tmp_path / "out.json").read_text()) == report
