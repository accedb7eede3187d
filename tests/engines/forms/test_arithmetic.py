"""What stands around a network: the same numbers from kinder operators."""

from __future__ import annotations

from small_forms import kinds, rewritten

from clipskip.engines.forms.arithmetic import gather, solver


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


def test_another_einsum_stays() -> None:
    text = '(float[2,3] a, float[3,4] b) => (float[2,4] y) { y = Einsum<equation = "ij,jk->ik">(a, b) }'
    assert kinds(rewritten(text, solver)) == {"Einsum": 1}
