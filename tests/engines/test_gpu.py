"""What is said of a machine's driver and GPUs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from compiled import library
from doubles.cuda import SimulatedCuda

from clipskip.engines.gpu import TEXT, Device, code_in, describe, gpus, has_code
from clipskip.errors import BackendUnavailable


def runtime(status: str, driver: int, count: int | None = None) -> Any:
    """Just enough of cuda.bindings.runtime."""
    errors = SimulatedCuda.cudaError_t
    return SimpleNamespace(
        cudaError_t=errors,
        cudaGetDeviceCount=lambda: (errors[status], count),
        cudaDriverGetVersion=lambda: (errors.cudaSuccess, driver),
        cudaRuntimeGetVersion=lambda: (errors.cudaSuccess, 13050),
    )


@pytest.mark.parametrize(
    ("double", "message"),
    [
        (runtime("cudaErrorInsufficientDriver", 0), "no NVIDIA driver"),
        (runtime("cudaErrorInsufficientDriver", 12040), r"serves CUDA 12\.4, CUDA 13\.5 is needed"),
        (runtime("cudaErrorNoDevice", 13050), "cudaErrorNoDevice"),
        (runtime("cudaSuccess", 13050, 0), "no usable NVIDIA GPU"),
    ],
)
def test_what_is_missing_is_named_c6(double: Any, message: str) -> None:
    with pytest.raises(BackendUnavailable, match=message) as caught:
        gpus(double)
    assert caught.value.exit_status == 5


def test_a_gpu_is_described() -> None:
    found = gpus(SimulatedCuda(capability=(8, 9), memory=10))
    assert [(each.name, each.compute_capability, each.memory, each.cuda) for each in found] == [
        ("simulated GPU", "8.9", 10, "13.5")
    ]


def test_one_gpu_of_several_is_described_and_one_that_is_not_there_names_those_that_are() -> None:
    cuda = SimulatedCuda(capability=(8, 9), memory=10)
    assert describe(cuda, 0).name == "simulated GPU"
    for index in (1, -1):
        with pytest.raises(BackendUnavailable, match=rf"there is no GPU {index} on this machine, only 0"):
            describe(cuda, index)


def test_a_device_is_written_as_people_write_it() -> None:
    assert [str(Device()), str(Device("cuda", 1))] == ["cpu", "cuda:1"]


def test_a_library_tells_which_gpus_its_kernels_are_compiled_for(tmp_path: Path) -> None:
    assert code_in(library(tmp_path / "a.so", (2, 75), (2, 120), (2, 86), (TEXT, 120))) == [
        "7.5",
        "8.6",
        "12.0",
        "12.0+",
    ]
    assert code_in(library(tmp_path / "b.so")) == []


def test_a_bundle_that_is_cut_or_garbage_tells_nothing_and_ends(tmp_path: Path) -> None:
    whole = library(tmp_path / "a.so", (2, 75), (2, 86)).read_bytes()
    for size in range(1, len(whole), 7):
        (tmp_path / "cut.so").write_bytes(whole[:size])
        assert {*code_in(tmp_path / "cut.so")} <= {"7.5", "8.6"}


@pytest.mark.parametrize(
    ("code", "runs"), [(["7.5", "8.6"], ["7.5", "8.6", "8.9"]), (["9.0+"], ["9.0", "10.0", "12.1"]), ([], [])]
)
def test_code_runs_on_later_gpus_of_its_generation_and_text_on_any_later_one(code: list[str], runs: list[str]) -> None:
    assert [each for each in ("7.0", "7.5", "8.0", "8.6", "8.9", "9.0", "10.0", "12.1") if has_code(code, each)] == runs
