"""Where an engine, or a form of a graph, first computes something else than the exported graph does on the CPU.

All tensors are compared, in the graph's order and some at a time: of a full-size network, all at once are gigabytes.
The runners are Polygraphy's (extra `diagnose`). TensorRT builds its engine anew with those tensors as outputs, so it
needs the GPU; and what it, or ONNX Runtime, fuses across a tensor that is asked for is computed apart here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from clipskip.engines import gates, gpu, hints, trials
from clipskip.engines.errors import BackendUnavailable, ClipskipError, ExportError, RequestError
from clipskip.engines.gates import CPU, FP16_RATIO, FP16_RELATIVE, FP32_RELATIVE, TORCH_FP16, Array, Arrays
from clipskip.engines.manifest import Artefact, Role
from clipskip.engines.shapes import LATENT
from clipskip.engines.store import Store
from clipskip.engines.tensorrt_child import Job, Progress, load_builder
from clipskip.engines.tensorrt_compile import configure

CUDA = "CUDAExecutionProvider"
PROVIDERS = {"onnxruntime": (CPU,), "onnxruntime-cuda": (CUDA, CPU)}  # by target
GROUP = 256  # tensors that are held at once, twice
WORST = 1e12  # the error of what cannot be compared: another shape, or infinite on one side only


@dataclass(frozen=True)
class Diagnosis:
    """The first tensor whose relative error is over the limit, which node of the exported graph gives it, and how far
    that node's own inputs are apart; or no tensor. `compared` of `tensors` were looked at, the others the candidate
    does not compute.
    """

    candidate: str
    reference: str
    limit: float
    tensors: int
    compared: int = 0
    tensor: str | None = None
    node: str | None = None
    operator: str | None = None
    error: float | None = None
    inputs: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Side:
    """What computes: its name, its tensors in order, each with the node that gives it (of an ONNX graph), and how
    Polygraphy runs it with some of them as outputs.
    """

    name: str
    tensors: Mapping[str, Any]
    runner: Callable[[Sequence[str]], Any]


def diagnose(
    store: Store, role: Role, progress: Progress, *, target: str, variant: str = "", against: Store | None = None
) -> Diagnosis:
    """Compare a form (`variant`), or what a target makes of a graph, with the exported graph on the CPU.

    `against`: the store whose exported graph is right, where it is not this one. The inputs and limits are the gates'.
    RequestError where both are the same; EngineMissing; ImportError without Polygraphy, BackendUnavailable without the
    target's package or its GPU; ExportError where one does not run.
    """
    if not variant and target == "onnxruntime" and against is None:
        message = "there is nothing to compare: the exported graph on the CPU is what others are compared with"
        raise RequestError(message, field="variant", hint="name a --variant, a --target, or a store --against it")
    right = against or store
    made = {graph.precision for graph in store.manifest().artefacts if graph.identity[::3] == (role, variant)}
    precision = "fp16" if target not in PROVIDERS or made == {"fp16"} else "fp32"
    exact, graph = right.find(role, "onnx", precision), store.find(role, "onnx", precision, variant)
    facts, limit = right.manifest().model, FP32_RELATIVE
    feeds = trials.of(role, facts, precision == "fp16", graph.inputs)
    if target not in PROVIDERS or facts.size_step > LATENT:
        feeds = feeds[:1]  # an engine is built for one shape, and graphs of old stores take no odd one
    if precision == "fp16":
        own = FP16_RATIO * exact.parity.get(TORCH_FP16, np.inf)
        limit = min(FP16_RELATIVE.get(role.part, FP16_RELATIVE["encode"]), own)
    reference = _onnxruntime(right, exact, "onnxruntime")
    if target in PROVIDERS:
        return _first_apart(_onnxruntime(store, graph, target), reference, feeds, limit, progress)
    return _first_apart(_tensorrt(store, graph, target, feeds[0]), reference, feeds, limit, progress)


def text(found: Diagnosis) -> str:
    """A diagnosis for people."""
    pair = f"{found.candidate} beside {found.reference}, limit {found.limit:.1e}"
    if found.tensor is None:
        return f"{pair}: all {found.compared} tensors agree that both compute, of {found.tensors}"
    inputs = ", ".join(f"{name} {error:.1e}" for name, error in found.inputs.items()) or "none that both compute"
    return (
        f"{pair}: {found.compared - 1} tensors agree, then\n"
        f"{found.tensor} of {found.node} ({found.operator}) has a relative error of {found.error:.1e}\n"
        f"of its own inputs: {inputs}"
    )


def _onnxruntime(store: Store, artefact: Artefact, target: str) -> Side:
    """A graph on ONNX Runtime. On the CPU the CUDA form is taken apart into ONNX's own operators."""
    import onnx_ir as ir
    from polygraphy.backend.onnx import modify_outputs
    from polygraphy.backend.onnxrt import OnnxrtRunner

    from clipskip.engines.forms.expand import expand

    model = ir.load(store.verify(artefact))
    nodes = {value.name: node for node in model.graph for value in node.outputs if value.name}
    if artefact.variant == "cuda" and target == "onnxruntime":
        expand(model)  # what is new in it may have the name of a tensor that the form lacks: it is none of `nodes`
    proto, weights = ir.to_proto(model), [store.root / record.path for record in artefact.files[1:]]

    def runner(tensors: Sequence[str]) -> Any:
        marked = modify_outputs(proto, outputs=list(tensors), copy=True).SerializeToString()
        return OnnxrtRunner(lambda: _session(marked, weights, PROVIDERS[target]))

    return Side(f"{artefact.identity} of {store.root} on {target}", nodes, runner)


def _session(graph: bytes, weights: Sequence[Path], providers: Sequence[str]) -> Any:
    """A session of a graph whose weights are in these files."""
    ort = gpu.onnxruntime()
    if providers[0] not in (present := ort.get_available_providers()):
        hint = hints.install("onnxruntime-gpu[cuda,cudnn]")
        raise BackendUnavailable(f"this ONNX Runtime has no {providers[0]}, only {', '.join(present)}", hint=hint)
    if providers[0] == CUDA:
        ort.preload_dlls()
    return gates.session(graph, weights, providers)


def _tensorrt(store: Store, graph: Artefact, target: str, feeds: Arrays) -> Side:
    """A graph on TensorRT, whose engine is built anew for every group of tensors."""
    trt = load_builder(target)
    gpu.check_driver(gpu.cuda_runtime())
    from polygraphy import config

    config.USE_TENSORRT_RTX = target == "tensorrt-rtx"  # before it imports the package for the first time
    from polygraphy.backend.trt import (
        EngineFromNetwork,
        ModifyNetworkOutputs,
        NetworkFromOnnxPath,
        PostprocessNetwork,
        TrtRunner,
    )

    shapes = {name: (array.shape,) * 3 for name, array in feeds.items()}
    job = Job(target, str(store.verify(graph)), "", shapes)
    parsed = NetworkFromOnnxPath(job.onnx, strongly_typed=True)
    outputs = [port.name for port in graph.outputs]  # they stay: a picture's bytes may only be an output

    def decompose(network: Any) -> None:
        """Let TensorRT take every attention apart: beside tensors that are asked for it has no kernel for them."""
        for layer in network:
            if layer.type == trt.LayerType.ATTENTION_INPUT:
                layer.__class__ = trt.IAttentionInputLayer  # the binding's own way to downcast
                layer.attention.decomposable = True

    def runner(tensors: Sequence[str]) -> Any:
        network = ModifyNetworkOutputs(parsed, outputs=list({*tensors, *outputs}))
        network = PostprocessNetwork(network, decompose)
        return TrtRunner(EngineFromNetwork(network, lambda builder, network: configure(trt, builder, job)))

    layers = parsed()[1]
    names = {layer.get_output(index).name: None for layer in layers for index in range(layer.num_outputs)}
    return Side(f"{graph.role} of {store.root} on {target}", names, runner)


def _first_apart(
    candidate: Side, reference: Side, feeds: Sequence[Arrays], limit: float, progress: Progress
) -> Diagnosis:
    names = [name for name in reference.tensors if name in candidate.tensors]
    facts = Diagnosis(candidate.name, reference.name, limit, len(reference.tensors))
    for start in range(0, len(names), GROUP):
        group = names[start : start + GROUP]
        errors = _errors(candidate, reference, group, feeds)
        for count, name in enumerate(group, start + 1):
            if errors[name] > limit:
                node = reference.tensors[name]
                read = [value.name for value in node.inputs if value is not None and value.name in names]
                inputs = _errors(candidate, reference, read, feeds) if read else {}
                found = {"tensor": name, "node": node.name, "operator": node.op_type, "error": errors[name]}
                return replace(facts, compared=count, inputs=inputs, **found)
        progress(f"{start + len(group)} of {len(names)} tensors agree")
    return replace(facts, compared=len(names))


def _errors(candidate: Side, reference: Side, names: Sequence[str], feeds: Sequence[Arrays]) -> dict[str, float]:
    """Of each tensor the largest error over all inputs."""
    from polygraphy.comparator import Comparator
    from polygraphy.logger import G_LOGGER

    try:
        with G_LOGGER.verbosity(G_LOGGER.CRITICAL), redirect_stdout(sys.stderr):
            runs = Comparator.run([side.runner(names) for side in (candidate, reference)], data_loader=list(feeds))
    except ClipskipError:
        raise
    except Exception as error:  # of whichever library runs
        message = f"{candidate.name} and {reference.name} cannot be run with their inner tensors as results: {error}"
        raise ExportError(message) from error
    (_, got), (_, exact) = runs
    return {name: max(distance(a[name], b[name]) for a, b in zip(got, exact, strict=True)) for name in names}


def distance(got: Array, exact: Array) -> float:
    """The relative L2 error of a whole tensor. What was rounded to whole numbers may fall either way."""
    if got.shape != exact.shape or not np.array_equal(finite := np.isfinite(exact), np.isfinite(got)):
        return WORST
    wide = exact[finite].astype(np.float64)
    apart = np.abs(got[finite] - wide)
    if exact.dtype == np.uint8 or (exact.dtype.kind == "f" and np.array_equal(wide, np.rint(wide))):
        apart = np.where(apart == 1, 0, apart)
    return float(np.linalg.norm(apart)) / max(float(np.linalg.norm(wide)), 1e-12)
