"""What `clipskip doctor` finds, here and on machines that are made up."""

from __future__ import annotations

import json
from typing import Any

import pytest
from doubles.cuda import SimulatedCuda

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
