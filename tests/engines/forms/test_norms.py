"""Norms in float16 give what norms in float32 between casts give, to half precision."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from clipskip.engines import gates
from clipskip.engines.forms.fused_norms import layer_norm
from clipskip.engines.forms.norms import half_norm, keep_spoiled, kept, probe
from clipskip.engines.forms.rewrite import rewrite

KINDS = {"GroupNormalization": "num_groups = 2", "LayerNormalization": "axis = -1"}


def model(kind: str) -> ir.Model:
    """z = norm(norm(x)), both with the same weights."""
    weights = ", ".join("12345678"[: 4 if kind == "GroupNormalization" else 8])
    text = f"""<ir_version: 10, opset_import: ["" : 23]>
    g (float16[N, 4, 8] x) => (float16[N, 4, 8] z)
        <float[{len(weights.split())}] weight = {{{weights}}}, float[N, 4, 8] wide, float[N, 4, 8] normal,
         float16[N, 4, 8] half, float[N, 4, 8] again, float[N, 4, 8] second> {{
        wide = Cast <to = 1>(x)
        normal = {kind} <{KINDS[kind]}, epsilon = 0.001>(wide, weight, weight)
        half = Cast <to = 10>(normal)
        again = Cast <to = 1>(half)
        second = {kind} <{KINDS[kind]}, epsilon = 0.001>(again, weight, weight)
        z = Cast <to = 10>(second)
    }}"""
    return ir.from_proto(onnx.parser.parse_model(text))


@pytest.mark.parametrize("kind", KINDS)
def test_the_casts_around_a_norm_go_and_its_sums_stay_in_float32(kind: str) -> None:
    before = model(kind)
    after = before.clone()
    assert rewrite(after, [half_norm]) == {"half_norm": 2}
    assert [(node.op_type, node.attributes["stash_type"].as_int()) for node in after.graph] == [(kind, 1)] * 2
    assert list(after.graph.initializers) == ["weight.float16"]
    wide, half = (run(each)["z"].astype(np.float64) for each in (before, after))
    assert gates.relative_l2(half, wide) < 2e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_norm_that_float16_would_spoil_keeps_its_casts(kind: str) -> None:
    graph = model(kind)
    result = run(probe(graph))
    assert result.keys() == {"z", "normal", "second"}
    keep_spoiled(graph, [result | {"second": result["second"] * np.nan}])  # of which nothing can be said
    assert kept(graph) == []
    keep_spoiled(graph, [result | {"normal": result["normal"] - 1e5}])  # beyond float16, but for a bias of 1e5
    assert kept(graph) == ["weight"]
    assert rewrite(graph, [half_norm, layer_norm]) == {"half_norm": 1, "layer_norm": 0}
    assert [node.op_type for node in graph.graph] == ["Cast", kind, "Cast", kind]


def run(graph: ir.Model) -> dict[str, np.ndarray]:
    x = np.random.default_rng(0).standard_normal((3, 4, 8)).astype(np.float16)
    return dict(gates.run(ir.to_proto(graph).SerializeToString(), [{"x": x}])[0])
