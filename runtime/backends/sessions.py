"""Sessions of ONNX Runtime with one provider on one device: how they are opened, and its errors as ours.

Knows nothing of loops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from clipskip.engines import files
from clipskip.engines.manifest import ROLE, Artefact
from clipskip.engines.variants import Changed
from clipskip.errors import BackendUnavailable, ClipskipError, DeviceOutOfMemory, EngineIncompatible

from . import Array
from .cuda import Cuda
from .providers import CPU, Provider, devices, named, options
from .signature import check_ports

SESSION_BYTES = 16 * 2**20  # what a session takes for itself, over weights that are mapped or shared
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"  # of a graph that is given as bytes
SHRINKS = "memory.enable_memory_arena_shrinkage"  # of a run: what it took is given back after it
LITTLE = 2**30  # bytes: where less is free on a GPU, a failure may well be for lack of memory
SAID = 400  # letters of either end of what it says: cuDNN's complaints are pages long
TYPES = {"tensor(float)": "float32"} | {f"tensor({name})": name for name in ("int64", "float16", "uint8", "bool")}
# A verified graph with checked inputs fails on the CPU for want of memory alone. ONNX Runtime has no type for that: the
# arena's failure is a Fail, the system's a RuntimeException, and either of them a RuntimeError where inputs are bound.
WITHOUT_MEMORY = ("Fail", "RuntimeException", "RuntimeError")
ONE_NODE = (  # y = -x
    b'\x08\n:4\n\r\n\x01x\x12\x01y"\x03Neg:\x00\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)


class Sessions:
    """`ort` is the package; `providers` its names, the preferred one first; `settings` its options for that one.

    `cuda`: the GPU, where errors may be CUDA's.
    """

    def __init__(
        self, ort: Any, providers: Sequence[str], device: int, threads: int, settings: Mapping[str, str]
    ) -> None:
        self.ort, self.providers, self.device = ort, tuple(providers), device
        self.provider: Provider = named(providers[0])
        self._threads, self._settings = threads, settings
        self.cuda: Cuda | None = None

    def options(self) -> Any:
        """SessionOptions, to be completed."""
        session_options = self.ort.SessionOptions()
        session_options.intra_op_num_threads = self._threads
        session_options.log_severity_level = 4  # what fails is raised as well
        return session_options

    def open(
        self, artefact: Artefact, path: Path, session_options: Any, told: Mapping[str, str], graph: bytes | None = None
    ) -> Any:
        """A session of the graph at `path`, or of its bytes; `told` is what the provider is told beside the usual.

        EngineIncompatible; BackendUnavailable where the provider cannot be used after all.
        """
        folder = files.own_folder() if self.provider.caches else None
        kept = folder and folder / f"{artefact.files[0].sha256[:32]}.{self.provider.target}"
        told = {**options(self.provider, kept, artefact.precision == "fp16", bool(artefact.variant)), **told}
        with translated(lambda said: self._not_opened(path, said)):
            session = self._opened(graph or str(path), session_options, told)
        role = session.get_modelmeta().custom_metadata_map.get(ROLE, "")
        inputs, outputs = (  # whose types are written "tensor(float)"
            {port.name: (TYPES.get(port.type, port.type), len(port.shape)) for port in ports}
            for ports in (session.get_inputs(), session.get_outputs())
        )
        check_ports(artefact, path, role, inputs, outputs)
        return session

    def graph(self, artefact: Artefact, path: Path, session_options: Any) -> Any:
        """As `open`, of a graph whose weights may lie in another folder: a form that was built for exported graphs."""
        graph, weights = None, (path.parent.parent / artefact.files[-1].path).parent
        if weights != path.parent:
            graph = path.read_bytes()
            session_options.add_session_config_entry(WEIGHTS_FOLDER, str(weights))
        return self.open(artefact, path, session_options, {}, graph)

    def smallest(self) -> Any:
        """A session of a graph of one node, y = -x; BackendUnavailable where the provider cannot even open that."""
        told = options(self.provider, None, half=True)
        with translated(lambda said: BackendUnavailable(f"{self.providers[0]}: {said}", hint=self.provider.needs)):
            return self._opened(ONE_NODE, self.options(), told)

    def run_options(self, told: Mapping[str, str]) -> Any:
        """RunOptions with these entries."""
        run_options = self.ort.RunOptions()
        for name, value in told.items():
            run_options.add_run_config_entry(name, value)
        return run_options

    def give_back(self, session: Any, binding: Any) -> None:
        """Give the system what runs of a session kept on the CPU: by one that ends before its first node."""
        run_options = self.run_options({SHRINKS: "cpu:0"})
        run_options.terminate, run_options.log_severity_level = True, 4
        with suppress(ClipskipError), self.running():  # it never succeeds
            session.run_with_iobinding(binding, run_options)

    def buffer(self, array: Array) -> Any:
        """A copy of the array as an OrtValue where the provider computes."""
        place = self.provider.kind, self.device, self.provider.vendor
        return self.ort.OrtValue.ortvalue_from_numpy(np.array(array, order="C"), *place)

    def replace(self, session_options: Any, changed: Mapping[str, Changed]) -> dict[str, Any]:
        """Other weights in place of stored ones, as OrtValues: also for what the library optimises as it opens a graph.

        `add_initializer` alone would leave it those that are stored.
        """
        values = {name: self.ort.OrtValue.ortvalue_from_numpy(each.array) for name, each in changed.items()}
        if values:
            session_options.add_external_initializers([*values], [*values.values()])
        return values

    @contextmanager
    def running(self) -> Iterator[None]:
        """For what is done with a session: a failure is one of the device, for want of memory, or of the library."""
        hint = "where memory may have run out, ask for smaller pictures or fewer at once"
        what = "ONNX Runtime failed while it ran a graph"
        try:
            with translated(lambda said: self._lack(said) or BackendUnavailable(f"{what}: {said}", hint=hint)):
                yield
        except BackendUnavailable as error:
            if self.provider.name == CPU and type(error.__cause__).__name__ in WITHOUT_MEMORY:
                raise DeviceOutOfMemory(error.message, hint=hint) from error.__cause__
            raise

    def _not_opened(self, path: Path, said: str) -> ClipskipError:
        """A lack of memory; the graph's fault, or the provider's."""
        try:
            self.smallest()
        except BackendUnavailable as error:
            return self._lack(said) or error
        return self._lack(said) or EngineIncompatible(f"ONNX Runtime cannot open {path.name}: {said}", path=path)

    def _lack(self, said: str) -> ClipskipError | None:
        """What CUDA says to a failure; or that next to no memory is left, which ONNX Runtime says in words alone."""
        if self.cuda is None:
            return None
        self.cuda.probe()
        if (free := self.cuda.free_memory()) >= LITTLE:
            return None
        message = f"ONNX Runtime failed where {files.readable_size(free)} of GPU memory are free: {said}"
        return DeviceOutOfMemory(message, hint="smaller pictures, fewer at once, or fewer threads")

    def _opened(self, graph: str | bytes, session_options: Any, told: Mapping[str, str]) -> Any:
        """A session without ONNX Runtime's own fall-back to the CPU, which can come in the middle of a run."""
        arguments: dict[str, Any] = {"enable_fallback": 0}
        told = {**self.provider.place(self.device), **told, **self._settings}
        if self.provider.name in self.ort.get_available_providers():
            below = [(name, named(name).place(self.device)) for name in self.providers[1:]]
            arguments["providers"] = [(self.providers[0], told), *below]
        else:
            present = devices(self.ort, self.provider)
            if not 0 <= self.device < len(present):
                message = f"{self.provider.name} finds {len(present)} GPUs, none with number {self.device}"
                raise BackendUnavailable(message, hint=self.provider.needs)
            session_options.add_provider_for_devices([present[self.device]], told)
        session = self.ort.InferenceSession(graph, session_options, **arguments)
        if (used := session.get_providers()[0]) != self.providers[0]:
            message = f"{self.providers[0]} could not be used: ONNX Runtime fell back to {used}"
            raise BackendUnavailable(message, hint=self.provider.needs)
        return session


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
        said = str(error).strip()
        short = said if len(said) <= 2 * SAID else f"{said[:SAID]} ... {said.partition(chr(10))[0][-SAID:]}"
        raise files.shortage(error) or failure(short) from error
