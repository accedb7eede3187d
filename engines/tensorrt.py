"""TensorRT and TensorRT-RTX engines for a store: what to build from its fp16 graphs, and under which key.

Knows nothing of TensorRT's API (see tensorrt_compile, which does the work in a child process) nor of how an engine is
run. TensorRT-RTX builds without a GPU; TensorRT times its kernels on the GPU that is there.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from clipskip.engines import gpu, publish
from clipskip.engines.errors import RequestError
from clipskip.engines.gpu import Device
from clipskip.engines.locks import locked
from clipskip.engines.manifest import Artefact, AxisRange, FileRecord, Identity, Role, key_of
from clipskip.engines.shapes import BuildOptions, axes_of, axis_ranges, profiles
from clipskip.engines.store import Store
from clipskip.engines.tensorrt_child import PACKAGES, Job, Outcome, Progress, compile_in_child, load_builder

PRECISION = "fp16"
NETWORKS = (Role("step"), Role("decode"), Role("encode"))
OWN_HEADS = (40, 64, 80, 160)  # Stable Diffusion 1.5's head sizes in the U-Net and the text encoder
SCHEMA = "1"  # of the way this builder works
FIRST_GPU = Device("cuda", 0)


@dataclass(frozen=True)
class Built:
    """What became of one engine. `seconds` and `peak_bytes` are 0 where it was up to date."""

    role: str
    rebuilt: bool
    seconds: float = 0.0
    peak_bytes: int = 0
    decomposed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Toolchain:
    """The package and, for TensorRT, the device that it times kernels on."""

    target: str
    version: str
    device: gpu.Gpu | None = None
    index: int | None = None  # of the device
    timing_cache: str | None = None


def build(
    store: Store, *, target: str, options: BuildOptions, progress: Progress, device: Device = FIRST_GPU
) -> list[Built]:
    """Build and publish what is missing or stale of text-KK, step, decode and encode, one after the other.

    `device`: the GPU that TensorRT times its kernels on; TensorRT-RTX needs none.

    Each engine is a publication of its own: what was built before a failure stays and is used again. Open a new Store
    to see the result. BackendUnavailable without the package (or, for "tensorrt", without a GPU) before any work;
    EngineMissing without fp16 graphs; ExportError and DeviceOutOfMemory carry TensorRT's own words.
    """
    tools = toolchain(store.root, target, options, device)
    ranges = axis_ranges(store.manifest().model, options)
    graphs = [store.find(role, "onnx", PRECISION) for role in roles(store, options.layers)]
    with _device_lock(tools, progress):
        return [
            _build(store, _Recipe(graph, tools, options, axes_of(graph.inputs, ranges)), progress) for graph in graphs
        ]


def roles(store: Store, layers: Sequence[int] | None) -> list[Role]:
    """The roles to build: the text engines for `layers` (None: those that were exported at fp16) and the networks."""
    if layers is not None:
        return [*(Role("text", kept) for kept in sorted(set(layers))), *NETWORKS]
    exported = [
        each.role for each in store.manifest().artefacts if (each.target, each.precision) == ("onnx", PRECISION)
    ]
    return [*sorted(role for role in exported if role.part == "text"), *NETWORKS]


def toolchain(root: Path, target: str, options: BuildOptions, device: Device) -> Toolchain:
    """What `target` is built with here. BackendUnavailable where package or GPU is missing."""
    version = str(load_builder(target).__version__)
    if target == "tensorrt-rtx":
        return Toolchain(target, version)
    if options.compute_capabilities:
        raise RequestError("--compute-capability is for tensorrt-rtx: TensorRT builds for the GPU that is there")
    found = gpu.describe(gpu.cuda_runtime(), device.index)
    return Toolchain(target, version, found, device.index, str(root / f"timing-{target}-{version}-{found.uuid}.cache"))


@contextmanager
def _device_lock(tools: Toolchain, progress: Progress) -> Iterator[None]:
    """One build at a time on a GPU: two would disturb each other's timings."""
    with ExitStack() as stack:
        if tools.device is not None:
            path = Path(tempfile.gettempdir()) / f"clipskip-gpu-{tools.device.uuid}.lock"
            stack.enter_context(locked(path, progress))
        yield


@dataclass(frozen=True)
class _Recipe:
    """One engine to be: the graph it is made from, with what, and for which shapes."""

    graph: Artefact
    tools: Toolchain
    options: BuildOptions
    axes: Mapping[str, AxisRange]

    @property
    def identity(self) -> Identity:
        return Identity(self.graph.role, self.tools.target, PRECISION, self.graph.variant)

    def ingredients(self) -> dict[str, str]:
        """Everything that may change the bytes of the engine."""
        device, workspace = self.tools.device, self.options.workspace
        return {
            "model": self.graph.model,
            "graph": content_key(self.graph.files),
            "package": f"{PACKAGES[self.tools.target]} {self.tools.version}",
            "compute capability": self.capabilities() if device is None else device.compute_capability,
            "device": "any" if device is None else device.identity,
            "workspace": "default" if workspace is None else str(workspace),
            "builder": SCHEMA,
            **{f"axis {name}": f"{each.minimum}..{each.optimum}..{each.maximum}" for name, each in self.axes.items()},
        }

    def capabilities(self) -> str:
        return ", ".join(sorted(self.options.compute_capabilities)) or "default"

    def job(self, onnx: Path, engine: Path) -> Job:
        return Job(
            target=self.tools.target,
            onnx=str(onnx),
            engine=str(engine),
            profiles=profiles(self.graph.inputs, self.axes),
            compute_capabilities=tuple(sorted(self.options.compute_capabilities)),
            workspace=self.options.workspace,
            timing_cache=self.tools.timing_cache,
            device=self.tools.index,
        )

    def artefact(self, outcome: Outcome) -> Artefact:
        """What the manifest says of the engine. No parity: only a GPU can tell, and the graph's own is not it."""
        ingredients = self.ingredients()
        provenance = {name: ingredients[name] for name in ("package", "compute capability", "device")}
        notes = tuple(f"decomposed attention: {line}" for line in outcome.decomposed)
        graph, (role, target, precision, variant) = self.graph, self.identity
        return Artefact(
            role, target, precision, graph.inputs, graph.outputs, self.axes, {}, provenance, notes, variant=variant
        )


def content_key(files: Sequence[FileRecord]) -> str:
    """What published files hold, whatever folder they are in."""
    return key_of({each.path.partition("/")[2]: each.sha256 for each in files})


def _build(store: Store, recipe: _Recipe, progress: Progress) -> Built:
    """Build one engine, unless an intact one with the same ingredients is there."""
    role, target = str(recipe.graph.role), recipe.tools.target
    wanted = {recipe.identity: recipe.ingredients()}
    needs = sum(each.size for each in recipe.graph.files)  # an engine is about as large as the weights that it is from
    with publish.build(store.root, f"{target}-{role}", wanted, progress=progress, needs=needs) as draft:
        if draft is None:
            return Built(role, rebuilt=False)
        began = time.monotonic()
        outcome = compile_in_child(
            role, recipe.job(store.verify(recipe.graph), draft.folder / f"{role}.engine"), progress
        )
        built = Built(role, True, time.monotonic() - began, outcome.peak_bytes, outcome.decomposed)
        draft.add(recipe.artefact(outcome), [f"{role}.engine"])
    progress(f"{role}: built in {built.seconds:.1f} s, peak memory {built.peak_bytes / 1e9:.1f} GB")
    for line in own_attentions(role, outcome.decomposed):
        progress(f"warning: {line}")
    return built


def own_attentions(role: str, decomposed: Sequence[str]) -> list[str]:
    """A line for each decomposed attention that is one of SD 1.5's own, TensorRT usually has a kernel for."""
    known = [line for line in decomposed if any(line.endswith(f": {head} wide, HALF") for head in OWN_HEADS)]
    return [f"{role}: TensorRT had no kernel for {line}; it runs decomposed and slower" for line in known]
