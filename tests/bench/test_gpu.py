"""The GPU's table, on the CPU: every measurement over a pretend contender, then all of it over the sample model."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from copies import copy_of
from doubles.onnxruntime import SimulatedOnnxRuntime
from doubles.store import publish_forms

from clipskip.bench import gpu
from clipskip.bench.gpu import Stage, Work
from clipskip.bench.measure import Contenders, Seconds, interleaved
from clipskip.engines.store import Store

STEP = Stage("step", 1, 64)


class Pretend:
    """Notes what is done with it; `seconds` pass where the host waits, not where it enqueues."""

    def __init__(self, name: str, seconds: float = 0.0, failure: str = "") -> None:
        self.facts = {"library": "1.0"}
        self.name, self.done, self._seconds, self._failure = name, list[str](), seconds, failure

    def open(self, stage: Stage) -> Work | None:
        if stage.part == "decode":
            return None
        if self._failure:
            raise RuntimeError(self._failure)
        wait = lambda: (time.sleep(self._seconds), self.done.append("wait"))  # noqa: E731
        return Work(lambda: self.done.append("enqueue"), wait, lambda: self.done.append("close"))


def once(contenders: Contenders, rounds: int, warmups: int = 1) -> dict[str, Seconds]:
    return interleaved(contenders, 1, 0)


def test_a_burst_waits_once_and_steps_are_timed_in_a_row() -> None:
    contender = Pretend("a")
    gpu.measure([contender], [STEP], rounds=1)
    assert contender.done[:2] == ["enqueue", "wait"], "once before it counts"
    assert contender.done[2 : 3 + gpu.STEPS] == ["enqueue"] * gpu.STEPS + ["wait"]
    assert contender.done[-1] == "close"


def test_figures_are_medians_of_at_least_five_rounds() -> None:
    report = gpu.measure([Pretend("a")], [STEP, Stage("picture", 1, 64)], rounds=1)
    assert {row["a"]["runs"] for row in report["stages"].values()} == {5}
    assert report["host"]["a"]["runs"] == 5


def test_the_host_s_time_is_without_the_wait() -> None:
    report = gpu.measure([Pretend("a", seconds=0.02)], [STEP], rounds=5)
    assert report["stages"]["step, 1"]["a"]["median_ms"] >= 20 / gpu.STEPS
    assert report["host"]["a"]["median_ms"] < 20 / gpu.STEPS


def test_what_fails_is_left_out_with_the_reason_and_what_is_not_there_without() -> None:
    report = gpu.measure([Pretend("a"), Pretend("b", failure="no room\nmore")], [STEP, Stage("decode", 1, 64)], 5)
    assert list(report["stages"]["step, 1"]) == ["a"]
    assert report["stages"]["decode"] == {}
    assert report["left_out"] == {"step, 1: b": "RuntimeError: no room more"}


def test_ratios_take_the_fastest_of_each_side() -> None:
    medians = {
        "step, 1": {"exported, plain": 4.0, "cuda, captured": 2.0, "torch eager": 9.0, "torch compile": 3.0},
        "decode": {"exported, plain": 5.0, "cuda, captured": 5.0},
        "picture": {"exported, plain": 170.0, "cuda, captured": 45.0},
    }
    stages = {stage: {name: {"median_ms": value} for name, value in row.items()} for stage, row in medians.items()}
    found = gpu.ratios(stages)
    assert found["torch_over_clipskip"] == {"step, 1": 1.5}
    assert found["picture_over_parts"] == {"exported, plain": 2.0, "cuda, captured": 1.0}


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # diffusers' scheduler
def test_the_sample_model_runs_through_every_stage_and_the_last_line_is_json(
    sample_store: Path, sample_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu_torch = pytest.importorskip("clipskip.bench.gpu_torch")
    monkeypatch.setattr(gpu, "interleaved", once)
    for module in (gpu, gpu_torch):
        monkeypatch.setattr(module, "STEPS", 2)
    options = ["--target", "onnxruntime", "--batches", "1,2", "--size", "64", "--checkpoint", str(sample_checkpoint)]
    gpu.main([str(sample_store), *options])
    lines = capsys.readouterr().out.splitlines()
    report = json.loads(lines[-1])
    assert report["left_out"] == {}
    networks = {"exported, plain", "cpu, plain", "torch eager", "torch channels_last"}
    assert {stage: set(row) for stage, row in report["stages"].items()} == {
        **{f"text-{layers:02}": {"exported, plain"} for layers in range(12)},
        "text-12": networks - {"cpu, plain"},
        **dict.fromkeys(("step, 1", "step, 2", "decode", "picture"), networks),
    }
    assert set(report["torch_over_clipskip"]) == {"text-12", "step, 1", "step, 2", "decode", "picture"}
    assert report["kernels"] == dict.fromkeys(networks), "nobody counts kernels on the CPU"
    assert {name: set(facts) >= {"torch"} for name, facts in report["contenders"].items()} == {
        name: name.startswith("torch") for name in networks
    }
    assert lines[0].split("  ")[-1].strip() in networks


def test_without_the_gpu_s_libraries_both_sides_are_left_out_with_the_reason(
    sample_fp16_store: Path, sample_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    gpu.main([str(sample_fp16_store), "--checkpoint", str(sample_checkpoint)])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "CUDAExecutionProvider" in report["left_out"]["clipskip"]
    assert "finds no GPU" in report["left_out"]["torch"]


def test_every_form_runs_plain_and_captured_on_the_doubles(
    sample_fp16_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = copy_of(sample_fp16_store, tmp_path / "store")
    publish_forms(Store(store))
    device = SimulatedOnnxRuntime().installed(monkeypatch).cuda.devices[0]
    monkeypatch.setattr(gpu, "interleaved", once)
    monkeypatch.setattr(gpu, "STEPS", 2)
    contenders = gpu.engines(store, "onnxruntime-cuda")
    names = {f"{form}, {mode}" for form in ("exported", "cuda") for mode in ("plain", "captured")}
    assert {contender.name for contender in contenders} == names
    report = gpu.measure(contenders, [STEP, Stage("picture", 1, 64)], 5)
    assert report["left_out"] == {}
    assert {name for row in report["stages"].values() for name in row} == names
    assert "launch" in {call.name for call in device.trace}
