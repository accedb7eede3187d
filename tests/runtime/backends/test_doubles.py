"""The doubles of TensorRT and CUDA cannot drift: each attribute is one of the real modules, with its value."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from doubles import tensorrt as simulated_tensorrt
from doubles.cuda import SimulatedCuda
from doubles.device import SimulatedMachine
from doubles.tensorrt import SimulatedTensorRT

from clipskip.backends import cuda

runtime = pytest.importorskip("cuda.bindings.runtime")
trt = pytest.importorskip("tensorrt_rtx")

SOURCE = Path(cuda.__file__).parent
STRUCTURES = {
    "Runtime": trt.Runtime,
    "ICudaEngine": trt.ICudaEngine,
    "IRuntimeConfig": trt.IRuntimeConfig,
    "IRuntimeCache": trt.IRuntimeCache,
    "IExecutionContext": trt.IExecutionContext,
    "SimulatedLogger": trt.ILogger,
}


def offered(double: type, base: type = object) -> set[str]:
    """The public names that a class of the doubles adds to its base."""
    return {name for name in vars(double) if not name.startswith("_")} - set(dir(base))


@pytest.mark.parametrize("name", sorted(offered(SimulatedCuda, SimulatedMachine)))
def test_a_name_of_the_cuda_double_is_one_of_the_bindings(name: str) -> None:
    real, double = getattr(runtime, name), getattr(SimulatedCuda, name)
    if isinstance(double, type) and issubclass(double, Enum):
        assert {each.name: each.value for each in double} == {
            each.name: int(getattr(real, each.name)) for each in double
        }
    elif isinstance(double, int):
        assert double == real
    else:
        assert len(inspect.signature(double).parameters) - 1 == arguments(real)


def arguments(function: Any) -> int:
    """How many arguments a function of the bindings takes; its docstring has the signature."""
    head = function.__doc__.splitlines()[0]
    inside = head[head.index("(") + 1 : head.rindex(")")]
    return len([each for each in inside.split(",") if each.strip()])


@pytest.mark.parametrize("name", sorted(offered(SimulatedTensorRT) - {"cuda", "runtimes"}))
def test_a_name_of_the_tensorrt_double_is_one_of_the_package(name: str) -> None:
    real, double = getattr(trt, name), getattr(SimulatedTensorRT, name)
    if isinstance(double, type) and issubclass(double, Enum):
        assert {each.name for each in double} <= set(real.__members__)


@pytest.mark.parametrize("name", sorted(STRUCTURES))
def test_an_object_of_the_tensorrt_double_has_the_attributes_of_the_real_one(name: str) -> None:
    double = getattr(simulated_tensorrt, name)
    assert offered(double) <= set(dir(STRUCTURES[name]))
    for method in offered(double):
        if inspect.isfunction(getattr(double, method)):
            assert len(inspect.signature(getattr(double, method)).parameters) in counts(STRUCTURES[name], method), (
                method
            )


def counts(owner: type, method: str) -> set[int]:
    """Numbers of arguments, self included, that the overloads of a binding's method take."""
    text = getattr(owner, method).__doc__
    heads = [line for line in text.splitlines() if line.lstrip("0123456789. ").startswith(f"{method}(self")]
    assert heads, text
    return {number for head in heads for number in arities(head)}


def arities(head: str) -> set[int]:
    inside = head[head.index("(") + 1 : head.rindex(")")]
    parts = [each for each in inside.split(", ") if ":" in each]
    return set(range(len([each for each in parts if "=" not in each]), len(parts) + 1))


def test_the_settings_of_a_runtime_config_exist() -> None:
    wanted = {"cuda_graph_strategy", "dynamic_shapes_kernel_specialization_strategy"}
    assert wanted <= set(dir(trt.IRuntimeConfig))
    assert wanted <= set(vars(simulated_tensorrt.IRuntimeConfig()))


def test_severities_of_the_logger_are_the_package_s() -> None:
    double = simulated_tensorrt.SimulatedLogger.Severity
    assert {each.name: each.value for each in double} == {
        name: int(value) for name, value in trt.ILogger.Severity.__members__.items()
    }


def test_data_types_have_the_package_s_numpy_types() -> None:
    module = SimulatedTensorRT(SimulatedCuda())
    for name in ("FLOAT", "HALF", "INT32", "INT64", "BOOL", "UINT8"):
        assert module.nptype(module.DataType[name]) == trt.nptype(getattr(trt.DataType, name))


def test_the_double_has_the_version_that_it_was_held_against() -> None:
    assert trt.__version__ == SimulatedTensorRT.__version__


@pytest.mark.parametrize("module", [runtime, SimulatedCuda])
def test_every_sticky_error_is_one_of_cuda_s(module: ModuleType) -> None:
    for name in cuda.STICKY:
        assert hasattr(module.cudaError_t, name), name


def test_our_cuda_code_calls_nothing_that_the_bindings_do_not_have() -> None:
    assert names_after(SOURCE / "cuda.py", "_runtime") <= set(dir(runtime))


def test_our_tensorrt_code_names_nothing_that_the_package_does_not_have() -> None:
    path = SOURCE / "tensorrt.py"
    assert names_after(path, "trt") <= set(dir(trt))


def names_after(path: Path, owner: str) -> set[str]:
    """Attributes that a source file reads from a name or attribute called `owner`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and owner in (
            getattr(node.value, "id", ""),
            getattr(node.value, "attr", ""),
        ):
            found.add(node.attr)
    assert found
    return found


def test_a_device_s_address_ends_a_process_that_reads_it_and_means_nothing_to_another_device() -> None:
    double = SimulatedCuda(devices=2)
    address = cuda.Cuda(double, 0).allocate(16)
    code = f"import ctypes; ctypes.c_uint8.from_address({address}).value"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode != 0
    with pytest.raises(KeyError):
        double.devices[1].view(address, 16)


def test_work_for_a_stream_of_another_device_fails() -> None:
    double = SimulatedCuda(devices=2)
    _, stream = double.cudaStreamCreateWithFlags(1)
    assert double.cudaGraphLaunch((), stream) == (double.cudaError_t.cudaSuccess,)
    double.cudaSetDevice(1)
    assert double.cudaGraphLaunch((), stream) == (double.cudaError_t.cudaErrorInvalidResourceHandle,)
    assert double.cudaSetDevice(2) == (double.cudaError_t.cudaErrorInvalidDevice,)
