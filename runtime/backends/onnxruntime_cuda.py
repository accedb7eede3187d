"""ONNX Runtime's CUDA provider as executions run it: a session for each set of shapes, over weights that all share.

A session knows its shapes (so that it computes no sizes and plans its memory), its stream and its addresses, and we
capture its runs as we do TensorRT's. ONNX Runtime's own capture stays off: it goes by thread, and in CUDA's mode
"global", which an allocation in any other thread spoils.
"""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from clipskip.engines.files import readable_size
from clipskip.engines.manifest import Artefact, Dim, Port
from clipskip.engines.shapes import Shape
from clipskip.errors import BackendUnavailable, ClipskipError, DeviceOutOfMemory, EngineIncompatible

from . import Array
from .cuda import Cuda, Handle
from .device import Device, DeviceEngine
from .execution import Task
from .sessions import Sessions, not_run, translated

SESSION_BYTES = 16 * 2**20  # what a session takes for itself, over weights that it shares
Key: TypeAlias = "tuple[str, int, int]"  # SHA-256 of a file, offset, bytes
LITTLE = 2**30  # bytes: where less is free, a failure may well be for lack of memory


class Row(NamedTuple):
    """Where a weight is stored: a line of the table that a form brings, for the runtime cannot read graphs."""

    file: str
    offset: int
    nbytes: int
    dtype: str
    shape: list[int]


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


class CudaSessions:
    """Opens artefacts on one GPU."""

    def __init__(self, sessions: Sessions, device: Device) -> None:
        self.sessions, self.device, self.weights = sessions, device, Weights(device.cuda)
        self._naming = threading.Lock()

    def open(self, artefact: Artefact, path: Path) -> DeviceEngine:
        """Open the graph; one that brings a table of its weights shares them. DeviceOutOfMemory."""
        self.device.cuda.check()
        try:
            contexts = CudaContexts(self, artefact, path)
        except DeviceOutOfMemory:
            if not self.device.relieve():
                raise
            contexts = CudaContexts(self, artefact, path)
        own = artefact.files[:1] if contexts.shared else artefact.files
        return DeviceEngine(self.device, artefact, contexts, SESSION_BYTES + sum(file.size for file in own))

    def value(self, row: Row, address: int) -> Any:
        """An OrtValue of memory that is ours: initializers must be such. Any session's binding makes one."""
        with self._naming:
            self._binding.bind_output("y", "cuda", self.sessions.device, np.dtype(row.dtype).type, row.shape, address)
            return self._binding.get_outputs()[0]

    @cached_property
    def _binding(self) -> Any:
        return self.sessions.smallest().io_binding()

    def failed(self, said: str) -> ClipskipError:
        """The error for a run that failed."""
        return self.lack(said) or not_run(said)

    def lack(self, said: str) -> ClipskipError | None:
        """Why ONNX Runtime failed, if it is not to blame: CUDA's own error, or next to no memory."""
        self.device.cuda.probe()
        if (free := self.device.cuda.free_memory()) >= LITTLE:
            return None
        message = f"ONNX Runtime failed where {readable_size(free)} of GPU memory are free: {said}"
        return DeviceOutOfMemory(message, hint="smaller pictures, fewer at once, or fewer threads")


class CudaContexts:
    """The sessions of one graph."""

    def __init__(self, owner: CudaSessions, artefact: Artefact, path: Path) -> None:
        self._owner, self._artefact, self._path = owner, artefact, path
        self.shared: dict[str, Any] = {}  # OrtValues of weights on the device
        self._files: dict[str, Array] = {}
        if [Path(file.path).suffix for file in artefact.files[1:2]] == [".json"]:
            self._share(path.parent.parent)

    def _share(self, root: Path) -> None:
        """All stored tensors of floats: what else a graph stores are sizes, which stay inside it."""
        table = json.loads((root / self._artefact.files[1].path).read_bytes())
        rows = {name: Row(*row) for name, row in table.items() if Row(*row).dtype.startswith("float")}
        stored = {Path(file.path).name: file for file in self._artefact.files[2:]}
        self._files = {name: np.memmap(root / file.path, np.uint8, "r") for name, file in stored.items()}
        keys = {name: (stored[row.file].sha256, row.offset, row.nbytes) for name, row in rows.items()}
        parts = {keys[name]: self._files[row.file][row.offset :][: row.nbytes] for name, row in rows.items()}
        self._weights = self._owner.weights.hold(parts)
        self.shared = {name: self._owner.value(row, self._weights[keys[name]].address) for name, row in rows.items()}

    def make(self, task: Task, stream: Handle) -> SessionContext:
        """A session that can be captured; where the provider leaves a node to the CPU, one that cannot."""
        told = {"user_compute_stream": str(int(stream))}
        if self._owner.device.settings.graphs:
            with suppress(EngineIncompatible):
                session = self._session(task, {**told, "enable_cuda_graph": "1"})
                return SessionContext(self._owner, session, self, capturable=True)
        return SessionContext(self._owner, self._session(task, told), self, capturable=False)

    def warmed_up(self) -> None:
        """Nothing is kept of what a session compiles."""

    def _session(self, task: Task, told: Mapping[str, str]) -> Any:
        if not self.shared:
            return self._opened(self._options(task), told)
        with TemporaryDirectory() as folder, suppress(EngineIncompatible):
            for name in self._files:
                (Path(folder) / name).touch()  # for ONNX Runtime looks for them, though it need not read them
            session_options = self._options(task)
            session_options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
            return self._opened(session_options, told, self._path.read_bytes())
        session_options = self._options(task)  # some optimisation changes a weight: it costs the host a copy of all
        files = [*self._files], [*self._files.values()], [block.size for block in self._files.values()]
        session_options.add_external_initializers_from_files_in_memory(*files)
        return self._opened(session_options, told, self._path.read_bytes())

    def _options(self, task: Task) -> Any:
        session_options = self._owner.sessions.options()
        sizes = {size for port in self._artefact.inputs for size in port.shape if isinstance(size, Dim)}
        for size in sizes:
            session_options.add_free_dimension_override_by_name(str(size), size.size(task.sizes))
        for name, value in self.shared.items():
            session_options.add_initializer(name, value)
        return session_options

    def _opened(self, session_options: Any, told: Mapping[str, str], graph: bytes | None = None) -> Any:
        try:
            return self._owner.sessions.open(self._artefact, self._path, session_options, told, graph)
        except (EngineIncompatible, BackendUnavailable) as error:
            raise self._owner.lack(error.message) or error from error


class SessionContext:
    """A session at fixed shapes, bound to addresses. `weights` are held for as long as it lives.

    An output may lie on the input that it becomes: what reads `state` comes before the node that writes `next_state`,
    for that one sums a stack of it, the network's output and the noise; and all run in one stream.
    """

    in_place, warm_ups = True, 3  # the second run lays out memory by what the first one used; Einsum takes more again

    def __init__(self, owner: CudaSessions, session: Any, weights: object, capturable: bool) -> None:
        self._owner, self._session, self._weights, self._capturable = owner, session, weights, capturable
        self._binding = session.io_binding()
        first = {"memory.enable_memory_arena_shrinkage": f"gpu:{owner.sessions.device}"}  # what is laid out replaces it
        self._options, self._later = self._run_options(first), self._run_options({})

    def bind_input(self, port: Port, shape: Shape, address: int) -> None:
        place = "cuda", self._owner.sessions.device, np.dtype(port.dtype).type
        self._binding.bind_input(port.name, *place, shape, address)

    def bind_output(self, port: Port, shape: Shape, address: int) -> None:
        place = "cuda", self._owner.sessions.device, np.dtype(port.dtype).type
        self._binding.bind_output(port.name, *place, shape, address)

    def finish(self, allocate: Callable[[int], int]) -> None:
        """A session has its scratch memory from its own allocator."""

    def enqueue(self) -> None:
        with translated(self._owner.failed):
            self._session.run_with_iobinding(self._binding, self._options)
        self._options = self._later

    def capturable(self) -> bool:
        return self._capturable

    def _run_options(self, entries: Mapping[str, str]) -> Any:
        """Nothing is waited for, and no graph captured by ONNX Runtime itself (-1)."""
        run_options = self._owner.sessions.ort.RunOptions()
        told = {"disable_synchronize_execution_providers": "1", "gpu_graph_id": "-1", **entries}
        for name, value in told.items():
            run_options.add_run_config_entry(name, value)
        return run_options
