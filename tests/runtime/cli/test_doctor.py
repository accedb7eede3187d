"""What `clipskip doctor` finds, here and on machines that are made up."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from compiled import library
from doubles.cuda import SimulatedCuda
from doubles.onnxruntime import SimulatedOnnxRuntime

from clipskip.backends import NAMES
from clipskip.cli import doctor
from clipskip.engines import gpu
from clipskip.errors import BackendUnavailable


def test_the_findings_are_json_and_every_target_is_ready_or_says_what_to_do() -> None:
    facts = doctor.examine()
    assert json.loads(json.dumps(facts)) == facts
    assert set(facts["targets"]) == set(NAMES)
    for checks in facts["targets"].values():
        assert all(lack is None or (lack["lacks"] and lack["fix"]) for lack in checks.values())


def test_the_report_names_every_package_and_target() -> None:
    facts = doctor.examine()
    report = doctor.text(facts)
    assert all(name in report for name in (*facts["packages"], *facts["targets"]))
    assert "None" not in report


def machine(monkeypatch: pytest.MonkeyPatch, runtime: Any) -> dict[str, Any]:
    monkeypatch.setattr(gpu, "cuda_runtime", lambda: runtime)
    return doctor.examine()


def test_a_machine_with_a_gpu_can_run_tensorrt_rtx(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    facts = machine(monkeypatch, SimulatedCuda(capability=(8, 9)))
    assert facts["targets"]["tensorrt-rtx"] == {"build": None, "run": None}
    assert facts["gpus"][0]["name"] == "simulated GPU"
    assert "compute capability 8.9, 8.6 GB" in doctor.text(facts)


def test_a_gpu_that_tensorrt_rtx_has_no_code_for_is_sent_to_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    lack = machine(monkeypatch, SimulatedCuda(capability=(9, 0)))["targets"]["tensorrt-rtx"]["run"]
    assert "9.0" in lack["lacks"]
    assert lack["fix"] == "use --target tensorrt"


@pytest.mark.parametrize(
    ("capability", "outlook"),
    [
        ((8, 9), "runs engines that are built without a choice of GPUs"),
        ((8, 0), "runs engines that are built with --compute-capability 8.0"),
        ((7, 5), None),
        ((9, 0), None),
    ],
)
def test_what_tensorrt_rtx_would_do_on_a_gpu_stands_below_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], outlook: str | None
) -> None:
    pytest.importorskip("tensorrt_rtx")
    facts = machine(monkeypatch, SimulatedCuda(capability=capability))
    assert facts["gpus"][0]["targets"]["tensorrt-rtx"] == outlook
    assert f"\n    tensorrt-rtx: {outlook or 'no code for it'}\n" in doctor.text(facts)
    assert bool(facts["targets"]["tensorrt-rtx"]["run"]) == (outlook is None)


def test_a_gpu_that_onnx_runtime_has_no_code_for_is_sent_to_tensorrt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What onnxruntime-gpu 1.31 has: 7.5 to 9.0 and 12.0, but not 10.0."""
    (tmp_path / "capi").mkdir()
    library(tmp_path / "capi" / "libonnxruntime_providers_cuda.so", *((2, each) for each in (75, 80, 86, 89, 90, 120)))
    package = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(gpu, "find_spec", lambda name: package)
    monkeypatch.setitem(sys.modules, "onnxruntime", SimulatedOnnxRuntime())
    facts = machine(monkeypatch, SimulatedCuda(capability=(9, 0)))
    assert facts["targets"]["onnxruntime-cuda"] == {"run": None}
    assert "onnxruntime-cuda: for compute capability 7.5, 8.0, 8.6, 8.9, 9.0, 12.0" in doctor.text(facts)
    lack = machine(monkeypatch, SimulatedCuda(capability=(10, 0)))["targets"]["onnxruntime-cuda"]["run"]
    assert "has no code for simulated GPU (compute capability 10.0), only for 7.5," in lack["lacks"]
    assert lack["fix"] == "use --target tensorrt"


def test_without_a_driver_tensorrt_rtx_still_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")

    def no_driver(runtime: Any) -> Any:
        raise BackendUnavailable("no NVIDIA driver on this machine", hint="install one")

    monkeypatch.setattr(gpu, "check_driver", no_driver)
    facts = machine(monkeypatch, None)
    assert facts["targets"]["tensorrt-rtx"]["build"] is None
    assert facts["targets"]["tensorrt-rtx"]["run"] == {
        "lacks": "no NVIDIA driver on this machine",
        "fix": "install one",
    }
    assert facts["gpus"] == []


def test_two_onnx_runtimes_at_once_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "1.0")
    facts = doctor.examine()
    assert "overwrite each other" in facts["problems"][0]
    assert "problem: " in doctor.text(facts)
