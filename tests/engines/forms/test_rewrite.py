"""The mechanism alone: what a pattern says happens to the graph, and nothing else does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.tape import Tape

from clipskip.engines.forms.rewrite import (
    constant,
    derived,
    like,
    made_by,
    numbers,
    only_use,
    readers,
    rewrite,
    stored_apart,
)


def model() -> ir.Model:
    """y = -(-x) + 1, and z = -x beside it."""
    text = """<ir_version: 10, opset_import: ["" : 23]>
    g (float[N] x) => (float[N] y, float[N] z) <float[1] one = {1.0}> {
        first = Neg(x)
        second = Neg(first)
        y = Add(second, one)
        z = Neg(x)
    }"""
    return ir.from_proto(onnx.parser.parse_model(text))


def no_double_negation(node: ir.Node, tape: Tape) -> Mapping[ir.Value, ir.Value] | None:
    inner = made_by(node.inputs[0], "Neg") if node.op_type == "Neg" else None
    return {node.outputs[0]: tape.op("Identity", [inner.inputs[0]])} if inner is not None else None


def scaled(node: ir.Node, tape: Tape) -> Mapping[ir.Value, ir.Value] | None:
    if node.op_type != "Add":
        return None
    two = tape.initializer(ir.tensor(np.float32([2])), "two")
    return {node.outputs[0]: tape.op("Mul", [like(node, tape, node.inputs), two])}


def test_what_nobody_reads_any_more_is_gone_and_the_rest_stays() -> None:
    changed = model()
    assert rewrite(changed, [no_double_negation]) == {"no_double_negation": 1}
    assert [node.op_type for node in changed.graph] == ["Identity", "Add", "Neg"]


def test_a_new_value_takes_the_name_of_the_one_that_it_stands_for() -> None:
    changed = model()
    rewrite(changed, [no_double_negation, scaled])
    assert [value.name for value in changed.graph.outputs] == ["y", "z"]
    assert {"second", "y", "z"} <= {output.name for node in changed.graph for output in node.outputs}
    assert {"one", "two"} == changed.graph.initializers.keys()
    onnx.checker.check_model(ir.to_proto(changed))


def test_a_value_that_was_there_keeps_its_name_when_it_stands_for_another() -> None:
    changed = model()

    def no_first_negation(node: ir.Node, tape: Tape) -> Mapping[ir.Value, ir.Value] | None:
        inner = made_by(node.inputs[0], "Neg") if node.op_type == "Neg" else None
        return {node.outputs[0]: inner.outputs[0]} if inner is not None else None

    rewrite(changed, [no_first_negation])
    assert [output.name for node in changed.graph for output in node.outputs] == ["first", "y", "z"]


def test_a_pattern_that_fits_nowhere_changes_nothing() -> None:
    changed = model()
    before = str(changed)
    assert rewrite(changed, [lambda node, tape: None]) == {"<lambda>": 0}
    assert str(changed) == before


def test_what_a_pattern_may_ask_of_a_value() -> None:
    first, second, total, _ = model().graph
    assert made_by(second.outputs[0], "Neg") is second
    assert made_by(second.outputs[0], "Add") is None
    assert only_use(first.outputs[0], "Neg") is second
    assert only_use(total.outputs[0], "Neg") is None
    assert [readers(node.outputs[0]) for node in (first, total)] == [1, 1]
    stored = constant(total.inputs[1])
    assert stored is not None
    assert stored.tolist() == [1.0]
    assert constant(first.outputs[0]) is None


def doubled(node: ir.Node, tape: Tape) -> Mapping[ir.Value, ir.Value] | None:
    weight = node.inputs[1] if node.op_type == "Add" else None
    if weight is None:
        return None
    twice = derived(weight, "twice", tape, lambda array: np.concatenate([array, array]), ir.DataType.FLOAT)
    axes = numbers([0, 1], node, tape)
    return {node.outputs[0]: tape.op("Pretend", [node.inputs[0], twice, axes])}


def two_sums() -> ir.Model:
    text = """<ir_version: 10, opset_import: ["" : 23]>
    g (float[N] x) => (float[N] y) <float[1] one = {1.0}> { a = Add(x, one) y = Add(a, one) }"""
    return ir.from_proto(onnx.parser.parse_model(text))


def test_a_weight_is_derived_once_however_many_nodes_ask_for_it() -> None:
    changed = two_sums()
    assert rewrite(changed, [doubled]) == {"doubled": 2}
    assert set(changed.graph.initializers) == {"one.twice", "numbers 0 1"}
    twice = changed.graph.initializers["one.twice"]
    assert (twice.shape, twice.dtype) == (ir.Shape([2]), ir.DataType.FLOAT)
    stored = constant(twice)
    assert stored is not None
    assert stored.tolist() == [1.0, 1.0]


def test_large_new_weights_have_a_file_of_their_own(tmp_path: Path) -> None:
    changed = two_sums()
    assert not stored_apart(changed, tmp_path / "own.bin")
    assert not (tmp_path / "own.bin").exists()
    large = np.arange(2000, dtype=np.float32)
    changed.graph.initializers["one"].const_value = ir.tensor(large, name="one")
    assert stored_apart(changed, tmp_path / "own.bin")
    ir.save(changed, tmp_path / "changed.onnx")
    assert (tmp_path / "changed.onnx").stat().st_size < 1000
    loaded = constant(ir.load(tmp_path / "changed.onnx").graph.initializers["one"])
    assert loaded is not None
    assert np.array_equal(loaded, large)
    assert not stored_apart(changed, tmp_path / "another.bin")
