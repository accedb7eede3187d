"""What stands around a network: the same numbers from kinder operators."""

from __future__ import annotations

import pytest
from small_forms import kinds, rewritten

from clipskip.engines.forms.arithmetic import gather, mixture


def test_rows_are_chosen_by_their_numbers() -> None:
    text = "(float[2,3,4] x, int64[5] rows) => (float[5,3,4] y) <int64[1] last = {-1}>"
    nodes = "i = Unsqueeze(rows, last)\n y = GatherND(x, i)"
    assert kinds(rewritten(f"{text} {{ {nodes} }}", gather)) == {"Gather": 1}


def test_indices_of_several_axes_stay() -> None:
    text = "(float[2,3,4] x, int64[5,2] i) => (float[5,4] y) { y = GatherND(x, i) }"
    assert kinds(rewritten(text, gather)) == {"GatherND": 1}


SUMMED = """(float[{b},2,3] mix, float[3,4,5,2] x) => (float[{b},2,4,5,2] y)
    <int64[1] three = {{3}}, int64[2] more = {{4, 5}}, int64[2] one = {{1, 2}}, int64[1] first = {{0}},
     float zero = {{0.5}}> {{
    t = Transpose<perm = [2, 0, 1]>(mix)
    a = Unsqueeze(t, three)
    w = Unsqueeze(a, more)
    p = Unsqueeze(x, one)
    m = Mul(w, p)
    {nodes}
}}"""
MASKED = "q = Equal(w, zero)\n v = Where(q, zero, m)\n y = ReduceSum<keepdims = 0>(v, first)"
PLAIN = "y = ReduceSum<keepdims = 0>(m, first)"


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("nodes", [PLAIN, MASKED])
def test_predictions_are_mixed_without_a_transposition(images: int, nodes: str) -> None:
    model = rewritten(SUMMED.format(b=images, nodes=nodes), mixture)
    assert "Transpose" not in kinds(model)
    assert "w" not in {value.name for node in model.graph for value in node.outputs}


@pytest.mark.parametrize("other", ["y = ReduceSum<keepdims = 0>(p, first)", "y = ReduceSum<keepdims = 0>(m, one)"])
def test_another_sum_stays(other: str) -> None:
    text = SUMMED.format(b=1, nodes=other).replace("float[1,4,5,2] y", "float[N,4,5,2] y")
    model = rewritten(text, mixture)
    total = next(node for node in model.graph if node.op_type == "ReduceSum").inputs[1]
    assert total is not None
    assert total.name in ("first", "one")
