"""ONNX Runtime: the CPU by default, other devices by provider. Opens graphs; `onnxruntime_session` runs them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from clipskip.engines import gpu
from clipskip.engines.manifest import Artefact
from clipskip.errors import BackendUnavailable, Busy, ClipskipError, EngineIncompatible, RequestError

from . import Array, Loop
from .leased import Lease, LeasedLoop
from .onnxruntime_session import OnnxRuntimeLoop, Session, serially, translated
from .pool import Pool
from .providers import CPU, devices, load, named, options

CPU_PIXELS = 512 * 512  # attention needs 1 GB for one guided picture of this size, and batches bring no speed
GPU_PIXELS = 4 * 512 * 512
SESSION_BYTES = 16 * 2**20  # what a session of mapped weights takes for itself
CAPTURED_LOOPS = 4  # of one engine, in use or idle: a captured graph keeps its buffers and its scratch memory
ONE_NODE = (  # y = -x
    b'\x08\n:4\n\r\n\x01x\x12\x01y"\x03Neg:\x00\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)


class OnnxRuntime:
    """Runs exported graphs as they are. `providers` are ONNX Runtime's names, the preferred one first.

    `threads` is the number of threads of one engine (default: as many as this process may use cores). `graphs`: replay
    the denoising step as a CUDA graph, where the provider can. `settings`: ONNX Runtime's own options for the first
    provider, over those of `providers.py`.
    """

    target = "onnx"

    def __init__(
        self,
        providers: Sequence[str] = (CPU,),
        threads: int | None = None,
        graphs: bool = True,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        provider = named(providers[0])
        try:
            ort = gpu.onnxruntime()
        except ImportError as error:
            raise BackendUnavailable("ONNX Runtime is not installed", hint=named(CPU).install) from error
        if provider.plugin and len(providers) > 1:
            raise RequestError(f"{provider.name} takes no provider beside it", field="providers")
        load(ort, provider)
        self._ort, self._provider, self._settings = ort, provider, dict(settings or {})
        self.providers = tuple(dict.fromkeys((*providers, *provider.below)))
        self.name = provider.target
        self.threads = threads or len(os.sched_getaffinity(0))
        self.graphs = graphs and provider.graphs is not None and self._settings.get(provider.graphs, "1") == "1"
        self._on_device = provider.device[0] != "cpu"
        self.precision = "fp32" if provider.name == CPU else "fp16"
        self.few_shapes = bool(provider.caches)  # those that compile
        self.batch_pixels = GPU_PIXELS if self._on_device else CPU_PIXELS

    def open(self, artefact: Artefact, path: Path) -> OnnxRuntimeEngine:
        """Open the graph. EngineIncompatible; BackendUnavailable where the provider cannot be used after all."""
        if self.graphs and artefact.role.part == "step":  # the one that runs in loops
            with suppress(EngineIncompatible):  # ONNX Runtime refuses to capture what it leaves to the CPU in part
                return self._engine(artefact, path, capturing=True)
        return self._engine(artefact, path, capturing=False)

    def describe(self) -> dict[str, str]:
        """Library version and device."""
        return {"backend": self.name, "onnxruntime": self._ort.__version__, "provider": self.providers[0]}

    def check(self) -> None:
        """BackendUnavailable where the provider cannot even open a graph of one node: `clipskip doctor` asks."""
        told = options(self._provider, None, half=True, capturing=False) | self._settings
        with translated(lambda said: BackendUnavailable(f"{self.providers[0]}: {said}", hint=self._provider.needs)):
            self._opened(ONE_NODE, self._session_options(""), told)

    def _engine(self, artefact: Artefact, path: Path, capturing: bool) -> OnnxRuntimeEngine:
        told = options(self._provider, path, artefact.precision == "fp16", capturing) | self._settings
        with translated(lambda said: self._not_opened(path, said)):
            opened = self._opened(str(path), self._session_options(artefact.role.part), told)
        session = Session(self._ort, opened, self._provider, exclusive=self.graphs, capturing=capturing)
        files = artefact.files if self._on_device else artefact.files[:1]  # the weights stay mapped from one file
        return OnnxRuntimeEngine(artefact, session, SESSION_BYTES + sum(each.size for each in files))

    def _not_opened(self, path: Path, said: str) -> ClipskipError:
        """The graph's fault, or the provider's."""
        try:
            self.check()
        except BackendUnavailable as error:
            return error
        return EngineIncompatible(f"ONNX Runtime cannot open {path.name}: {said}", path=path)

    def _opened(self, graph: str | bytes, session_options: Any, given: Mapping[str, str]) -> Any:
        """A session without ONNX Runtime's own fall-back to the CPU, which can come in the middle of a run."""
        arguments: dict[str, Any] = {"enable_fallback": 0}
        if self._provider.name in self._ort.get_available_providers():
            arguments["providers"] = [(self.providers[0], dict(given)), *self.providers[1:]]
        else:
            found = list(devices(self._ort, self._provider))
            session_options.add_provider_for_devices(found[:1], dict(given))
        session = serially(self.graphs, lambda: self._ort.InferenceSession(graph, session_options, **arguments))
        if (used := session.get_providers()[0]) != self.providers[0]:
            message = f"{self.providers[0]} could not be used: ONNX Runtime fell back to {used}"
            raise BackendUnavailable(message, hint=self._provider.needs)
        return session

    def _session_options(self, part: str) -> Any:
        made = self._ort.SessionOptions()
        made.intra_op_num_threads = self.threads
        made.log_severity_level = 3
        if part == "text":
            # All depths read the same weights: without prepacking they stay mapped from one file, and a further depth
            # costs megabytes instead of a copy (measured in LOG.md).
            made.add_session_config_entry("session.disable_prepacking", "1")
        return made


class OnnxRuntimeEngine:
    """One session. Loops that are replayed as CUDA graphs are lent and used again; others are made anew each time."""

    def __init__(self, artefact: Artefact, session: Session, nbytes: int) -> None:
        self.artefact = artefact
        self.nbytes = nbytes
        self._session: Session | None = session
        self._pool: Pool[OnnxRuntimeLoop] = Pool(CAPTURED_LOOPS, patience=0)
        self._numbers = count(1)  # of captured graphs; ONNX Runtime keeps 0 for itself

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        assert self._session is not None
        return self._session.run([port.name for port in self.artefact.outputs], feeds)

    def loop(self, feeds: Mapping[str, Array], feedback: Mapping[str, str]) -> Loop:
        session = self._session
        assert session is not None
        if session.capturing:
            with suppress(Busy):  # a picture more than there are graphs for is made without one
                return self._captured(session, feeds, feedback)
        return OnnxRuntimeLoop(session, feeds, feedback)

    def _captured(self, session: Session, feeds: Mapping[str, Array], feedback: Mapping[str, str]) -> Loop:
        shapes = tuple((name, array.shape) for name, array in feeds.items())
        key = shapes, tuple(feedback.items())
        lease = Lease(self, self._pool, key, lambda: OnnxRuntimeLoop(session, feeds, feedback, next(self._numbers)))
        with lease.guarded() as bound:
            bound.load(feeds)
        return LeasedLoop(lease)

    def close(self) -> None:
        self._pool.close()
        self._session = None
