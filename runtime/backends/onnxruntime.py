"""ONNX Runtime: the CPU by default, other devices by provider; on CUDA the denoising step as a captured graph."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from clipskip.engines import files, gpu
from clipskip.engines.manifest import ROLE, STEP, Artefact
from clipskip.errors import BackendUnavailable, Busy, ClipskipError, DeviceOutOfMemory, EngineIncompatible, RequestError

from . import Array, Loop
from .pool import LentLoop, Pool
from .providers import CPU, devices, load, named, options
from .signature import check_like, check_ports

T = TypeVar("T")
CPU_PIXELS = 512 * 512  # attention needs 1 GB for one guided picture of this size, and batches bring no speed
GPU_PIXELS = 4 * 512 * 512
LOOPS = 8  # of one engine; each has buffers of its own
CAPTURED_LOOPS = 4  # in use or idle: a captured graph keeps its buffers and its scratch memory
NO_GRAPH = -1  # ONNX Runtime's number for a run that is neither captured nor replayed; it keeps 0 for itself
SESSION_BYTES = 16 * 2**20  # what a session of mapped weights takes for itself
TYPES = {"tensor(float)": "float32"} | {f"tensor({name})": name for name in ("int64", "float16", "uint8", "bool")}
WORKER = "onnxruntime-cuda"  # name of the thread that captures graphs
ONE_NODE = (  # y = -x
    b'\x08\n:4\n\r\n\x01x\x12\x01y"\x03Neg:\x00\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)


class OnnxRuntime:
    """Runs exported graphs as they are. `providers` are ONNX Runtime's names, the preferred one first.

    `threads` is the number of threads of one engine (default: as many as this process may use cores). `graphs`: replay
    the denoising step as a CUDA graph, where the provider can. `settings`: ONNX Runtime's own options for the first
    provider, over those of `providers.py`. `device`: which of the provider's devices.
    """

    target = "onnx"

    def __init__(
        self,
        providers: Sequence[str] = (CPU,),
        threads: int | None = None,
        graphs: bool = True,
        settings: Mapping[str, str] | None = None,
        device: int = 0,
    ) -> None:
        provider = named(providers[0])
        try:
            ort = gpu.onnxruntime()
        except (ImportError, OSError) as error:
            absent = isinstance(error, ModuleNotFoundError)
            message = "ONNX Runtime is not installed" if absent else f"ONNX Runtime cannot be loaded ({error})"
            raise files.shortage(error) or BackendUnavailable(message, hint=named(CPU).install) from error
        if provider.plugin and len(providers) > 1:
            raise RequestError(f"{provider.name} takes no provider beside it", field="providers")
        if device and provider.kind == "cpu":
            raise RequestError(f"{provider.target} computes on the CPU, which has no number {device}", field="device")
        load(ort, provider)
        self._ort, self._provider, self._device, self._settings = ort, provider, device, dict(settings or {})
        self._made = tuple(providers), threads, graphs, self._settings, device
        self.providers = tuple(dict.fromkeys((*providers, *provider.below)))
        self.name = provider.target
        may_ask = hasattr(os, "sched_getaffinity")  # not so on Windows
        self.threads = threads or (len(os.sched_getaffinity(0)) if may_ask else os.cpu_count() or 1)
        self.graphs = graphs and provider.graphs is not None and self._settings.get(provider.graphs, "1") == "1"
        self.precision = "fp32" if provider.name == CPU else "fp16"
        self.variants: tuple[str, ...] = ("cpu", "") if provider.name == CPU else ("",)
        self.compiles_per_shape = self.graphs or bool(provider.caches)
        self.loops = CAPTURED_LOOPS if self.graphs else LOOPS
        self.batch_pixels = CPU_PIXELS if provider.kind == "cpu" else GPU_PIXELS

    def __reduce__(self) -> tuple[type[OnnxRuntime], tuple[object, ...]]:
        return OnnxRuntime, self._made  # the library itself cannot be pickled

    def open(self, artefact: Artefact, path: Path) -> OnnxRuntimeEngine:
        """Open the graph. EngineIncompatible; BackendUnavailable where the provider cannot be used after all."""
        if self.graphs and artefact.role == STEP:  # the one that runs in loops
            with suppress(EngineIncompatible):  # ONNX Runtime refuses to capture what it leaves to the CPU in part
                return self._engine(artefact, path, capturing=True)
        return self._engine(artefact, path, capturing=False)

    def describe(self) -> dict[str, str]:
        """Library version and device."""
        return {"backend": self.name, "onnxruntime": self._ort.__version__, "provider": self.providers[0]}

    def check(self) -> None:
        """BackendUnavailable where the provider cannot even open a graph of one node: `clipskip doctor` asks."""
        told = options(self._provider, None, half=True, capturing=False)
        with translated(lambda said: BackendUnavailable(f"{self.providers[0]}: {said}", hint=self._provider.needs)):
            self._opened(ONE_NODE, self._session_options(), told)

    def _engine(self, artefact: Artefact, path: Path, capturing: bool) -> OnnxRuntimeEngine:
        folder = files.own_folder() if self._provider.caches else None
        kept = folder and folder / f"{artefact.files[0].sha256[:32]}.{self._provider.target}"
        told = options(self._provider, kept, artefact.precision == "fp16", capturing)
        session_options = self._session_options()
        if artefact.role.part == "text":
            # All depths read the same weights: without prepacking they stay mapped from one file, and a further depth
            # costs megabytes instead of a copy (measured in LOG.md).
            session_options.add_session_config_entry("session.disable_prepacking", "1")
        with translated(lambda said: self._not_opened(path, said)):
            opened = self._opened(str(path), session_options, told)
        role = opened.get_modelmeta().custom_metadata_map.get(ROLE, "")
        inputs, outputs = (  # whose types are written "tensor(float)"
            {port.name: (TYPES.get(port.type, port.type), len(port.shape)) for port in ports}
            for ports in (opened.get_inputs(), opened.get_outputs())
        )
        check_ports(artefact, path, role, inputs, outputs)
        do = in_turn if self.graphs else direct
        session = Session(opened, do, self._buffer, self._run_options if capturing else None)
        loaded = artefact.files[:1] if self._provider.kind == "cpu" else artefact.files  # the CPU maps the weights
        return OnnxRuntimeEngine(artefact, session, SESSION_BYTES + sum(file.size for file in loaded))

    def _not_opened(self, path: Path, said: str) -> ClipskipError:
        """The graph's fault, or the provider's."""
        try:
            self.check()
        except BackendUnavailable as error:
            return error
        return EngineIncompatible(f"ONNX Runtime cannot open {path.name}: {said}", path=path)

    def _session_options(self) -> Any:
        session_options = self._ort.SessionOptions()
        session_options.intra_op_num_threads = self.threads
        session_options.log_severity_level = 3
        return session_options

    def _opened(self, graph: str | bytes, session_options: Any, told: Mapping[str, str]) -> Any:
        """A session without ONNX Runtime's own fall-back to the CPU, which can come in the middle of a run."""
        arguments: dict[str, Any] = {"enable_fallback": 0}
        told = {**self._provider.place(self._device), **told, **self._settings}
        if self._provider.name in self._ort.get_available_providers():
            below = [(name, named(name).place(self._device)) for name in self.providers[1:]]
            arguments["providers"] = [(self.providers[0], told), *below]
        else:
            present = devices(self._ort, self._provider)
            if not 0 <= self._device < len(present):
                message = f"{self._provider.name} finds {len(present)} GPUs, none with number {self._device}"
                raise BackendUnavailable(message, hint=self._provider.needs)
            session_options.add_provider_for_devices([present[self._device]], told)
        make = partial(self._ort.InferenceSession, graph, session_options, **arguments)
        session = _worker().submit(make).result() if self.graphs else make()
        if (used := session.get_providers()[0]) != self.providers[0]:
            message = f"{self.providers[0]} could not be used: ONNX Runtime fell back to {used}"
            raise BackendUnavailable(message, hint=self._provider.needs)
        return session

    def _buffer(self, array: Array) -> Any:
        """A copy of the array as an OrtValue where the provider computes."""
        kind, vendor = self._provider.kind, self._provider.vendor
        return self._ort.OrtValue.ortvalue_from_numpy(np.array(array, order="C"), kind, self._device, vendor)

    def _run_options(self, graph: int) -> Any:
        run_options = self._ort.RunOptions()
        run_options.add_run_config_entry("gpu_graph_id", str(graph))
        return run_options


@contextmanager
def translated(failure: Callable[[str], ClipskipError]) -> Iterator[None]:
    """ONNX Runtime's own errors as ours: its types all live in one module, but for the bindings' RuntimeError."""
    try:
        yield
    except MemoryError as error:
        raise DeviceOutOfMemory("there is not enough memory for this request", hint="ask for less") from error
    except Exception as error:
        if type(error) is not RuntimeError and type(error).__module__.partition(".")[0] != "onnxruntime":
            raise
        raise files.shortage(error) or failure(str(error).strip()) from error


def direct(work: Callable[..., T], *arguments: object) -> T:
    """Do work with a session, here and now."""
    hint = "where memory may have run out, ask for smaller pictures or fewer at once"
    with translated(lambda said: BackendUnavailable(f"ONNX Runtime failed while it ran a graph: {said}", hint=hint)):
        return work(*arguments)


def in_turn(work: Callable[..., T], *arguments: object) -> T:
    """Do work with a session in the one thread for it, and wait for it."""
    if threading.current_thread().name.startswith(WORKER):  # closing what was forgotten, by the garbage collector
        return direct(work, *arguments)
    return _worker().submit(direct, work, *arguments).result()


@cache
def _worker() -> ThreadPoolExecutor:
    """The one thread of a process, whatever its devices, that works with sessions where CUDA graphs are captured.

    ONNX Runtime keeps captured graphs by thread, and it captures in CUDA's mode "global": as long as that lasts, an
    allocation in any other thread spoils the capture, on whichever device. So a thread for each would be wrong.
    """
    return ThreadPoolExecutor(1, thread_name_prefix=WORKER)


@dataclass(frozen=True)
class Session:
    """An InferenceSession (`inner`) and how work with it is done: `direct`, or `in_turn` where graphs are captured.

    `buffer` makes an OrtValue of an array; `run_options` takes a graph's number, where the session captures.
    """

    inner: Any
    do: Callable[..., Any]
    buffer: Callable[[Array], Any]
    run_options: Callable[[int], Any] | None

    def options(self, graph: int) -> Any:
        """What a run is told: which graph to capture or replay."""
        return self.run_options(graph) if self.run_options else None


class OnnxRuntimeEngine:
    """One session. Loops that are replayed as CUDA graphs are lent and used again; others are made anew each time."""

    def __init__(self, artefact: Artefact, session: Session, nbytes: int) -> None:
        self.artefact, self.nbytes = artefact, nbytes
        self._session: Session | None = session
        self._names = [port.name for port in artefact.outputs]
        self._pool: Pool[OnnxRuntimeLoop] = Pool(CAPTURED_LOOPS, timeout=0)
        self._numbers = count(1)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        session = self._session
        assert session is not None
        results = session.do(session.inner.run, self._names, dict(feeds), session.options(NO_GRAPH))
        return dict(zip(self._names, results, strict=True))

    def loop(self, feeds: Mapping[str, Array], feedback: Mapping[str, str]) -> Loop:
        session = self._session
        assert session is not None
        if session.run_options:
            key = tuple((name, array.shape) for name, array in feeds.items()), tuple(feedback.items())
            with suppress(Busy):  # a picture more than there are graphs for is made without one
                return LentLoop(
                    self, self._pool, key, lambda: OnnxRuntimeLoop(session, feeds, feedback, next(self._numbers)), feeds
                )
        return OnnxRuntimeLoop(session, feeds, feedback)

    def close(self) -> None:
        self._pool.close()
        self._session = None


class OnnxRuntimeLoop:
    """All inputs and outputs bound once on the device, for many runs; with a number, replayed as a CUDA graph.

    After a run an output is copied to the input that it feeds: were the two to swap places, no graph would fit.
    """

    def __init__(
        self, session: Session, feeds: Mapping[str, Array], feedback: Mapping[str, str], graph: int = NO_GRAPH
    ) -> None:
        self._session, self._feedback, self._graph, self._captured = session, dict(feedback), graph, False
        self._options, self._binding = session.options(graph), session.do(session.inner.io_binding)
        self._inputs: dict[str, Any] = {}  # OrtValues
        self._outputs: dict[str, Any] = {}
        session.do(self._bind, feeds)

    def load(self, feeds: Mapping[str, Array]) -> None:
        """New values for some inputs."""
        self._session.do(self._send, feeds)

    def write(self, name: str, slot: int, array: Array) -> None:
        """In place on the CPU; on a device all of the input comes and goes, for an OrtValue has no parts."""

        def put(value: Any) -> None:
            values = value.numpy()
            check_like(values[slot], name, array)
            values[slot] = array
            if values.ctypes.data != value.data_ptr():
                value.update_inplace(values)

        self._session.do(put, self._inputs[name])

    def run(self, feeds: Mapping[str, Array]) -> None:
        self._session.do(self._step, feeds)

    def read(self, name: str, slot: int | None = None) -> Array:
        values = self._session.do(self._inputs[name].numpy)
        return np.array(values if slot is None else values[slot])

    def close(self) -> None:
        if self._captured:
            with suppress(ClipskipError):  # after a failure of the device there is nothing to forget
                self._session.do(self._session.inner.release_captured_graph, self._graph)
        self._captured, self._binding = False, None
        self._inputs.clear()
        self._outputs.clear()

    def _bind(self, feeds: Mapping[str, Array]) -> None:
        for name, array in feeds.items():
            self._inputs[name] = self._session.buffer(array)
            self._binding.bind_ortvalue_input(name, self._inputs[name])
        for name, source in self._feedback.items():
            self._outputs[name] = self._session.buffer(feeds[source])
            self._binding.bind_ortvalue_output(name, self._outputs[name])

    def _send(self, feeds: Mapping[str, Array]) -> None:
        for name, array in feeds.items():
            self._inputs[name].update_inplace(np.ascontiguousarray(array))

    def _step(self, feeds: Mapping[str, Array]) -> None:
        self._send(feeds)
        self._session.inner.run_with_iobinding(self._binding, self._options)
        self._captured = self._graph != NO_GRAPH
        for name, source in self._feedback.items():
            self._inputs[source].update_inplace(self._outputs[name])
