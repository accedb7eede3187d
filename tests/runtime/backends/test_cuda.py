"""How CUDA's failures become ours, by their number and not by their words."""

from __future__ import annotations

from typing import Any

import pytest
from doubles.cuda import SimulatedCuda

from clipskip.backends.cuda import STICKY, Cuda
from clipskip.errors import BackendUnavailable, ClipskipError, DeviceLost, DeviceOutOfMemory

ERRORS = SimulatedCuda.cudaError_t


def answering(error: str) -> tuple[Cuda, Any]:
    """A device on which waiting ends with an error."""
    double = SimulatedCuda()
    cuda = Cuda(double)
    double.cudaStreamSynchronize = lambda stream: (ERRORS[error],)  # type: ignore[method-assign]
    return cuda, cuda.stream()


@pytest.mark.parametrize("name", STICKY)
def test_an_error_that_stays_loses_the_device(name: str) -> None:
    cuda, stream = answering(name)
    cuda.check()
    with pytest.raises(DeviceLost, match=name):
        cuda.wait(stream)
    with pytest.raises(DeviceLost, match=f"failed earlier.*{name}"):
        cuda.check()


@pytest.mark.parametrize(
    ("name", "kind"), [("cudaErrorMemoryAllocation", DeviceOutOfMemory), ("cudaErrorInvalidValue", BackendUnavailable)]
)
def test_an_error_that_passes_leaves_the_device(name: str, kind: type[ClipskipError]) -> None:
    cuda, stream = answering(name)
    with pytest.raises(kind):
        cuda.wait(stream)
    cuda.check()


def test_out_of_memory_says_how_much_was_wanted() -> None:
    double = SimulatedCuda(memory=1000)
    with pytest.raises(DeviceOutOfMemory, match=r"for 2\.0 MB"):
        Cuda(double).allocate(2_000_000)


def test_a_capture_that_the_library_refuses_gives_no_graph_and_leaves_the_stream_usable() -> None:
    double = SimulatedCuda()
    cuda = Cuda(double)
    stream = cuda.stream()

    def refuse() -> None:
        raise BackendUnavailable("not in a capture")

    assert cuda.capture(stream, refuse) is None
    assert cuda.capture(stream, lambda: None) is not None


def test_an_error_of_the_device_during_a_capture_is_not_swallowed() -> None:
    cuda = Cuda(SimulatedCuda())
    stream = cuda.stream()

    def lose() -> None:
        raise DeviceLost("gone")

    with pytest.raises(DeviceLost):
        cuda.capture(stream, lose)
    assert stream.graph is None, "the stream still captures"


def test_what_the_last_call_of_another_library_left_is_raised() -> None:
    double = SimulatedCuda()
    cuda = Cuda(double)
    cuda.probe()
    double.cudaGetLastError = lambda: (ERRORS.cudaErrorIllegalAddress,)  # type: ignore[method-assign]
    with pytest.raises(DeviceLost):
        cuda.probe()
