"""What the graphs of a store ask of a machine: operations and bytes, counted from their nodes. Runs nothing.

Counted are products and convolutions, one multiplication and one addition being two operations; weights are read once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx.numpy_helper import from_array, to_array
from onnx.reference import ReferenceEvaluator

from clipskip.engines.manifest import Artefact
from clipskip.engines.shapes import LATENT, TOKENS
from clipskip.engines.store import Store
from clipskip.errors import EngineIncompatible

Shape = Sequence[int | None]


def operations(artefact: Artefact, store: Store, size: int) -> int:
    """Of one run for one guided image of `size` pixels a side. EngineIncompatible where a shape cannot be told."""
    latent = size // LATENT
    axes = {"B": 1, "N": 2, "R": 2, "T": TOKENS, "E": 1, "h": latent, "w": latent}
    model = onnx.load(str(store.verify(artefact)), load_external_data=False)
    ports = {port.name: port.sized(axes) for port in artefact.inputs}
    for value in model.graph.input:
        for dim, length in zip(value.type.tensor_type.shape.dim, ports[value.name], strict=True):
            dim.dim_value = length
    shapes = inferred(model)
    total = 0
    for node in model.graph.node:
        if node.op_type in COUNTED:
            known = [shapes.get(name, ()) for name in (*[*node.input, "", ""][:3], node.output[0])]
            if any(None in shape for shape in known):
                raise EngineIncompatible(f"{artefact.role}: the shapes of {node.name} cannot be told from the graph")
            total += COUNTED[node.op_type](node, *known)
    return total


def inferred(model: Any) -> dict[str, Shape]:
    """The shape of every tensor. What is computed from shapes alone becomes a constant, or ONNX would not know more."""
    graph, operators = model.graph, {each.domain: each.version for each in model.opset_import}
    for node in graph.node:
        if node.op_type == "GroupNormalization":  # whose shape ONNX does not infer: that of its input
            node.op_type = "Identity"
            node.ClearField("attribute")
            del node.input[1:]
    graph.ClearField("value_info")
    graph.ClearField("output")
    numbers = {each.name: to_array(each) for each in graph.initializer if each.data_type == onnx.TensorProto.INT64}
    while True:
        told = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        dims = {value.name: value.type.tensor_type.shape.dim for value in (*told.input, *told.value_info)}
        shapes: dict[str, Any] = {name: [dim.dim_value or None for dim in lengths] for name, lengths in dims.items()}
        shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
        before = len(numbers)
        for node in list(graph.node):
            known = node.op_type == "Shape" and None not in shapes.get(node.input[0], [None])
            if known or (node.input and all(name in numbers for name in node.input)):
                given = {name: np.zeros(shapes[name], np.bool_) if known else numbers[name] for name in node.input}
                results = ReferenceEvaluator(node, opsets=operators).run(None, given)
                numbers |= dict(zip(node.output, results, strict=True))
                graph.initializer.extend(from_array(numbers[name], name) for name in node.output)
                graph.node.remove(node)
        if len(numbers) == before:
            return shapes


def product(node: Any, left: Any, right: Any, _bias: Any, out: Any) -> int:
    """A MatMul, or a Gemm whose first matrix may be transposed."""
    turned = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return int(2 * math.prod(out) * left[-2 if turned else -1])


def convolution(node: Any, _data: Any, weight: Any, _bias: Any, out: Any) -> int:
    return int(2 * math.prod(out) * math.prod(weight[1:]))  # of a group: channels that one output sees, height, width


def attention(node: Any, query: Any, key: Any, value: Any, _out: Any) -> int:
    """Scores and their sum of values, over [rows, tokens, width of all heads]; a causal mask saves nothing here."""
    return int(2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1]))


COUNTED = {"MatMul": product, "Gemm": product, "Conv": convolution, "Attention": attention}


def counts(store: Store, size: int) -> dict[str, dict[str, int]]:
    """Operations, and bytes of weights, by role: text at every depth, step, decode."""
    found = {}
    for artefact in store.manifest().artefacts:
        if (artefact.target, artefact.variant) == ("onnx", "") and artefact.role.part in ("text", "step", "decode"):
            found[str(artefact.role)] = {"flops": operations(artefact, store, size), "bytes": weights(artefact, store)}
    return found


def weights(artefact: Artefact, store: Store) -> int:
    """Bytes of the weights that a graph reads, which may be some of a shared file."""
    tensors = onnx.load(str(store.verify(artefact)), load_external_data=False).graph.initializer
    return sum(math.prod(each.dims) * onnx.helper.tensor_dtype_to_np_dtype(each.data_type).itemsize for each in tensors)
