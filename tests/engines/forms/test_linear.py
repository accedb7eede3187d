"""Linear layers: biases go into the next kernel, many layers of one input become one."""

from __future__ import annotations

import pytest
from small_forms import kinds, rewritten

from clipskip.engines.forms.linear import bias_add, bias_split_gelu, side_by_side


@pytest.mark.parametrize("order", ["b, s", "s, b"])
def test_a_bias_and_another_value_are_added_at_once(order: str) -> None:
    ports = "(float[2,3,8] x, float[2,3,4] s, float[8,4] w1, float[4] w2)"
    nodes = f"m = MatMul(x, w1)\n b = Add(m, w2)\n y = Add({order})"
    model = rewritten(f"{ports} => (float[2,3,4] y) {{ {nodes} }}", bias_add)
    assert kinds(model) == {"MatMul": 1, "BiasAdd": 1}


def test_a_bias_whose_sum_somebody_else_reads_is_added_apart() -> None:
    ports = "(float[2,3,8] x, float[2,3,4] s, float[8,4] w1, float[4] w2)"
    nodes = "m = MatMul(x, w1)\n b = Add(m, w2)\n y = Add(b, s)"
    model = rewritten(f"{ports} => (float[2,3,4] y, float[2,3,4] b) {{ {nodes} }}", bias_add)
    assert kinds(model) == {"MatMul": 1, "Add": 2}


GATED = """(float[1,2,{0}] x, float[{0}] w) => (float[1,2,{1}] y) {{
    b = Add(x, w)
    l, r = Split<axis = 2, num_outputs = 2>(b)
    g = Gelu{2}({3})
    y = Mul({4}, g)
}}"""


@pytest.mark.parametrize("width", [2560, 5120, 10240])
def test_a_gelu_of_one_half_times_the_other_is_one_kernel(width: int) -> None:
    model = rewritten(GATED.format(width, width // 2, "", "r", "l"), bias_split_gelu)
    assert kinds(model) == {"BiasSplitGelu": 1}


@pytest.mark.parametrize(
    ("width", "how", "halves"),
    [(256, "", "rl"), (2560, '<approximate = "tanh">', "rl"), (2560, "", "lr"), (2560, "", "rr")],
    ids=["no kernel for the width", "tanh", "the other half", "one half twice"],
)
def test_another_gelu_stays(width: int, how: str, halves: str) -> None:
    model = rewritten(GATED.format(width, width // 2, how, *halves), bias_split_gelu)
    assert kinds(model) == {"Add": 1, "Split": 1, "Gelu": 1, "Mul": 1}


def layers(count: int, kind: str = "MatMul", width: int = 4) -> str:
    shape = f"[8,{width}]" if kind == "MatMul" else f"[{width},8]"
    weights = ", ".join(f"float{shape} w{i}" for i in range(count))
    results = ", ".join(f"float[3,{width}] y{i}" for i in range(count))
    call = "MatMul" if kind == "MatMul" else "Gemm<transB = 1>"
    nodes = "\n".join(f"y{i} = {call}(x, w{i})" for i in range(count))
    return f"(float[3,8] x, {weights}) => ({results}) {{ {nodes} }}"


@pytest.mark.parametrize("kind", ["MatMul", "Gemm"])
def test_many_layers_of_one_input_are_one(kind: str) -> None:
    model = rewritten(layers(5, kind), side_by_side)
    assert kinds(model) == {kind: 1, "Split": 1}
    assert [value.name for value in model.graph.outputs] == ["y0", "y1", "y2", "y3", "y4"]


def test_no_split_gives_more_than_cuda_takes_in_one_kernel() -> None:
    assert kinds(rewritten(layers(40), side_by_side)) == {"MatMul": 2, "Split": 2}


def test_query_key_and_value_stay_three_layers() -> None:
    assert kinds(rewritten(layers(3), side_by_side)) == {"MatMul": 3}


def test_layers_of_different_widths_or_with_biases_are_not_put_together() -> None:
    ports = "(float[3,8] x, float[8,4] w1, float[8,4] w2, float[8,5] w3, float[8,4] w4, float[4] w5)"
    nodes = "a = MatMul(x, w1)\n b = MatMul(x, w2)\n c = MatMul(x, w3)\n d = Gemm(x, w4, w5)"
    results = "(float[3,4] a, float[3,4] b, float[3,5] c, float[3,4] d)"
    assert kinds(rewritten(f"{ports} => {results} {{ {nodes} }}", side_by_side)) == {"MatMul": 3, "Gemm": 1}
