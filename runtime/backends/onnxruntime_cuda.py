"""ONNX Runtime's CUDA provider as executions run it: a session for each set of shapes, over weights that all share.

A session knows its shapes (so that it computes no sizes and plans its memory), its stream and its addresses, and we
capture its runs as we do TensorRT's. ONNX Runtime's own capture stays off: it goes by thread, and in CUDA's mode
"global", which an allocation in any other thread spoils.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np

from clipskip.engines.manifest import Artefact, Dim
from clipskip.engines.variants import Changed
from clipskip.engines.weights import loads, table_path
from clipskip.errors import EngineIncompatible

from . import Array
from .cuda import Cuda, Handle
from .execution import Task
from .sessions import SESSION_BYTES, SHRINKS, WEIGHTS_FOLDER, Sessions

Key: TypeAlias = "tuple[str, int, int]"  # SHA-256 of a file, offset, bytes


class Weight:
    """Bytes on the device, for as long as somebody holds this."""

    def __init__(self, cuda: Cuda, nbytes: int) -> None:
        self.address = cuda.allocate(nbytes)
        weakref.finalize(self, cuda.free, self.address).atexit = False


class Weights:
    """Stored tensors on one device: each is there once, for all sessions of all graphs that read it."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._there: weakref.WeakValueDictionary[Key, Weight] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def hold(self, stored: Mapping[Key, Array]) -> dict[Key, Weight]:
        """The weights with these keys; those that are not there yet are uploaded."""
        with self._lock:
            held = {key: self._there.get(key) or Weight(self._cuda, block.size) for key, block in stored.items()}
            fresh = {held[key].address: stored[key] for key in held.keys() - self._there.keys()}
            if fresh:
                self._cuda.upload(fresh)
            self._there.update(held)
            return held


class CudaContexts:
    """The sessions of one graph; one that brings a table of its weights shares them. DeviceOutOfMemory."""

    def __init__(
        self, sessions: Sessions, weights: Weights, artefact: Artefact, path: Path, changed: Mapping[str, Changed]
    ) -> None:
        self._sessions, self._artefact, self._path, self._changed = sessions, artefact, path, changed
        self._shared: dict[str, Any] = {}  # OrtValues of weights on the device
        self._files: dict[str, Array] = {}
        own = artefact.files
        if artefact.variant and table_path(artefact, root := path.parent.parent):
            self._share(weights, root)
            own = artefact.files[:1]
        self.nbytes = (
            SESSION_BYTES + sum(file.size for file in own) + sum(each.array.nbytes for each in changed.values())
        )

    def _share(self, weights: Weights, root: Path) -> None:
        """All stored tensors of floats: what else a graph stores are sizes, which a session wants on the host.

        An initializer must be an OrtValue of memory that is not ONNX Runtime's: any session's binding makes one.
        """
        table = loads((root / self._artefact.files[1].path).read_bytes())
        sha256 = {Path(file.path).name: file.sha256 for file in self._artefact.files}
        for file in self._artefact.files[2:]:
            self._files[Path(file.path).name] = np.memmap(root / file.path, np.uint8, "r")
        keys, stored = {}, {}
        for name, weight in table.items():
            if (new := self._changed.get(name)) is not None:
                keys[name] = key = new.key, 0, weight.nbytes
                stored[key] = new.array.reshape(-1).view(np.uint8)
            elif weight.dtype.startswith("float"):
                keys[name] = key = sha256[weight.file], weight.offset, weight.nbytes
                stored[key] = self._files[weight.file][weight.offset :][: weight.nbytes]
        self._weights = weights.hold(stored)
        binding = self._sessions.smallest().io_binding()
        for name, key in keys.items():
            place = "cuda", self._sessions.device
            what = np.dtype(table[name].dtype).type, table[name].shape
            binding.bind_output("y", *place, *what, self._weights[key].address)
            self._shared[name] = binding.get_outputs()[0]

    def make(self, task: Task, stream: Handle) -> SessionContext:
        """A session that can be captured; where the provider leaves a node to the CPU, one that cannot."""
        told = {"user_compute_stream": str(int(stream))}
        with suppress(EngineIncompatible):
            session = self._session(task, {**told, "enable_cuda_graph": "1"})
            return SessionContext(self._sessions, session, task, self, capturable=True)
        return SessionContext(self._sessions, self._session(task, told), task, self, capturable=False)

    def _session(self, task: Task, told: Mapping[str, str]) -> Any:
        if not self._shared:
            options = self._options(task)
            self._sessions.replace(options, self._changed)
            return self._sessions.open(self._artefact, self._path, options, told)
        graph = self._path.read_bytes()
        with TemporaryDirectory() as folder, suppress(EngineIncompatible):
            for name in self._files:
                (Path(folder) / name).touch()  # for ONNX Runtime looks for them, though it need not read them
            options = self._options(task)
            options.add_session_config_entry(WEIGHTS_FOLDER, folder)
            return self._sessions.open(self._artefact, self._path, options, told, graph)
        options = self._options(task)  # some optimisation changes a weight: it costs the host a copy of all
        files = [*self._files], [*self._files.values()], [block.size for block in self._files.values()]
        options.add_external_initializers_from_files_in_memory(*files)
        self._sessions.replace(options, self._changed)
        return self._sessions.open(self._artefact, self._path, options, told, graph)

    def _options(self, task: Task) -> Any:
        options = self._sessions.options()
        for size in {size for port in self._artefact.inputs for size in port.shape if isinstance(size, Dim)}:
            options.add_free_dimension_override_by_name(str(size), size.size(task.sizes))
        for name, value in self._shared.items():
            options.add_initializer(name, value)
        return options


class SessionContext:
    """A session at fixed shapes, bound to addresses. `weights` are held for as long as it lives.

    An output may lie on the input that it becomes: what reads `state` comes before the node that writes `next_state`,
    for that one sums a stack of it, the network's output and the noise; and all run in one stream.
    """

    in_place = True
    warm_ups = 3  # the second run lays out memory by what the first one used; an older graph's Einsum takes more again

    def __init__(self, sessions: Sessions, inner: Any, task: Task, weights: object, capturable: bool) -> None:
        self._sessions, self._inner, self._task, self._weights = sessions, inner, task, weights
        self._binding, self._capturable = inner.io_binding(), capturable
        told = {
            "disable_synchronize_execution_providers": "1",
            "gpu_graph_id": "-1",
        }  # waits for nothing, captures none
        first = {**told, SHRINKS: f"gpu:{sessions.device}"}  # what is laid out replaces it
        self._options, self._later = sessions.run_options(first), sessions.run_options(told)

    def bind(self, addresses: Mapping[str, int], allocate: Callable[[int], int]) -> None:
        """A session takes its scratch memory itself."""
        ports, binding = self._task.artefact, self._binding
        for side, bind in ((ports.inputs, binding.bind_input), (ports.outputs, binding.bind_output)):
            for port in side:
                what = np.dtype(port.dtype).type, self._task.shapes[port.name], addresses[port.name]
                bind(port.name, "cuda", self._sessions.device, *what)

    def enqueue(self) -> None:
        with self._sessions.running():
            self._inner.run_with_iobinding(self._binding, self._options)
        self._options = self._later

    def warmed_up(self) -> bool:
        return self._capturable
