"""Torch modules -> ONNX graphs whose weights lie in one shared file, by content. Knows nothing of checkpoints."""

from __future__ import annotations

import ast
import copy
import hashlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from clipskip.engines import files, weights
from clipskip.engines.errors import ExportError
from clipskip.engines.forms import origins
from clipskip.engines.manifest import Dim
from clipskip.engines.weights import Origin
from clipskip.export.graphs import Graph

OPSET = 23  # at 24 ONNX Runtime's causal Attention gave NaN on the CPU
PAGE = 4096
SMALLEST = 1024  # bytes; smaller weights stay in the graph, but for those that a LoRA changes
_EXAMPLE = {"B": 2, "N": 3, "R": 2, "E": 3, "T": 154, "h": 32, "w": 48}  # no size may collapse inside the networks


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's warnings about itself from our caller, who can do nothing about them."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch._export", "torch.__trace")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def trace(graph: Graph, names: Mapping[Tensor, str]) -> ir.Model:
    """The graph in ONNX, with the names of its ports and of the parameters that it holds. ExportError."""
    # Bounds for the trace alone, where code branches: no layer may see a size of 1, and from 64 images on diffusers
    # makes memory contiguous that is so already. Without them torch traces three times.
    bounds = {"B": (1, 63), "h": (9, 2**16), "w": (9, 2**16)}
    dims = {name: torch.export.Dim(name, min=low, max=high) for name, (low, high) in bounds.items()}
    dims |= {name: torch.export.Dim(name) for name in "NRET"}
    axes = [{axis: size for axis, size in enumerate(port.shape) if isinstance(size, Dim)} for port in graph.inputs]
    dims |= {str(d): d.factor * dims[d.axis] for sizes in axes for d in sizes.values() if d.factor > 1}
    shapes = tuple({axis: dims[str(size)] for axis, size in sizes.items()} for sizes in axes)
    named = sum(each.kind is each.POSITIONAL_OR_KEYWORD for each in signature(graph.module.forward).parameters.values())
    examples = tuple(torch.zeros(port.sized(_EXAMPLE), dtype=getattr(torch, port.dtype)) for port in graph.inputs)
    dynamic: tuple[Any, ...] = (*shapes[:named], *[shapes[named:]] * (len(shapes) > named))  # the rest is one argument
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(graph.module.eval(), examples, dynamic_shapes=dynamic)
            try:
                model = _translated(_plain(program), graph)
            except torch.onnx.errors.OnnxExporterError:  # an operator that only a second trace takes apart
                model = _translated(program, graph)
    except Exception as error:  # those of torch.export have no common type
        raise files.shortage(error) or ExportError(f"torch could not export {graph.role}: {error}") from error
    _mark(model, graph.module, names)
    _tidy(model)
    for value, port in zip([*model.graph.inputs, *model.graph.outputs], [*graph.inputs, *graph.outputs], strict=True):
        if value.name != port.name or value.dtype is None or value.dtype.numpy() != port.dtype:
            raise ExportError(f"the exporter gave {value.name} {value.dtype} where {port.name} {port.dtype} belongs")
        value.shape = ir.Shape([size if isinstance(size, int) else str(size) for size in port.shape])
    return model


def _translated(program: ExportedProgram, graph: Graph) -> ir.Model:
    """What torch's exporter makes of the program. OnnxExporterError."""
    written = torch.onnx.export(
        program,
        input_names=[port.name for port in graph.inputs],
        output_names=[port.name for port in graph.outputs],
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    return cast(torch.onnx.ONNXProgram, written).model  # None is for the old exporter


def _plain(program: ExportedProgram) -> ExportedProgram:
    """The program in operators that have a counterpart in ONNX, and that says so.

    The exporter would trace it once more to take the others apart, which takes as long as the first trace.
    """
    aten, plain = torch.ops.aten, copy.copy(program)
    for node in list(program.graph.nodes):
        if node.target is aten.to.dtype:
            node.target, node.args, node.kwargs = aten._to_copy.default, node.args[:1], {"dtype": node.args[1]}
        elif node.target is aten.rsub.Scalar:
            node.target, node.args = aten.sub.Tensor, (node.args[1], node.args[0])
        elif node.target is aten.reshape.default and not any(user.op == "output" for user in node.users):
            shape, new = (str(each.meta["val"].shape) for each in (node.args[0], node))
            if new == shape:
                node.replace_all_uses_with(node.args[0])
                program.graph.erase_node(node)
    vars(plain)["run_decompositions"] = lambda table: plain
    return plain


def _mark(model: ir.Model, module: nn.Module, names: Mapping[Tensor, str]) -> None:
    """Tell each weight of a layer which parameter it holds; where two layers share one, give the second its own.

    The exporter turns weights over and renames them, but a node keeps the path of the layer that it is from.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for node in model.graph:
        value = node.inputs[1] if node.op_type in ("Conv", "Gemm", "MatMul") else None
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        parameter = parameters.get(f"{scopes[-2]}.weight") if len(scopes) > 1 else None
        if value is None or value.const_value is None or parameter is None or parameter not in names:
            continue
        stored, own = value.const_value.numpy(), parameter.detach().numpy()
        orders = [tuple(range(own.ndim)), tuple(reversed(range(own.ndim)))]
        order = next((order for order in orders if np.array_equal(stored, own.transpose(order))), None)
        if order is None:
            raise ExportError(f"the exporter changed {names[parameter]}")
        origin = Origin(((names[parameter], order),))
        if origins.of(value) not in (None, origin):
            value = ir.Value(
                name=f"{value.name}.{names[parameter]}",
                const_value=value.const_value,
                type=value.type,
                shape=value.shape,
            )
            model.graph.register_initializer(value)
            node.replace_input_with(1, value)
        origins.mark(value, origin)


def _tidy(model: ir.Model) -> None:
    """Drop source lines and inner shapes: they hold local paths and the exporter's own axis names."""
    model.producer_name, model.producer_version, model.doc_string = "clipskip", "", None
    model.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.shape = None
            value.metadata_props.clear()


def cut(model: ir.Model, outputs: Mapping[str, str]) -> ir.Model:
    """The part of the model that computes these outputs: name in the model -> name in the part."""
    graph = ir.convenience.extract(model.graph, inputs=list(model.graph.inputs), outputs=list(outputs))
    for output, name in zip(graph.outputs, outputs.values(), strict=True):
        output.name = name
    weights = graph.initializers
    ordered = {name: weights[name] for name in model.graph.initializers if name in weights}  # extract's order is random
    weights.clear()
    weights.update(ordered)
    return ir.Model(graph, ir_version=model.ir_version, producer_name=model.producer_name)


class Weights:
    """The file that several graphs read their weights from, each different tensor once and on a page of its own."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        self._places: dict[str, tuple[int, int]] = {}  # SHA-256 -> offset, length
        self._digests: dict[int, tuple[str, ir.TensorProtocol]] = {}  # the tensor is kept so that its id stays its own

    def save(self, model: ir.Model, path: Path) -> None:
        """Write the graph to `path` and its table, beside the weight file, and what is new of its weights to that."""
        inside = {name: value.const_value for name, value in model.graph.initializers.items()}
        for name, tensor in inside.items():
            if tensor is not None and (tensor.nbytes >= SMALLEST or origins.of(model.graph.initializers[name])):
                place, shape = self._place(tensor), ir.Shape(tensor.shape.numpy())
                outside = ir.ExternalTensor(self._name, *place, tensor.dtype, shape=shape, name=name)
                model.graph.initializers[name].const_value = outside
        self._file.flush()
        ir.save(model, path)
        path.with_suffix(weights.SUFFIX).write_text(weights.dumps(origins.table(model)))
        for name, tensor in inside.items():  # other graphs are still to be cut from this one
            model.graph.initializers[name].const_value = tensor

    def _place(self, tensor: ir.TensorProtocol) -> tuple[int, int]:
        if id(tensor) not in self._digests:
            data = np.ascontiguousarray(tensor.numpy()).data  # of most no copy, as `tobytes` makes one
            digest = hashlib.sha256(data).hexdigest()
            self._digests[id(tensor)] = digest, tensor
            if digest not in self._places:
                self._file.seek(-self._file.tell() % PAGE, 1)
                self._places[digest] = self._file.tell(), data.nbytes
                self._file.write(data)
        return self._places[self._digests[id(tensor)][0]]
