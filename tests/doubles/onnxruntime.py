"""A double of the onnxruntime package with NVIDIA GPUs: computes on the CPU, and is as strict as CUDA is.

Sessions of the CUDA provider put work into a stream of the double of CUDA, over addresses of its devices; those of
other providers compute at once. `test_onnxruntime.py` holds what it offers against the real package.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from math import prod
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, RunOptions, SessionOptions

from clipskip.backends.providers import CPU, CUDA, TENSORRT

from .cuda import SimulatedCuda
from .device import SimulatedDevice

SCRATCH = 1 << 16
PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"


class SimulatedOnnxRuntime:
    """Stands for the module onnxruntime. `sessions` are those opened so far; the other attributes are faults.

    `cuda` stands for cuda.bindings.runtime, with as many devices.
    """

    __version__ = onnxruntime.__version__
    RunOptions = RunOptions

    def __init__(self, available: Sequence[str] = (TENSORRT, CUDA, CPU), devices: int = 1) -> None:
        self.available = list(available)
        self.cuda = SimulatedCuda(devices=devices)
        self.sessions: list[SimulatedSession] = []
        self.plugins: dict[str, str] = {}
        self.preloaded = 0
        self.refuses_capture = False
        self.falls_back = False
        self.reads_weights = False
        self.fails_to_open = False
        self.devices = devices
        self.OrtValue = SimpleNamespace(ortvalue_from_numpy=SimulatedValue)

    def installed(self, patch: pytest.MonkeyPatch) -> SimulatedOnnxRuntime:
        """In place of the packages, as long as the patch lasts."""
        patch.setitem(sys.modules, "onnxruntime", self)
        patch.setitem(sys.modules, "cuda.bindings.runtime", self.cuda)
        patch.setitem(sys.modules, PLUGIN, SimpleNamespace(get_library_path=lambda: "plugin.so"))
        return self

    def get_available_providers(self) -> list[str]:
        return self.available

    def set_default_logger_severity(self, severity: int) -> None:
        assert severity == 3, "errors"

    def preload_dlls(self) -> None:
        print("what it does not find")
        self.preloaded += 1

    def register_execution_provider_library(self, name: str, path: str) -> None:
        if name in self.plugins or path == "missing":
            raise Fail(f"{path} cannot be loaded")
        self.plugins[name] = path

    def get_ep_devices(self) -> list[Any]:
        found = [SimpleNamespace(ep_name=name, number=i) for name in self.plugins for i in range(self.devices)]
        return [SimpleNamespace(ep_name=CPU), *found]

    def SessionOptions(self) -> SimulatedSessionOptions:
        return SimulatedSessionOptions(self.cuda)

    def InferenceSession(self, graph: str | bytes, options: Any, **arguments: Any) -> SimulatedSession:
        assert arguments.pop("enable_fallback") == 0
        self.sessions.append(SimulatedSession(self, graph, options, **arguments))
        return self.sessions[-1]


class SimulatedSessionOptions(SessionOptions):
    """SessionOptions that a provider from a plugin can be added to, and device values as initializers."""

    def __init__(self, cuda: SimulatedCuda) -> None:
        super().__init__()
        self.cuda, self.initializers, self.overrides = cuda, dict[str, SimulatedMemory](), dict[str, int]()
        self.folder, self.external = "", set[str]()

    def add_external_initializers(self, names: list[str], values: list[Any]) -> None:
        super().add_external_initializers(names, values)  # which refuses a name that is there
        self.external |= set(names)

    def add_provider_for_devices(self, devices: Sequence[Any], told: Mapping[str, str]) -> None:
        self.plugin = devices[0].ep_name, {**told, "device_id": str(devices[0].number)}

    def add_free_dimension_override_by_name(self, name: str, size: int) -> None:
        self.overrides[name] = size  # the CPU provider would compute a little else with it

    def add_initializer(self, name: str, value: SimulatedMemory) -> None:
        if not isinstance(value, SimulatedMemory):
            raise RuntimeError("Buffer containing the initializer must be owned by the user.")  # as 1.31.1 does
        self.initializers[name] = value

    def add_session_config_entry(self, key: str, value: str) -> None:
        super().add_session_config_entry(key, value)
        if key == "session.model_external_initializers_file_folder_path":
            self.folder = value

    def fill(self) -> None:
        """The CPU provider reads weights where CUDA's does not: give it those that are on the device."""
        there = {name: value for name, value in self.initializers.items() if name not in self.external}
        values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value.array()) for name, value in there.items()}
        self.add_external_initializers(list(values), list(values.values()))


class SimulatedValue:
    """An OrtValue on the GPU: its memory has an address, and the host only sees copies."""

    def __new__(cls, array: np.ndarray, device: str = "cpu", *rest: int) -> Any:
        return super().__new__(cls) if device != "cpu" else onnxruntime.OrtValue.ortvalue_from_numpy(array)

    def __init__(self, array: np.ndarray, device: str, number: int, vendor: int = -1) -> None:
        assert (device, vendor) in (("cuda", -1), ("gpu", 0x10DE))
        self.device = number
        self.memory = array.copy()

    def data_ptr(self) -> int:
        return int(self.memory.ctypes.data)

    def update_inplace(self, data: np.ndarray | SimulatedValue) -> None:
        array = data.memory if isinstance(data, SimulatedValue) else data
        assert (array.shape, array.dtype) == (self.memory.shape, self.memory.dtype)
        self.memory[...] = array

    def numpy(self) -> np.ndarray:
        return self.memory.copy()


class SimulatedMemory:
    """An OrtValue of memory on a device that somebody else owns."""

    def __init__(self, device: SimulatedDevice, dtype: Any, shape: Sequence[int], address: int) -> None:
        self._device, self._dtype, self._shape, self._address = device, np.dtype(dtype), tuple(shape), address

    def data_ptr(self) -> int:
        return self._address

    def shape(self) -> list[int]:
        return list(self._shape)

    def array(self) -> np.ndarray:
        """The device's own bytes; KeyError where they are not allocated."""
        size = prod(self._shape) * self._dtype.itemsize
        return self._device.view(self._address, size).view(self._dtype).reshape(self._shape)


class SimulatedBinding:
    """An IOBinding."""

    def __init__(self, cuda: SimulatedCuda) -> None:
        self._cuda = cuda
        self.inputs: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}

    def bind_ortvalue_input(self, name: str, value: SimulatedValue) -> None:
        self.inputs[name] = value

    def bind_ortvalue_output(self, name: str, value: SimulatedValue) -> None:
        self.outputs[name] = value

    def bind_input(self, name: str, kind: str, device: int, dtype: Any, shape: Sequence[int], address: int) -> None:
        assert kind == "cuda"
        self.inputs[name] = SimulatedMemory(self._cuda.devices[device], dtype, shape, address)

    def bind_output(self, name: str, kind: str, device: int, dtype: Any, shape: Sequence[int], address: int) -> None:
        assert kind == "cuda"
        self.outputs[name] = SimulatedMemory(self._cuda.devices[device], dtype, shape, address)

    def get_outputs(self) -> list[Any]:
        return list(self.outputs.values())


class SimulatedSession:
    """An InferenceSession. One of the CUDA provider allocates until its third run, and then can be captured."""

    def __init__(self, ort: SimulatedOnnxRuntime, graph: Any, options: Any, providers: Sequence[Any] = ()) -> None:
        pairs = [each if isinstance(each, tuple) else (each, {}) for each in providers] or [options.plugin]
        self.names = [name for name, _ in pairs]
        self.told: Mapping[str, str] = pairs[0][1]
        self.devices = {int(told["device_id"]) for name, told in pairs if name != CPU}
        if not self.devices <= set(range(ort.devices)):
            raise Fail("invalid device ordinal")
        for name, value in self.told.items():
            if name.startswith("trt_") and name.endswith("_enable") and value not in ("True", "False"):
                raise RuntimeError(f"[ERROR] [TensorRT] {name} {value}")  # as 1.31.1 does
        if self.told.get("enable_cuda_graph") == "1" and ort.refuses_capture:
            raise Fail("not all compute graph nodes have been partitioned to the provider")
        if ort.fails_to_open:
            raise Fail("Failed to allocate memory for requested buffer of size 42")
        if ort.falls_back:
            self.names = [CPU]
        if ort.reads_weights and options.folder:
            raise Fail("External initializer: size to read: 8192 given file_length: 0 are out of bounds")
        if options.initializers:
            options.fill()
        self._cuda, self._stream = ort.cuda, None
        if handle := self.told.get("user_compute_stream"):
            self._stream = ort.cuda.stream_of(handle)
            assert {self._stream.device.index} == self.devices, "a stream of another device"
        self.initializers, self.overrides = options.initializers, options.overrides
        self.runs = 0
        # an exported graph has its channels first: "CUDNN_FE failure 8: HEURISTIC_QUERY_FAILED", as on an H100
        exported = isinstance(graph, str) and not graph.endswith("-cuda.onnx")
        self.fails = exported and self.told.get("fuse_conv_bias") == "1"
        self._busy = threading.Lock()
        options.intra_op_num_threads = 1
        self._inner = onnxruntime.InferenceSession(graph, options, providers=[CPU])

    def __getattr__(self, name: str) -> Any:
        assert name in ("get_inputs", "get_outputs", "get_modelmeta")
        return getattr(self._inner, name)

    def get_providers(self) -> list[str]:
        return [*self.names, CPU]

    def io_binding(self) -> SimulatedBinding:
        return SimulatedBinding(self._cuda)

    def run(self, names: Sequence[str], feeds: Mapping[str, np.ndarray], options: Any = None) -> list[np.ndarray]:
        assert self._stream is None, "arrays from the host are copied and waited for"
        return self._compute(names, feeds)

    def run_with_iobinding(self, binding: SimulatedBinding, options: Any = None) -> None:
        if self._stream is not None:
            self._enqueue(binding, options)
            return
        values = (*binding.inputs.values(), *binding.outputs.values())
        assert {value.device for value in values} == self.devices, "buffers of another device"
        feeds = {name: value.memory for name, value in binding.inputs.items()}
        for value, result in zip(binding.outputs.values(), self._compute(list(binding.outputs), feeds), strict=True):
            value.memory[...] = result

    def _enqueue(self, binding: SimulatedBinding, options: Any) -> None:
        stream = self._stream
        assert options.get_run_config_entry("gpu_graph_id") == "-1", "ONNX Runtime would capture, in its own way"
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1", "it would wait"
        for port in self._inner.get_inputs():
            sizes = [self.overrides.get(size, size) for size in port.shape]
            assert sizes == binding.inputs[port.name].shape(), port.name
        if self.fails:
            raise Fail("out of device memory, or whatever")
        device, self.runs = stream.device, self.runs + 1
        device.note("run" if stream.graph is None else "captured run")
        if self.runs < 3:
            if stream.graph is not None:
                raise Fail("operation not permitted when stream is capturing")
            device.note("malloc", SCRATCH)

        def work() -> None:
            time.sleep(device.faults.seconds)
            for value in self.initializers.values():
                value.array()  # whose memory must still be there
            feeds = {name: value.array() for name, value in binding.inputs.items()}
            results = self._compute(list(binding.outputs), feeds)
            if device.faults.due("sticky"):
                device.fail()
            for value, result in zip(binding.outputs.values(), results, strict=True):
                value.array()[...] = result

        device.enqueue(stream, work)

    def _compute(self, names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        assert self._busy.acquire(blocking=self._stream is None), "two runs of one session at once"
        try:
            if self.fails:
                raise Fail("out of device memory, or whatever")
            return self._inner.run(list(names), dict(feeds))
        finally:
            self._busy.release()
