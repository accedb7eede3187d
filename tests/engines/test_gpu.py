"""What is said of a machine's driver and GPUs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from doubles.cuda import SimulatedCuda

from clipskip.engines.gpu import Device, describe, gpus, library
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


@pytest.mark.parametrize(("cause", "raised"), [("KeyboardInterrupt", KeyboardInterrupt), ("ValueError", ImportError)])
def test_an_interrupt_that_a_library_makes_an_import_error_of_stays_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: str, raised: type[BaseException]
) -> None:
    name = f"library_in_c_{cause.lower()}"
    (tmp_path / f"{name}.py").write_text(f"raise ImportError('initialization failed') from {cause}()")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(raised):
        library(name)


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
