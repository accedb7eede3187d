"""ONNX Runtime: the CPU by default, other devices by provider; with the CUDA provider, executions as TensorRT has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from clipskip.engines import files, gpu
from clipskip.engines.manifest import Artefact
from clipskip.engines.variants import Changed
from clipskip.errors import BackendUnavailable, EngineIncompatible, RequestError

from . import Array, Engine, cores, prepacked
from .cuda import Cuda
from .device import Device, DeviceEngine, Settings
from .onnxruntime_cuda import CudaContexts, Weights
from .pool import with_room
from .providers import CPU, CUDA, load, named
from .sessions import SESSION_BYTES, SHRINKS, Sessions
from .signature import check_like

CPU_PIXELS = 512 * 512  # attention needs 1 GB for one guided picture of this size, and batches bring no speed
GPU_PIXELS = 4 * 512 * 512
LARGE = 1 << 17  # bytes of state, as of one picture of 300 pixels a side: what smaller ones take is soon taken again
LOOPS = 8  # of one engine; each has buffers of its own


class OnnxRuntime:
    """Runs exported graphs and their forms. `providers` are ONNX Runtime's names, the preferred one first.

    `threads` is the number of threads of one engine (default: as many as this process may use cores). `graphs`: replay
    what was run as a CUDA graph, where the provider can. `settings`: ONNX Runtime's own options for the first provider,
    over those of `providers.py`; for CUDA `cudnn_conv_algo_search` ("HEURISTIC" here, "EXHAUSTIVE" or "DEFAULT") and
    `prefer_nhwc` ("0" or "1") are worth a measurement. `device`: which of the provider's devices. `pack_text`: every
    depth of the text encoder has packed weights of its own, which is a fifth faster, costs up to a copy of them for
    each open depth, and adds up in another order: pictures differ from those without, by 1/255 here and there.
    """

    target = "onnx"

    def __init__(
        self,
        providers: Sequence[str] = (CPU,),
        threads: int | None = None,
        graphs: bool = True,
        settings: Mapping[str, str] | None = None,
        device: int = 0,
        pack_text: bool = False,
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
        self._ort, own = ort, dict(settings or {})
        self._made, self._pack_text = (tuple(providers), threads, graphs, own, device, pack_text), pack_text
        self.providers = tuple(dict.fromkeys((*providers, *provider.below)))
        self.name, self.variants = provider.target, provider.variants
        self.threads = threads or cores()
        self._sessions = Sessions(ort, self.providers, device, self.threads, own)
        self.precision = "fp32" if provider.name == CPU else "fp16"
        self.batch_pixels = CPU_PIXELS if provider.kind == "cpu" else GPU_PIXELS
        self.loops, self.proof, self._gpu = LOOPS, None, None
        self.compiles_per_shape = bool(provider.caches)
        if provider.name == CUDA:
            graphs = graphs and own.get("enable_cuda_graph", "1") == "1"
            cuda = self._sessions.cuda = Cuda(gpu.cuda_runtime(), device)
            self._gpu, self._weights = Device(cuda, Settings(graphs=graphs)), Weights(cuda)
            self.loops, self.compiles_per_shape = self._gpu.settings.contexts, True
            self.proof = f"{cuda.gpu.identity}, ONNX Runtime {ort.__version__}"

    def __reduce__(self) -> tuple[type[OnnxRuntime], tuple[object, ...]]:
        return OnnxRuntime, self._made  # the library itself cannot be pickled

    def open(self, artefact: Artefact, path: Path) -> Engine:
        """Open the graph. EngineIncompatible; BackendUnavailable where the provider cannot be used after all."""
        return self.open_changed(artefact, path, {})

    def open_changed(self, artefact: Artefact, path: Path, changed: Mapping[str, Changed]) -> Engine:
        """Open the graph with other weights for the initializers of these names. As `open`."""
        if changed and self._sessions.provider.caches:
            message = f"{self.name} compiles weights into engines that it keeps: it cannot change them for a LoRA"
            raise EngineIncompatible(message, field=str(artefact.role), hint="use onnxruntime-cuda or tensorrt-rtx")
        if self._gpu:
            self._gpu.cuda.check()
            make = partial(CudaContexts, self._sessions, self._weights, artefact, path, changed)
            contexts = with_room(make, self._gpu.relieve)
            return DeviceEngine(self._gpu, artefact, contexts.make, contexts.nbytes)
        session_options, mapped = self._sessions.options(), artefact.role.part == "text" and not self._pack_text
        if mapped:
            # All depths read the same weights: without prepacking they stay mapped from one file, and a further depth
            # costs megabytes instead of a copy (measured in LOG.md). Packed ones would give other bits: never mix them.
            session_options.add_session_config_entry("session.disable_prepacking", "1")
        values = self._sessions.replace(session_options, changed)
        if not mapped:  # these are packed when the session is opened, and ours are not read again
            values = {}
        for name, value in values.items():  # read where they are, by all depths
            session_options.add_initializer(name, value)
        pack = partial(self._sessions.graph, artefact, path)
        session = None
        if not changed and artefact.role.part != "text" and self.providers == (CPU,):
            session = prepacked.opened(self._sessions, artefact, path.parent.parent, pack)
        session = session or pack(session_options)
        shared = self._sessions.provider.kind == "cpu" and (mapped or artefact.role.part != "text")
        nbytes = SESSION_BYTES + sum(file.size for file in artefact.files[: 1 if shared else None])
        nbytes += sum(each.array.nbytes for each in changed.values())
        return OnnxRuntimeEngine(artefact, session, self._sessions, nbytes, values)

    @property
    def cuda(self) -> Cuda | None:
        """The GPU, where it is CUDA's."""
        return self._sessions.cuda

    def describe(self) -> dict[str, str]:
        """Library version and device."""
        return {"backend": self.name, "onnxruntime": self._ort.__version__, "provider": self.providers[0]}

    def check(self) -> None:
        """BackendUnavailable where the provider cannot even open a graph of one node: `clipskip doctor` asks."""
        self._sessions.smallest()


class OnnxRuntimeEngine:
    """One session, an InferenceSession; `sessions` opened it. `values` are OrtValues that it reads."""

    def __init__(
        self, artefact: Artefact, session: Any, sessions: Sessions, nbytes: int, values: Mapping[str, Any]
    ) -> None:
        self.artefact, self.nbytes = artefact, nbytes
        self._session, self._sessions, self._values = session, sessions, values
        self._names = [port.name for port in artefact.outputs]
        # A picture takes a gigabyte, once; a text some megabytes, in thirteen sessions; a step is run again at once.
        gives_back = artefact.role.part != "step" and sessions.provider.name == CPU
        self._options = sessions.run_options({SHRINKS: "cpu:0"} if gives_back else {})

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        session, _held = self._session, self._values  # closing the engine in another thread takes them away
        with self._sessions.running():
            return dict(zip(self._names, session.run(self._names, dict(feeds), self._options), strict=True))

    def loop(self, feeds: Mapping[str, Array], feedback: Mapping[str, str]) -> OnnxRuntimeLoop:
        return OnnxRuntimeLoop(self._session, self._sessions, feeds, feedback)

    def close(self) -> None:
        self._session, self._values = None, {}


class OnnxRuntimeLoop:
    """All inputs and outputs bound once on the device, for many runs. An output is copied to the input it feeds."""

    def __init__(
        self, session: Any, sessions: Sessions, feeds: Mapping[str, Array], feedback: Mapping[str, str]
    ) -> None:
        self._session, self._sessions, self._feedback = session, sessions, dict(feedback)
        self._outputs: dict[str, Any] = {}  # OrtValues
        with self._sessions.running():
            self._binding, self._inputs = session.io_binding(), {name: sessions.buffer(feeds[name]) for name in feeds}
            for name, value in self._inputs.items():
                self._binding.bind_ortvalue_input(name, value)
            for name, source in feedback.items():
                self._outputs[name] = sessions.buffer(feeds[source])
                self._binding.bind_ortvalue_output(name, self._outputs[name])

    def write(self, name: str, slot: int, array: Array) -> None:
        """In place on the CPU; on a device all of the input comes and goes, for an OrtValue has no parts."""
        value = self._inputs[name]
        with self._sessions.running():
            values = value.numpy()
            check_like(values[slot], name, array)
            values[slot] = array
            if values.ctypes.data != value.data_ptr():
                value.update_inplace(values)

    def run(self, feeds: Mapping[str, Array]) -> None:
        with self._sessions.running():
            for name, array in feeds.items():
                self._inputs[name].update_inplace(np.ascontiguousarray(array))
            self._session.run_with_iobinding(self._binding)
            for name, source in self._feedback.items():
                self._inputs[source].update_inplace(self._outputs[name])

    def read(self, name: str, slot: int | None = None) -> Array:
        with self._sessions.running():
            values = self._inputs[name].numpy()
        return np.array(values if slot is None else values[slot])

    def close(self) -> None:
        state = sum(self._inputs[name].numpy().nbytes for name in self._feedback.values() if self._inputs)
        if self._sessions.provider.name == CPU and state >= LARGE:
            self._sessions.give_back(self._session, self._binding)
        self._binding = None
        self._inputs.clear()
        self._outputs.clear()
