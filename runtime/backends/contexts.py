"""How an execution context is made: TensorRT and TensorRT-RTX differ in this and in nothing else that we use.

In both the scratch memory is ours, sized for the shapes in use, so that no run allocates. Knows nothing of buffers.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any, Protocol


class Contexts(Protocol):
    """The contexts of one engine."""

    def make(self) -> Any:
        """A new context, or None when TensorRT refuses."""

    def capturable(self, context: Any, stream: int) -> bool:
        """Whether TensorRT lets a run of the context be captured in this stream."""

    def warmed_up(self) -> None:
        """Some context has run at new shapes."""


class PlainContexts:
    """TensorRT: everything was compiled when the engine was built."""

    def __init__(self, trt: Any, engine: Any, cache: Path) -> None:
        self._engine, self._strategy = engine, trt.ExecutionContextAllocationStrategy.USER_MANAGED

    def make(self) -> Any:
        return self._engine.create_execution_context(self._strategy)

    def capturable(self, context: Any, stream: int) -> bool:
        """TensorRT has no way to ask; the capture itself will tell."""
        return True

    def warmed_up(self) -> None:
        """Nothing to keep."""


class RtxContexts:
    """TensorRT-RTX compiles kernels when it first runs at a shape; the file `cache` keeps them for the next process.

    Kernels are specialised at once (EAGER), not in the background: a captured graph would keep the slow ones, and a
    picture would depend on when they were swapped. RTX's own graph capture stays off, for ours includes the copy that
    makes a step's output the next step's input.
    """

    def __init__(self, trt: Any, engine: Any, cache: Path) -> None:
        self._path, self._saving = cache, Lock()
        self._config = engine.create_runtime_config()
        self._config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        self._config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
        strategies = trt.DynamicShapesKernelSpecializationStrategy
        self._config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        self._cache = self._config.create_runtime_cache()
        self._saved = self._load()
        self._config.set_runtime_cache(self._cache)
        self._engine = engine  # last, for attributes die in the order in which they came, and an engine goes last

    def make(self) -> Any:
        return self._engine.create_execution_context(self._config)

    def capturable(self, context: Any, stream: int) -> bool:
        return bool(context.is_stream_capturable(stream))

    def warmed_up(self) -> None:
        """Keep what was compiled, in one step; a store that cannot be written to goes without."""
        with self._saving:
            data = bytes(self._cache.serialize())
            if data == self._saved:
                return
            self._saved = data
            draft = self._path.with_name(f".{self._path.name}.{os.getpid()}")
            with suppress(OSError):
                draft.write_bytes(data)
                draft.replace(self._path)

    def _load(self) -> bytes:
        data = b""
        with suppress(OSError):
            data = self._path.read_bytes()
            if data and not self._cache.deserialize(data):  # damaged, or another driver's
                data = b""
                self._path.unlink()
        return data


KINDS: dict[str, Callable[[Any, Any, Path], Contexts]] = {"tensorrt": PlainContexts, "tensorrt-rtx": RtxContexts}
