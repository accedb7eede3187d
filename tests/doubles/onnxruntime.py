"""A double of the onnxruntime package with an NVIDIA GPU: computes on the CPU, and is as strict as CUDA graphs are.

`test_onnxruntime.py` holds what it offers against the real package.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, RunOptions, SessionOptions

from clipskip.backends.providers import CPU, CUDA, TENSORRT


class SimulatedOnnxRuntime:
    """Stands for the module onnxruntime. `sessions` are those opened so far; the other attributes are faults."""

    __version__ = onnxruntime.__version__
    RunOptions = RunOptions

    def __init__(self, available: Sequence[str] = (TENSORRT, CUDA, CPU), devices: int = 1) -> None:
        self.available = list(available)
        self.sessions: list[SimulatedSession] = []
        self.plugins: dict[str, str] = {}
        self.preloaded = 0
        self.refuses_capture = False
        self.falls_back = False
        self.devices = devices
        self.OrtValue = SimpleNamespace(ortvalue_from_numpy=SimulatedValue)
        self.SessionOptions = SimulatedSessionOptions

    def get_available_providers(self) -> list[str]:
        return self.available

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

    def InferenceSession(self, path: str, options: Any, **arguments: Any) -> SimulatedSession:
        assert arguments.pop("enable_fallback") == 0
        self.sessions.append(SimulatedSession(self, path, options, **arguments))
        return self.sessions[-1]


class SimulatedSessionOptions(SessionOptions):
    """SessionOptions that a provider from a plugin can be added to."""

    def add_provider_for_devices(self, devices: Sequence[Any], told: Mapping[str, str]) -> None:
        self.plugin = devices[0].ep_name, {**told, "device_id": str(devices[0].number)}


class SimulatedValue:
    """An OrtValue on the GPU: its memory has an address, and the host only sees copies."""

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


class SimulatedBinding:
    """An IOBinding."""

    def __init__(self) -> None:
        self.inputs: dict[str, SimulatedValue] = {}
        self.outputs: dict[str, SimulatedValue] = {}

    def bind_ortvalue_input(self, name: str, value: SimulatedValue) -> None:
        self.inputs[name] = value

    def bind_ortvalue_output(self, name: str, value: SimulatedValue) -> None:
        self.outputs[name] = value

    def addresses(self) -> dict[str, int]:
        return {name: value.data_ptr() for name, value in {**self.inputs, **self.outputs}.items()}


class SimulatedSession:
    """An InferenceSession. A graph that was captured can only be replayed on the addresses it was captured on."""

    def __init__(self, ort: SimulatedOnnxRuntime, path: str, options: Any, providers: Sequence[Any] = ()) -> None:
        pairs = [each if isinstance(each, tuple) else (each, {}) for each in providers] or [options.plugin]
        self.names = [name for name, _ in pairs]
        self.told: Mapping[str, str] = pairs[0][1]
        self.devices = {int(told["device_id"]) for name, told in pairs if name != CPU}
        if not self.devices <= set(range(ort.devices)):
            raise Fail("invalid device ordinal")
        self.capturing = self.names[0] == CUDA and self.told.get("enable_cuda_graph") == "1"
        for name, value in self.told.items():
            if name.startswith("trt_") and name.endswith("_enable") and value not in ("True", "False"):
                raise RuntimeError(f"[ERROR] [TensorRT] {name} {value}")  # as 1.31.1 does
        if self.capturing and ort.refuses_capture:
            raise Fail("not all compute graph nodes have been partitioned to the provider")
        if ort.falls_back:
            self.names = [CPU]
        self.graphs: dict[tuple[int, int], dict[str, int]] = {}  # by thread and number, as ONNX Runtime keeps them
        self.replays = 0
        self.opened_in = threading.get_ident()
        self.fails = False
        self._busy = threading.Lock()
        options.intra_op_num_threads = 1
        self._inner = onnxruntime.InferenceSession(path, options, providers=[CPU])

    def __getattr__(self, name: str) -> Any:
        assert name in ("get_inputs", "get_outputs", "get_modelmeta")
        return getattr(self._inner, name)

    def get_providers(self) -> list[str]:
        return [*self.names, CPU]

    def io_binding(self) -> SimulatedBinding:
        return SimulatedBinding()

    def run(self, names: Sequence[str], feeds: Mapping[str, np.ndarray], options: Any = None) -> list[np.ndarray]:
        assert self._number(options) in (None, -1), "a run with arrays from the host cannot be captured"
        return self._compute(names, feeds)

    def run_with_iobinding(self, binding: SimulatedBinding, options: Any = None) -> None:
        number = self._number(options)
        if number is not None and number >= 0:
            assert number > 0, "ONNX Runtime keeps 0 for itself"
            key = threading.get_ident(), number
            self.replays += key in self.graphs
            assert self.graphs.setdefault(key, binding.addresses()) == binding.addresses()
        values = (*binding.inputs.values(), *binding.outputs.values())
        assert {value.device for value in values} == self.devices, "buffers of another device"
        feeds = {name: value.memory for name, value in binding.inputs.items()}
        for value, result in zip(binding.outputs.values(), self._compute(list(binding.outputs), feeds), strict=True):
            value.memory[...] = result

    def release_captured_graph(self, number: int) -> None:
        del self.graphs[threading.get_ident(), number]

    def _number(self, options: Any) -> int | None:
        if not self.capturing:
            assert options is None
            return None
        return int(options.get_run_config_entry("gpu_graph_id"))

    def _compute(self, names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        assert self._busy.acquire(blocking=not self.capturing), "two runs at once"
        try:
            if self.fails:
                raise Fail("out of device memory, or whatever")
            return self._inner.run(list(names), dict(feeds))
        finally:
            self._busy.release()
