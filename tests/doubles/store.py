"""Engines for the doubles of TensorRT and CUDA, published into a store as the real builder publishes real ones."""

from __future__ import annotations

from clipskip.backends.cuda import Cuda
from clipskip.backends.tensorrt import Settings, TensorRT
from clipskip.engines import publish
from clipskip.engines.manifest import Artefact, Identity
from clipskip.engines.shapes import BuildOptions, axes_of, axis_ranges, profiles
from clipskip.engines.store import Store
from doubles.cuda import SimulatedCuda
from doubles.device import SimulatedDevice
from doubles.tensorrt import VERSION, SimulatedTensorRT, plan

TARGET = "tensorrt-rtx"


def publish_plans(store: Store, options: BuildOptions | None = None, precision: str = "fp16") -> Store:
    """Plans that compute the store's graphs of one precision, as artefacts of TensorRT-RTX."""
    ranges = axis_ranges(store.manifest().model, options or BuildOptions())
    graphs = [graph for graph in store.manifest().artefacts if graph.identity[1:] == ("onnx", precision, "")]
    recipes = {
        Identity(graph.role, TARGET, precision): {"model": graph.model, "graph": graph.key, "axes": repr(ranges)}
        for graph in graphs
    }
    with publish.build(store.root, TARGET, recipes, progress=lambda line: None) as draft:
        for graph in graphs if draft is not None else ():
            axes = axes_of(graph.inputs, ranges)
            shapes = {name: (low, high) for name, (low, _, high) in profiles(graph.inputs, axes).items()}
            (draft.folder / f"{graph.role}.engine").write_bytes(plan(store.verify(graph).resolve(), shapes))
            provenance = {"package": f"tensorrt_rtx {VERSION}", "compute capability": "default", "device": "any"}
            artefact = Artefact(graph.role, TARGET, precision, graph.inputs, graph.outputs, axes, {}, provenance)
            draft.add(artefact, [f"{graph.role}.engine"])
    return Store(store.root)


def simulated(
    cuda: SimulatedCuda | None = None, settings: Settings | None = None, index: int = 0
) -> tuple[TensorRT, SimulatedDevice]:
    """Our TensorRT backend on the doubles, and the device for its trace and faults."""
    cuda = cuda or SimulatedCuda()
    return TensorRT(SimulatedTensorRT(cuda), Cuda(cuda, index), TARGET, settings), cuda.devices[index]
