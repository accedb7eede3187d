"""A double of tensorrt_rtx whose "plans" name an ONNX graph, which ONNX Runtime computes when the stream comes to it.

A test holds every attribute against the real module. It is as strict as TensorRT: shapes outside the profile, missing
addresses, too little scratch memory, another current device or two runs of a context at once fail. Knows nothing of
our own code.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from enum import Enum
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from clipskip.backends import Array

from .cuda import SimulatedCuda

VERSION = "1.7.1.116"  # of the package that this is a double of
SCRATCH = 1 << 20
Profile = Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]  # smallest and largest shape of each input
_TYPES = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
    "UINT8": np.uint8,
}
_ONNX = {
    "tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int32)": "INT32", "tensor(int64)": "INT64",
    "tensor(bool)": "BOOL", "tensor(uint8)": "UINT8",
}  # fmt: skip


def plan(onnx: Path, profile: Profile) -> bytes:
    """The bytes of an "engine" that computes the graph at `onnx`."""
    return json.dumps({"version": VERSION, "name": onnx.stem, "onnx": str(onnx), "profile": profile}).encode()


class SimulatedLogger:
    """ILogger."""

    Severity = Enum("Severity", {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2, "INFO": 3, "VERBOSE": 4})

    def log(self, severity: Any, message: str) -> None:
        raise NotImplementedError


class SimulatedTensorRT:
    """Stands for the module tensorrt_rtx on the device `cuda`."""

    __version__ = VERSION
    ILogger = SimulatedLogger
    DataType = Enum("DataType", ["FLOAT", "HALF", "INT32", "INT64", "BOOL", "UINT8"])
    TensorIOMode = Enum("TensorIOMode", {"NONE": 0, "INPUT": 1, "OUTPUT": 2})
    ExecutionContextAllocationStrategy = Enum(
        "ExecutionContextAllocationStrategy", {"STATIC": 0, "ON_PROFILE_CHANGE": 1, "USER_MANAGED": 2}
    )
    CudaGraphStrategy = Enum("CudaGraphStrategy", {"DISABLED": 0, "WHOLE_GRAPH_CAPTURE": 1})
    DynamicShapesKernelSpecializationStrategy = Enum(
        "DynamicShapesKernelSpecializationStrategy", {"LAZY": 0, "EAGER": 1, "NONE": 2}
    )
    ComputeCapability = Enum("ComputeCapability", {"SM75": 75, "SM80": 80, "SM86": 86, "SM89": 89, "SM120": 120})

    def __init__(self, cuda: SimulatedCuda) -> None:
        self.cuda = cuda
        self.runtimes: list[Runtime] = []

    def Runtime(self, logger: SimulatedLogger) -> Runtime:
        self.runtimes.append(Runtime(self, logger))
        return self.runtimes[-1]

    def nptype(self, dtype: Any) -> type:
        return _TYPES[dtype.name]


class Runtime:
    """IRuntime."""

    def __init__(self, trt: SimulatedTensorRT, logger: SimulatedLogger) -> None:
        self.engine_host_code_allowed = False
        self._trt, self._logger, self._device = trt, logger, trt.cuda.current

    def deserialize_cuda_engine(self, data: bytes) -> ICudaEngine | None:
        if self._trt.cuda.current is not self._device:
            self._logger.log(SimulatedLogger.Severity.ERROR, "the runtime was made for another device")
            return None
        try:
            content = json.loads(data)
        except ValueError:
            self._logger.log(SimulatedLogger.Severity.ERROR, "magicTag == kEXPECTED_MAGIC_TAG failed.")
            return None
        return ICudaEngine(self._trt, content, self._logger)


class ICudaEngine:
    """ICudaEngine."""

    def __init__(self, trt: SimulatedTensorRT, content: Mapping[str, Any], logger: SimulatedLogger) -> None:
        self.trt, self.profile, self.logger, self._name = trt, content["profile"], logger, content["name"]
        self.device = trt.cuda.current
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(content["onnx"], options, providers=["CPUExecutionProvider"])
        self.inputs = {each.name: _ONNX[each.type] for each in self.session.get_inputs()}
        self.outputs = {each.name: _ONNX[each.type] for each in self.session.get_outputs()}
        ports = [*self.session.get_inputs(), *self.session.get_outputs()]
        self._shapes = {each.name: tuple(n if isinstance(n, int) else -1 for n in each.shape) for each in ports}

    @property
    def name(self) -> str:
        return str(self._name)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    @property
    def num_io_tensors(self) -> int:
        return len(self.inputs) + len(self.outputs)

    def get_tensor_name(self, index: int) -> str:
        names: list[str] = [*self.inputs, *self.outputs]
        return names[index]

    def get_tensor_mode(self, name: str) -> Any:
        modes = self.trt.TensorIOMode
        return modes.INPUT if name in self.inputs else modes.OUTPUT if name in self.outputs else modes.NONE

    def get_tensor_dtype(self, name: str) -> Any:
        return self.trt.DataType[{**self.inputs, **self.outputs}[name]]

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, config: IRuntimeConfig) -> IExecutionContext:
        return IExecutionContext(self, config)


class IRuntimeConfig:
    """IRuntimeConfig."""

    def __init__(self) -> None:
        self.cuda_graph_strategy: Any = None
        self.dynamic_shapes_kernel_specialization_strategy: Any = None
        self.strategy: Any = None
        self.cache: IRuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self.cache = cache
        return True


class IRuntimeCache:
    """IRuntimeCache: which shapes kernels were compiled for."""

    def __init__(self) -> None:
        self.shapes: list[str] = []

    def serialize(self) -> bytes:
        return json.dumps(self.shapes).encode()

    def deserialize(self, data: bytes) -> bool:
        try:
            self.shapes = list(json.loads(data))
        except ValueError:
            return False
        return True


class IExecutionContext:
    """IExecutionContext."""

    def __init__(self, engine: ICudaEngine, config: IRuntimeConfig) -> None:
        self._engine, self._config = engine, config
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch = (0, 0)
        self._entered = threading.Lock()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, high = self._engine.profile[name]
        if len(shape) != len(low) or any(not a <= size <= b for a, size, b in zip(low, shape, high, strict=True)):
            return self._refuse(f"{name}: {shape} does not satisfy any optimization profiles")
        self._shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        if address % 256:
            return self._refuse(f"{name}: address is not aligned")
        self._addresses[name] = address
        return True

    def update_device_memory_size_for_shapes(self) -> int:
        return SCRATCH if self._shapes.keys() == self._engine.inputs.keys() else -1

    def set_device_memory(self, address: int, size: int) -> None:
        self._scratch = (address, size)

    def is_stream_capturable(self, stream: int) -> bool:
        return True

    def execute_async_v3(self, stream: int) -> bool:
        cuda, engine = self._engine.trt.cuda, self._engine
        into = cuda.stream_of(stream)
        if not (cuda.current is into.device is engine.device):
            return self._refuse("the engine, its stream and the current device are not of one GPU")
        if self._addresses.keys() != {**engine.inputs, **engine.outputs}.keys() or self._scratch[1] < SCRATCH:
            return self._refuse("an address or the scratch memory is missing")
        if not self._entered.acquire(blocking=False):
            return self._refuse("two threads in one context")
        try:
            engine.device.note("run" if into.graph is None else "captured run")
            self._compile()
            engine.device.enqueue(into, self._compute)
            return True
        finally:
            self._entered.release()

    def _compile(self) -> None:
        """As RTX does at the first run with new shapes: what it compiled goes into the cache."""
        cache = self._config.cache
        if cache is not None and (shapes := str(sorted(self._shapes.items()))) not in cache.shapes:
            cache.shapes.append(shapes)

    def _compute(self) -> None:
        """What the device does: read all inputs, compute, write all outputs."""
        engine, device = self._engine, self._engine.device
        if not self._entered.acquire(blocking=False):
            device.fail()
            return
        try:
            time.sleep(device.faults.seconds)
            device.view(*self._scratch)
            feeds = {name: self._array(name, kind, self._shapes[name]) for name, kind in engine.inputs.items()}
            results = engine.session.run(list(engine.outputs), feeds)
            spoil = device.faults.due("nan")
            if device.faults.due("sticky"):
                device.fail()
            for (name, kind), result in zip(engine.outputs.items(), results, strict=True):
                floating = kind in ("FLOAT", "HALF")
                self._array(name, kind, result.shape)[...] = np.nan if spoil and floating else result
        finally:
            self._entered.release()

    def _array(self, name: str, kind: str, shape: tuple[int, ...]) -> Array:
        size = prod(shape) * np.dtype(_TYPES[kind]).itemsize
        view = self._engine.device.view(self._addresses[name], size)
        return view.view(_TYPES[kind]).reshape(shape)

    def _refuse(self, why: str) -> bool:
        self._engine.logger.log(SimulatedLogger.Severity.ERROR, why)
        return False
