"""Engines and forms for the doubles, published into a store as the real builders publish real ones."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import onnx

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


def publish_plans(
    store: Store, options: BuildOptions | None = None, precision: str = "fp16", variant: str = ""
) -> Store:
    """Plans that compute the store's graphs of one precision, as artefacts of TensorRT-RTX, under any name."""
    ranges = axis_ranges(store.manifest().model, options or BuildOptions())
    graphs = [graph for graph in store.manifest().artefacts if graph.identity[1:] == ("onnx", precision, "")]
    recipes = {
        Identity(graph.role, TARGET, precision, variant): {
            "model": graph.model,
            "graph": graph.key,
            "axes": repr(ranges),
        }
        for graph in graphs
    }
    with publish.build(store.root, TARGET, recipes, progress=lambda line: None) as draft:
        for graph in graphs if draft is not None else ():
            axes = axes_of(graph.inputs, ranges)
            shapes = {name: (low, high) for name, (low, _, high) in profiles(graph.inputs, axes).items()}
            (draft.folder / f"{graph.role}.engine").write_bytes(plan(store.verify(graph).resolve(), shapes))
            provenance = {"package": f"tensorrt_rtx {VERSION}", "compute capability": "default", "device": "any"}
            artefact = Artefact(graph.role, TARGET, precision, graph.inputs, graph.outputs, axes, {}, provenance)
            artefact = replace(artefact, variant=variant)
            draft.add(artefact, [f"{graph.role}.engine"])
    return Store(store.root)


def publish_forms(store: Store, spoilt: float = 1.0) -> Store:
    """Forms for CUDA that are the store's fp16 graphs with the last weight in a file of their own, times `spoilt`."""
    graphs = [graph for graph in store.manifest().artefacts if graph.identity[1:] == ("onnx", "fp16", "")]
    recipes = {
        graph.identity._replace(variant="cuda"): {"model": graph.model, "graph": graph.key, "spoilt": str(spoilt)}
        for graph in graphs
    }
    with publish.build(store.root, "onnxruntime-cuda", recipes, progress=lambda line: None) as draft:
        for graph in graphs if draft is not None else ():
            stem, path = f"{graph.role}-cuda", store.verify(graph)
            model, table = onnx.load(path, load_external_data=False), {}
            stored = [tensor for tensor in model.graph.initializer if tensor.external_data]
            for tensor in stored:
                place = {entry.key: entry.value for entry in tensor.external_data}
                dtype, file = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type), path.parent / place["location"]
                offset, size = int(place.get("offset", 0)), dtype.itemsize * math.prod(tensor.dims)
                if tensor is stored[-1]:
                    array = np.fromfile(file, dtype, size // dtype.itemsize, offset=offset) * dtype.type(spoilt)
                    (draft.folder / f"{stem}.bin").write_bytes(array.tobytes())
                    tensor.raw_data = array.tobytes()
                    onnx.external_data_helper.set_external_data(tensor, f"{stem}.bin", 0, size)
                    tensor.ClearField("raw_data")
                    file, offset = draft.folder / f"{stem}.bin", 0
                table[tensor.name] = file.name, offset, size, dtype.name, list(tensor.dims)
            onnx.save(model, draft.folder / f"{stem}.onnx")
            (draft.folder / f"{stem}.json").write_text(json.dumps(table))
            form = replace(graph, variant="cuda", files=graph.files[1:], ingredients={})
            draft.add(form, [f"{stem}.onnx", f"{stem}.json", *([f"{stem}.bin"] if stored else [])])
    return Store(store.root)


def simulated(
    cuda: SimulatedCuda | None = None, settings: Settings | None = None, index: int = 0
) -> tuple[TensorRT, SimulatedDevice]:
    """Our TensorRT backend on the doubles, and the device for its trace and faults."""
    cuda = cuda or SimulatedCuda()
    return TensorRT(SimulatedTensorRT(cuda), Cuda(cuda, index), TARGET, settings), cuda.devices[index]
