"""What stands around a network: the same numbers from kinder operators."""

from __future__ import annotations

import pytest
from small_forms import kinds, rewritten

from clipskip.engines.forms.arithmetic import gather, mixture, solver


def test_rows_are_chosen_by_their_numbers() -> None:
    text = "(float[2,3,4] x, int64[5] rows) => (float[5,3,4] y) <int64[1] last = {-1}>"
    nodes = "i = Unsqueeze(rows, last)\n y = GatherND(x, i)"
    assert kinds(rewritten(f"{text} {{ {nodes} }}", gather)) == {"Gather": 1}


def test_indices_of_several_axes_stay() -> None:
    text = "(float[2,3,4] x, int64[5,2] i) => (float[5,4] y) { y = GatherND(x, i) }"
    assert kinds(rewritten(text, gather)) == {"GatherND": 1}


def test_the_solvers_sum_is_made_of_products_and_a_sum() -> None:
    text = "(float[2,6,8] u, float[2,8,4,3,5] m) => (float[2,6,4,3,5] y)"
    model = rewritten(f'{text} {{ y = Einsum<equation = "bij,bjchw->bichw">(u, m) }}', solver)
    assert kinds(model) == {"Mul": 1, "ReduceSum": 1}


SUMMED = """(float[{b},3] mix, float[3,4,5,2] x) => (float[{b},4,5,2] y)
    <int64[1] two = {{2}}, int64[2] more = {{3, 4}}, int64[1] one = {{1}}, int64[1] first = {{0}},
     float zero = {{0.5}}> {{
    t = Transpose<perm = [1, 0]>(mix)
    a = Unsqueeze(t, two)
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


def test_another_einsum_stays() -> None:
    text = '(float[2,3] a, float[3,4] b) => (float[2,4] y) { y = Einsum<equation = "ij,jk->ik">(a, b) }'
    assert kinds(rewritten(text, solver)) == {"Einsum": 1}
