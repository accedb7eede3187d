"""Small graphs in ONNX's text form, before and after patterns, and the numbers of both on the CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from clipskip.engines import gpu
from clipskip.engines.forms.expand import expand
from clipskip.engines.forms.rewrite import Pattern, rewrite

Arrays = Mapping[str, npt.NDArray[np.generic]]
TYPES = {1: np.float32, 7: np.int64, 10: np.float16}


def graph(text: str) -> ir.Model:
    """A model from `(inputs) => (outputs) { nodes }`; inputs named w... become weights, and every value gets a type."""
    header = '<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]> g '
    parsed = onnx.parser.parse_model(header + text)
    model = ir.from_proto(parsed)
    for node in (node for node in model.graph if node.inputs):
        told = {"Shape": ir.DataType.INT64, "Equal": ir.DataType.BOOL, "Cast": node.attributes.get_int("to", 0)}
        for value in node.outputs:
            value.dtype = ir.DataType(told.get(node.op_type) or node.inputs[2 * (node.op_type == "Where")].dtype)  # type: ignore[union-attr]
    for value, array in zip(list(model.graph.inputs), draw(parsed).values(), strict=True):
        if value.name is not None and value.name.startswith("w"):
            value.const_value = ir.tensor(array, name=value.name)
            model.graph.inputs.remove(value)
            model.graph.register_initializer(value)
    return model


def draw(model: onnx.ModelProto) -> Arrays:
    """Arbitrary numbers for the inputs, whose shapes are fixed; indices are 0 and 1 in turn."""
    rng = np.random.default_rng(0)
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    for port in model.graph.input:
        shape = [axis.dim_value for axis in port.type.tensor_type.shape.dim]
        kind = TYPES[port.type.tensor_type.elem_type]
        index = np.arange(np.prod(shape, dtype=int)).reshape(shape) % 2
        arrays[port.name] = index if kind is np.int64 else rng.standard_normal(shape).astype(kind)
    return arrays


def run(model: ir.Model, feeds: Arrays | None = None) -> list[npt.NDArray[np.generic]]:
    proto = ir.to_proto(model)
    onnxruntime = gpu.onnxruntime()
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs: list[npt.NDArray[np.generic]] = session.run(None, dict(draw(proto) if feeds is None else feeds))
    return outputs


def kinds(model: ir.Model) -> dict[str, int]:
    """How many nodes of each kind there are, but for those that only look at shapes or say them anew."""
    free = ("Constant", "Identity", "Reshape", "Shape", "Squeeze", "Unsqueeze")
    numbers = [node for node in model.graph if node.outputs[0].dtype not in (ir.DataType.INT64, ir.DataType.INT32)]
    return dict(Counter(node.op_type for node in numbers if node.op_type not in free))


def rewritten(text: str, *patterns: Pattern, within: float = 1e-5) -> ir.Model:
    """What the patterns make of a graph; in ONNX's own operators it computes what the graph computed."""
    before = run(graph(text))
    model = graph(text)
    rewrite(model, patterns)
    defined = graph(text)
    rewrite(defined, patterns)
    expand(defined)
    assert {node.domain for node in defined.graph} <= {""}
    for expected, got in zip(before, run(defined), strict=True):
        assert got.dtype == expected.dtype
        scale = np.abs(expected.astype(np.float64)).max()
        assert np.abs(got.astype(np.float64) - expected.astype(np.float64)).max() <= within * scale
    return model
