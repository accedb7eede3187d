"""The CUDA form of the sample model: how many nodes of which kind it has, and that it computes what was exported."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest
from onnx_ir.tape import Tape
from small_forms import graph, kinds

from clipskip.engines import gpu
from clipskip.engines.forms.attention import flat_attention
from clipskip.engines.forms.cuda import PATTERNS
from clipskip.engines.forms.expand import expand
from clipskip.engines.forms.rewrite import Pattern, derived, like, made_by, rewrite
from clipskip.engines.manifest import Artefact, Role
from clipskip.engines.store import Store

ROLES = ["text-00", "text-12", "step", "decode", "encode"]
SIZES = {"B": 2, "N": 4, "T": 77, "h": 17, "w": 9, "R": 2, "E": 2}
KINDS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}

# What CUDA launches a kernel for, GroupNorm two of them, but for what a graph does only to sizes. More than that is a
# slower form: a norm in pieces, a transposition around attention or a convolution, a pair of casts, a bias of its own.
BUDGET = {
    "text-12": {"MatMul": 72, "Add": 49, "Attention": 12, "SkipLayerNormalization": 24, "LayerNormalization": 1},
    "step": {
        "NhwcConv": 66, "GroupNorm": 12, "SkipGroupNorm": 27, "Attention": 20, "SkipLayerNormalization": 20,
        "LayerNormalization": 10, "MatMul": 83, "Gemm": 9, "BiasAdd": 10, "Add": 26, "Split": 14, "Transpose": 3,
        "Cast": 3, "Gelu": 10, "Sigmoid": 2, "Resize": 3, "ReduceSum": 2,
    },
    "decode": {
        "NhwcConv": 28, "GroupNorm": 14, "SkipGroupNorm": 8, "Attention": 1, "MatMul": 4, "Add": 8, "Transpose": 2,
        "Resize": 3,
    },
    "encode": {
        "NhwcConv": 20, "GroupNorm": 10, "SkipGroupNorm": 4, "Attention": 1, "MatMul": 4, "Add": 7, "Transpose": 1,
    },
}  # fmt: skip
NEVER = {"Conv", "GroupNormalization", "Einsum", "GatherND", "InstanceNormalization"}


def half_norm(node: ir.Node, tape: Tape) -> Mapping[ir.Value, ir.Value] | None:
    """A norm between casts as one that takes half precision, which is how a graph may be exported too."""
    norm = node.inputs[0].producer() if node.op_type == "Cast" and node.inputs[0] is not None else None
    wide = made_by(norm.inputs[0], "Cast") if norm is not None and "Normalization" in norm.op_type else None
    if norm is None or wide is None:
        return None
    weights = [
        derived(value, "half", tape, lambda array: array.astype(np.float16), ir.DataType.FLOAT16)
        for value in norm.inputs[1:]
        if value is not None
    ]
    return {node.outputs[0]: like(norm, tape, [wide.inputs[0], *weights], stash_type=1)}


INPUTS: dict[str, tuple[Pattern, ...]] = {"as exported": (), "flat and half": (flat_attention, half_norm)}


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def store(request: pytest.FixtureRequest) -> Store:
    fixture = {"fp32": "sample_store", "fp16": "sample_fp16_store"}[request.param]
    return Store(request.getfixturevalue(fixture))


def exported(store: Store, role: str) -> tuple[Artefact, Path]:
    precision = "fp16" if "fp16" in store.root.name else "fp32"
    artefact = store.find(Role.parse(role), "onnx", precision)
    return artefact, store.root / artefact.files[0].path


@cache
def run(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    """What the graph makes of arbitrary inputs: two pictures of a size that no block halves evenly."""
    options = gpu.onnxruntime().SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = gpu.onnxruntime().InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    rng, feeds = np.random.default_rng(0), {}
    for port in session.get_inputs():
        shape = [SIZES.get(axis, 64) if isinstance(axis, str) else axis for axis in port.shape]
        draw = rng.integers(0, 255, shape) if port.type in ("tensor(uint8)", "tensor(int64)") else None
        values = rng.standard_normal(shape) if draw is None else draw
        feeds[port.name] = values.astype(KINDS.get(port.type, np.uint8))
    if "rows" in feeds:
        feeds |= {"rows": np.arange(4) % 2, "timestep": np.float32([1, 999])}
        feeds["update"][:, 0] = np.eye(8)[5]  # the network's output alone: anything added to it would hide an error
    names = [port.name for port in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


@pytest.mark.parametrize("given", INPUTS)
@pytest.mark.parametrize("role", ROLES)
def test_a_form_computes_what_was_exported(store: Store, role: str, given: str, tmp_path: Path) -> None:
    artefact, path = exported(store, role)
    model = ir.load(path)
    rewrite(model, INPUTS[given])
    rewrite(model, PATTERNS[artefact.role.part])
    expand(model)
    ir.external_data.load_to_model(model)
    ir.save(model, tmp_path / path.name)
    for name, got in run(tmp_path / path.name).items():
        expected, got = run(path)[name].astype(np.float64), got.astype(np.float64)
        if role == "decode":
            assert np.abs(got - expected).max() <= (1 if artefact.precision == "fp16" else 0)
        else:
            limit = (
                min(2 * artefact.parity.get("torch_fp16_relative_l2", 1), 4e-3)
                if artefact.precision == "fp16"
                else 1e-5
            )
            assert np.linalg.norm(got - expected) <= limit * np.linalg.norm(expected)


def test_nodes_without_inputs_are_no_stumbling_block() -> None:
    model = graph("(float[2] x) => (float[2] y) { c = Constant<value_floats = [1.0, 2.0]>()\n y = Add(x, c) }")
    assert not any(rewrite(model, [pattern for patterns in PATTERNS.values() for pattern in patterns]).values())


@pytest.mark.parametrize("given", INPUTS)
@pytest.mark.parametrize("role", BUDGET)
def test_a_form_has_no_more_nodes_than_its_budget(store: Store, role: str, given: str) -> None:
    artefact, path = exported(store, role)
    model = ir.load(path)
    rewrite(model, INPUTS[given])
    rewrite(model, PATTERNS[artefact.role.part])
    found = kinds(model)
    assert not NEVER & found.keys()
    assert {kind: count for kind, count in found.items() if count > BUDGET[role].get(kind, count)} == {}


@pytest.mark.parametrize("role", ["text-12", "step", "decode", "encode"])
def test_a_tensor_of_an_exported_name_is_the_exported_one(sample_store: Path, role: str, tmp_path: Path) -> None:
    """That is how the first tensor that goes astray is found. Its channels may be last: then the name says so."""
    artefact, path = exported(Store(sample_store), role)
    form, graph = ir.load(path), ir.load(path)
    rewrite(form, PATTERNS[artefact.role.part])
    expand(form)
    there = {value.name: value for node in graph.graph for value in node.outputs if value.dtype == ir.DataType.FLOAT}
    here = {str(value.name): value for node in form.graph for value in node.outputs}
    shared = {name: value for name, value in here.items() if name.removesuffix(".nhwc") in there}
    assert len(shared) > 0.7 * len([value for value in here.values() if value.dtype == ir.DataType.FLOAT])
    for model, values in ((form, shared), (graph, {name: there[name.removesuffix(".nhwc")] for name in shared})):
        model.graph.outputs.extend(value for value in values.values() if value not in model.graph.outputs)
        ir.external_data.load_to_model(model)
        ir.save(model, tmp_path / f"{model is form}.onnx")
    got, expected = run(tmp_path / "True.onnx"), run(tmp_path / "False.onnx")
    for name in shared:
        array, right = got[name], expected[name.removesuffix(".nhwc")]
        right = right.transpose(0, 2, 3, 1) if name.endswith(".nhwc") else right
        assert np.allclose(array, right, rtol=1e-3, atol=1e-4 * np.abs(right[np.isfinite(right)]).max()), name
