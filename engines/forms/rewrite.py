"""Rewriting a graph by patterns, each a function that knows one kind of node. Knows nothing of what they are for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.external_data import convert_tensors_to_external
from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass
from onnx_ir.tape import Tape

from clipskip.engines.forms import origins

MICROSOFT = "com.microsoft"  # the domain of ONNX Runtime's own operators
SMALL = 4096  # bytes of a weight that may as well be in the graph

# A pattern looks at one node, the last that it would replace. Where it fits, it writes the new nodes on the tape and
# tells which value stands for which old one; a new value takes the old one's name. What nobody reads any more goes.
Replaced: TypeAlias = "Mapping[ir.Value, ir.Value] | None"
Pattern: TypeAlias = Callable[[ir.Node, Tape], Replaced]


def rewrite(model: ir.Model, patterns: Sequence[Pattern]) -> dict[str, int]:
    """Apply each pattern in turn at every node, in place; how often each fitted, by its name."""
    return {pattern.__name__: sum(_apply(model, pattern)) for pattern in patterns}


def _apply(model: ir.Model, pattern: Pattern) -> Iterator[bool]:
    graph = model.graph
    for node in list(graph):
        tape = Tape()
        if node.graph is not graph or not node.inputs or not any(map(readers, node.outputs)):
            continue  # a constant, or an earlier fit replaced it
        replaced = pattern(node, tape)
        if replaced is None:
            continue
        graph.insert_after(node, tape.nodes)
        for value in tape.initializers:
            graph.register_initializer(value)
        for old, new in replaced.items():
            if new.producer() in tape.nodes:
                new.name, new.type, new.shape = old.name, old.type, old.shape
                old.name = f"{old.name} as it was"
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        yield True
    graph.sort()
    RemoveUnusedNodesPass()(model)
    for domain in {node.domain for node in graph} - model.opset_imports.keys():
        model.opset_imports[domain] = 1
    RemoveUnusedOpsetsPass()(model)


def made_by(value: ir.Value | None, kind: str) -> ir.Node | None:
    """The node of this kind that gives the value, if one does."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == kind else None


def only_use(value: ir.Value, kind: str) -> ir.Node | None:
    """The node of this kind that reads the value, if nobody else does."""
    nodes = [use.node for use in value.uses()]
    return nodes[0] if readers(value) == len(nodes) == 1 and nodes[0].op_type == kind else None


def readers(value: ir.Value) -> int:
    """How many read the value; whoever runs the graph counts, where it is a result."""
    return len(value.uses()) + value.is_graph_output()


def constant(value: ir.Value | None) -> npt.NDArray[np.generic] | None:
    """What is stored for the value, or None where it is computed."""
    return value.const_value.numpy() if value is not None and value.const_value is not None else None


def derived(
    value: ir.Value, kind: str, tape: Tape, make: Callable[[npt.NDArray[Any]], npt.NDArray[Any]], dtype: ir.DataType
) -> ir.Value:
    """A weight made of a stored one, when it is written; once, however many ask. `kind` ends its name."""
    name, stored = f"{value.name}.{kind}", value.const_value
    assert stored is not None
    if (there := _initializer(name, value.graph, tape)) is not None:
        return there
    shape = ir.Shape(make(np.broadcast_to(np.uint8(0), stored.shape.numpy())).shape)
    return tape.initializer(ir.LazyTensor(lambda: ir.tensor(make(stored.numpy())), dtype, shape, name=name))


def stored_apart(model: ir.Model, path: Path) -> bool:
    """Write the new weights, all but small ones of no parameter, to a file beside the graph; whether there were any."""
    stored = [(value, value.const_value) for value in model.graph.initializers.values()]
    new = [(value, tensor) for value, tensor in stored if not isinstance(tensor, ir.ExternalTensor | None)]
    large = [(value, tensor) for value, tensor in new if tensor.nbytes > SMALL or origins.of(value)]
    if large:
        written = convert_tensors_to_external([tensor for _, tensor in large], path.parent, path.name)
        for (value, _), tensor in zip(large, written, strict=True):
            value.const_value = tensor
    return bool(large)


def numbers(values: Sequence[int], node: ir.Node, tape: Tape) -> ir.Value:
    """Axes or a shape, stored once in the node's graph."""
    name = f"numbers {' '.join(map(str, values))}"
    there = _initializer(name, node.graph, tape)
    return there or tape.initializer(ir.tensor(np.array(values, np.int64)), name)


def _initializer(name: str, graph: ir.Graph | ir.Function | None, tape: Tape) -> ir.Value | None:
    """What the graph or the tape stores by this name."""
    stored = graph.initializers.get(name) if isinstance(graph, ir.Graph) else None
    return stored or next((value for value in tape.initializers if value.name == name), None)


def like(node: ir.Node, tape: Tape, inputs: Sequence[ir.Value | None], **attributes: int | float) -> ir.Value:
    """What a node of the same kind, name and attributes gives for these inputs; `attributes` are new or other ones."""
    value = tape.op(node.op_type, inputs, attributes, domain=node.domain, name=node.name)
    new = value.producer()
    assert new is not None
    new.attributes.update({name: entry for name, entry in node.attributes.items() if name not in attributes})
    return value


def permutation(transpose: ir.Node) -> list[int]:
    """Which axis of its input each axis of its output is."""
    return list(transpose.attributes["perm"].as_ints())
