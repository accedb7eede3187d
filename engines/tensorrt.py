"""TensorRT and TensorRT-RTX engines for a store: what to build from its fp16 graphs, and under which key.

Knows nothing of TensorRT's API (see tensorrt_compile, which does the work in a child process) nor of how an engine is
run. TensorRT-RTX builds without a GPU; TensorRT times its kernels on the GPU that is there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from clipskip.engines import files, gpu, hints, publish, variants
from clipskip.engines.errors import BackendUnavailable, RequestError
from clipskip.engines.gpu import Device
from clipskip.engines.locks import locked
from clipskip.engines.manifest import DECODE, DECODE_TINY, ENCODE, STEP, Artefact, Identity, Role, key_of
from clipskip.engines.shapes import BuildOptions, axes_of, axis_ranges, check_within, compute_capability, profiles
from clipskip.engines.store import Store
from clipskip.engines.tensorrt_child import (
    PACKAGES,
    Job,
    Progress,
    compile_in_child,
    default_capabilities,
    known_capabilities,
    load_builder,
)
from clipskip.engines.variants import PLAIN, Active, Mix

PRECISION = "fp16"
OWN_HEADS = (40, 64, 80, 160)  # Stable Diffusion 1.5's head sizes in the U-Net and the text encoder
SCHEMA = "3"  # of the way this builder works
FIRST_GPU = Device("cuda", 0)


@dataclass(frozen=True)
class Built:
    """What became of one engine. `seconds` and `peak_bytes` are 0 where it was up to date."""

    role: str
    compute_capability: str  # what it is for: "8.6, 8.9, 12.0"
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
    capabilities: tuple[str, ...] = ()


def build(
    store: Store,
    *,
    target: str,
    options: BuildOptions,
    progress: Progress,
    device: Device = FIRST_GPU,
    loras: Sequence[Active] = (),
) -> list[Built]:
    """Build and publish what is missing or stale of text-KK, step and the coders, one after the other.

    `device`: the GPU that TensorRT times its kernels on; TensorRT-RTX needs none. `loras`: build engines with these in
    their weights, of what they change alone; where `options` say nothing of shapes, for those of the engines without.

    Each engine is a publication of its own: what was built before a failure stays and is used again. Open a new Store
    to see the result. BackendUnavailable without the package (or, for "tensorrt", without a GPU) before any work;
    EngineMissing without fp16 graphs; ExportError and DeviceOutOfMemory carry TensorRT's own words.
    """
    tools = toolchain(target, options, device)
    ranges = axis_ranges(store.manifest().model, options)
    graphs = [store.find(role, "onnx", PRECISION) for role in roles(store, options.layers)]
    plain = {
        each.role: each.axes for each in store.manifest().artefacts if each.identity[1:] == (target, PRECISION, "")
    }
    for graph in graphs:
        check_within(ranges, graph)
    theirs = plain if loras and options.shapeless else {}
    graphs = [replace(graph, axes=theirs.get(graph.role, axes_of(graph.inputs, ranges))) for graph in graphs]
    jobs = [(graph, PLAIN) for graph in graphs]
    if loras:
        changed = [graph for graph in graphs if graph.role not in (DECODE, DECODE_TINY, ENCODE)]
        tables = [variants.parameters(variants.table(store, graph)) for graph in changed]
        mixes = [variants.mix(graph.role, table, loras) for graph, table in zip(changed, tables, strict=True)]
        jobs = [(graph, mix) for graph, mix in zip(changed, mixes, strict=True) if mix.key]
        sizes = {graph.role: sum(record.size for record in graph.files) for graph, _ in jobs}
        names = " + ".join(each.lora.name for each in loras)
        what = ", ".join(f"{role} ({files.readable_size(size)})" for role, size in sizes.items())
        progress(f"{names}: engines to build, and about how large each will be: {what or 'none'}")
    folder = files.own_folder() if tools.device else None  # where nobody else can hold the lock for ever
    lock = folder / f"gpu-{tools.device.uuid}.lock" if folder and tools.device else None
    with locked(lock, progress) if lock else nullcontext():  # two builds on one GPU disturb each other's timings
        return [_build(store, (graph, mix), tools, options, progress) for graph, mix in jobs]


def roles(store: Store, layers: Sequence[int] | None) -> list[Role]:
    """The roles to build: the text engines for `layers` (None: those that were exported at fp16) and the networks."""
    graphs = [graph for graph in store.manifest().artefacts if (graph.target, graph.precision) == ("onnx", PRECISION)]
    exported = {graph.role for graph in graphs}
    texts = {role for role in exported if role.part == "text"}
    texts = texts if layers is None else {Role("text", kept) for kept in layers}
    return [*sorted(texts), STEP, DECODE, ENCODE, *(exported & {DECODE_TINY})]


def toolchain(target: str, options: BuildOptions, device: Device) -> Toolchain:
    """What `target` is built with here. BackendUnavailable where package or GPU is missing."""
    trt = load_builder(target)
    version, capabilities = str(trt.__version__), {compute_capability(each) for each in options.compute_capabilities}
    if target == "tensorrt-rtx":
        if unknown := sorted(capabilities - {*known_capabilities(trt)}):
            known = ", ".join(known_capabilities(trt))
            message = f"{PACKAGES[target]} {version} cannot build these networks for compute capability {unknown[0]}"
            raise RequestError(f"{message}, only for {known}", field="compute_capability")
        chosen = sorted(capabilities, key=float) or default_capabilities(trt)
        return Toolchain(target, version, capabilities=tuple(chosen))
    if options.compute_capabilities:
        message = "compute_capability is for tensorrt-rtx: TensorRT builds for the GPU that is there"
        raise RequestError(message, field="compute_capability")
    card, folder = gpu.describe(gpu.cuda_runtime(), device.index), files.own_folder()
    timings = str(folder / f"timing-{target}-{version}-{card.uuid}.cache") if folder else None
    return Toolchain(target, version, card, device.index, timings)


def _build(
    store: Store, what: tuple[Artefact, Mix], tools: Toolchain, options: BuildOptions, progress: Progress
) -> Built:
    """Build a graph's engine for the sizes in `graph.axes`, unless an intact one with the same ingredients is there."""
    graph, mix = what
    role, capabilities = str(graph.role), tools.capabilities
    fits = tools.device.compute_capability if tools.device else ", ".join(capabilities)
    provenance = {
        "package": f"{PACKAGES[tools.target]} {tools.version}",
        "compute capability": fits,
        "device": tools.device.identity if tools.device else "any",
    }
    ingredients = {
        "model": graph.model,
        "graph": key_of({record.path.partition("/")[2]: record.sha256 for record in graph.files}),
        "workspace": "default" if options.workspace is None else str(options.workspace),
        "builder": SCHEMA,
        **{f"axis {name}": f"{axis.minimum}..{axis.optimum}..{axis.maximum}" for name, axis in graph.axes.items()},
        **({"loras": mix.key} if mix.key else {}),
        **provenance,
    }
    identity = Identity(graph.role, tools.target, PRECISION, mix.variant if mix.key else "")
    wanted = {identity: ingredients}
    needs = sum(record.size for record in graph.files)  # an engine is about as large as the weights that it is from
    needs *= 2 if mix.key else 1
    with publish.build(store.root, f"{tools.target}-{identity.stem}", wanted, progress=progress, needs=needs) as draft:
        if draft is None:
            return Built(identity.stem, fits, rebuilt=False)
        began = time.monotonic()
        job = Job(
            target=tools.target, onnx=str(_with_loras(store, graph, mix, draft.folder)),
            engine=str(draft.folder / f"{identity.stem}.engine"),
            profiles=profiles(graph.inputs, graph.axes), compute_capabilities=capabilities,
            workspace=options.workspace, timing_cache=tools.timing_cache, device=tools.index,
        )  # fmt: skip
        outcome = compile_in_child(role, job, progress)
        built = Built(identity.stem, fits, True, time.monotonic() - began, outcome.peak_bytes, outcome.decomposed)
        notes = tuple(f"decomposed attention: {line}" for line in outcome.decomposed)
        notes += tuple(f"LoRA {lora.name} at {weight:g}" for lora, weight in mix.parts)
        engine = replace(graph, target=tools.target, provenance=provenance, notes=notes, files=())
        engine = replace(engine, parity={}, variant=identity.variant)  # only a GPU can tell: the graph's own is not it
        draft.add(engine, [f"{identity.stem}.engine"])
    progress(f"{identity.stem}: built in {built.seconds:.1f} s, peak memory {built.peak_bytes / 1e9:.1f} GB")
    for line in own_attentions(role, outcome.decomposed):
        progress(f"warning: {line}")
    return built


def _with_loras(store: Store, graph: Artefact, mix: Mix, folder: Path) -> Path:
    """The graph; where LoRAs change it, a copy with their weights, which goes with the draft. BackendUnavailable."""
    path = store.verify(graph)
    if not mix.key:
        return path
    try:
        import onnx_ir as ir
    except ImportError as error:
        raise BackendUnavailable("building with LoRAs needs onnx-ir", hint=hints.install("onnx-ir")) from error
    model = ir.load(path)
    for name, each in variants.changed(store, graph, mix).items():
        model.graph.initializers[name].const_value = ir.tensor(each.array, name=name)
    ir.save(model, folder / "merged.onnx", external_data="merged.bin")
    return folder / "merged.onnx"


def own_attentions(role: str, decomposed: Sequence[str]) -> list[str]:
    """A line for each decomposed attention that is one of SD 1.5's own, TensorRT usually has a kernel for."""
    known = [line for line in decomposed if any(line.endswith(f": {head} wide, HALF") for head in OWN_HEADS)]
    return [f"{role}: TensorRT had no kernel for {line}; it runs decomposed and slower" for line in known]
