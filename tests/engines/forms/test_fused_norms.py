"""Norms in one kernel with what stands around them; where CUDA's kernels refuse, they stay."""

from __future__ import annotations

import pytest
from small_forms import kinds, rewritten

from clipskip.engines.forms.fused_norms import (
    group_norm,
    group_norm_silu,
    layer_norm,
    skip_group_norm,
    skip_layer_norm,
)
from clipskip.engines.forms.layout import no_transposition, value_by_value

CAST = "c = Cast<to = 1>(x)\n d = {}(c, w1, w2)\n n = Cast<to = 10>(d)"
GROUPED = "GroupNormalization<num_groups = 4, epsilon = 0.001>"
SILU = "s = Sigmoid(n)\n y = Mul(n, s)"
HALF = 2e-3  # of the largest number: a few roundings to float16


@pytest.mark.parametrize(
    ("kind", "stored", "norm"),
    [
        ("float", "float", f"n = {GROUPED}(x, w1, w2)"),
        ("float16", "float16", f"n = {GROUPED}(x, w1, w2)"),
        ("float16", "float", CAST.format(GROUPED)),
    ],
)
def test_a_group_norm_and_its_silu_are_one_kernel(kind: str, stored: str, norm: str) -> None:
    text = f"({kind}[2,8,3,5] x, {stored}[8] w1, {stored}[8] w2) => ({kind}[2,8,3,5] y) {{ {norm}\n {SILU} }}"
    model = rewritten(text, group_norm, group_norm_silu, within=1e-5 if kind == "float" else HALF)
    assert kinds(model) == {"Transpose": 2, "GroupNorm": 1}
    node = next(node for node in model.graph if node.op_type == "GroupNorm")
    assert {name: node.attributes[name].value for name in ("groups", "activation", "channels_last")} == {
        "groups": 4, "activation": 1, "channels_last": 1,
    }  # fmt: skip
    assert [str(value.dtype) for value in node.inputs[1:] if value is not None] == ["FLOAT", "FLOAT"]


@pytest.mark.parametrize(("channels", "groups"), [(24, 8), (8, 8), (1028, 2)])
def test_a_group_norm_stays_where_cuda_has_no_kernel_for_so_many_channels(channels: int, groups: int) -> None:
    text = f"(float[1,{channels},2,2] x, float[{channels}] w1, float[{channels}] w2) => (float[1,{channels},2,2] y)"
    node = f"y = GroupNormalization<num_groups = {groups}, epsilon = 0.001>(x, w1, w2)"
    assert kinds(rewritten(f"{text} {{ {node} }}", group_norm)) == {"GroupNormalization": 1}


def test_a_group_norm_of_pixels_in_a_row_is_one_of_the_picture() -> None:
    text = "(float[2,8,3,5] x, float[8] w1, float[8] w2) => (float[2,8,15] y) <int64[3] flat = {2, 8, -1}>"
    model = rewritten(f"{text} {{ r = Reshape(x, flat)\n y = {GROUPED}(r, w1, w2) }}", group_norm)
    assert kinds(model) == {"Transpose": 2, "GroupNorm": 1}


def test_a_group_norm_of_a_picture_that_was_reshaped_is_one_of_what_came_of_it() -> None:
    text = "(float[2,8,15] x, float[8] w1, float[8] w2) => (float[2,8,3,5] y) <int64[4] shape = {2, 8, 3, 5}>"
    model = rewritten(f"{text} {{ r = Reshape(x, shape)\n y = {GROUPED}(r, w1, w2) }}", group_norm)
    assert kinds(model) == {"Transpose": 2, "GroupNorm": 1}


def test_a_norm_that_somebody_else_reads_keeps_its_silu_apart() -> None:
    text = "(float[2,8,3,5] x, float[8] w1, float[8] w2) => (float[2,8,3,5] y, float[2,8,3,5] n)"
    model = rewritten(f"{text} {{ n = {GROUPED}(x, w1, w2)\n {SILU}\n }}", group_norm, group_norm_silu)
    assert kinds(model) == {"Transpose": 2, "GroupNorm": 1, "Sigmoid": 1, "Mul": 1}


PICTURES = (group_norm, group_norm_silu, value_by_value, no_transposition, skip_group_norm)


def test_a_group_norm_adds_two_pictures_first_and_gives_the_sum_to_who_reads_it() -> None:
    ports = "(float[2,8,3,5] a, float[2,8,3,5] b, float[8] w1, float[8] w2)"
    nodes = f"e = {GROUPED}(a, w1, w2)\n x = Add(e, b)\n n = {GROUPED}(x, w1, w2)\n y = Add(n, x)"
    model = rewritten(f"{ports} => (float[2,8,3,5] y) {{ {nodes} }}", *PICTURES)
    assert kinds(model) == {"Transpose": 3, "GroupNorm": 1, "SkipGroupNorm": 1, "Add": 1}
    node = next(node for node in model.graph if node.op_type == "SkipGroupNorm")
    assert [value.name for value in node.outputs] == ["n.nhwc", "x.nhwc"]


@pytest.mark.parametrize("order", ["e, v", "v, e"])
def test_a_group_norm_adds_a_vector_to_each_picture_and_the_bias_of_its_linear(order: str) -> None:
    ports = "(float[2,8,3,5] a, float[2,6] t, float[8,6] w3, float[8] w4, float[8] w1, float[8] w2)"
    nodes = f"""e = {GROUPED}(a, w1, w2)
        l = Gemm<transB = 1>(t, w3, w4)
        v = Unsqueeze(l, axes)
        x = Add({order})
        n = {GROUPED}(x, w1, w2)
        {SILU}"""
    text = f"{ports} => (float[2,8,3,5] y) <int64[2] axes = {{2, 3}}> {{ {nodes} }}"
    model = rewritten(text, *PICTURES)
    assert kinds(model) == {"Transpose": 2, "GroupNorm": 1, "Gemm": 1, "SkipGroupNorm": 1}
    node = next(node for node in model.graph if node.op_type == "SkipGroupNorm")
    assert node.inputs[4] is not None
    assert node.inputs[4].name == "w4"
    assert len(node.outputs) == 1


def test_a_linear_that_adds_its_bias_twice_adds_it_itself() -> None:
    ports = "(float[2,8,3,5] a, float[2,6] t, float[8,6] w3, float[8] w4, float[8] w1, float[8] w2)"
    nodes = f"""e = {GROUPED}(a, w1, w2)
        l = Gemm<transB = 1, beta = 2.0>(t, w3, w4)
        v = Unsqueeze(l, axes)
        x = Add(e, v)
        y = {GROUPED}(x, w1, w2)"""
    text = f"{ports} => (float[2,8,3,5] y) <int64[2] axes = {{2, 3}}> {{ {nodes} }}"
    node = next(node for node in rewritten(text, *PICTURES).graph if node.op_type == "SkipGroupNorm")
    assert len(node.inputs) == 4


LAYER = "LayerNormalization<epsilon = 0.001>"


def test_a_layer_norm_between_casts_takes_half_precision() -> None:
    text = f"(float16[2,3,8] x, float[8] w1, float[8] w2) => (float16[2,3,8] n) {{ {CAST.format(LAYER)} }}"
    model = rewritten(text, layer_norm, within=HALF)
    assert kinds(model) == {"LayerNormalization": 1}
    assert {"w1.float16", "w2.float16"} == model.graph.initializers.keys()


def test_a_weight_that_is_scale_and_shift_is_stored_once() -> None:
    text = f"(float16[2,3,8] x, float[8] w1) => (float16[2,3,8] n) {{ {CAST.format(LAYER).replace('w2', 'w1')} }}"
    assert {"w1.float16"} == rewritten(text, layer_norm, within=HALF).graph.initializers.keys()


def test_casts_that_do_not_lead_back_stay() -> None:
    text = "(float16[2,3,8] x, float[8] w1, float[8] w2) => (float[2,3,8] y)"
    nodes = f"c = Cast<to = 1>(x)\n y = {LAYER}(c, w1, w2)"
    assert kinds(rewritten(f"{text} {{ {nodes} }}", layer_norm)) == {"Cast": 1, "LayerNormalization": 1}


@pytest.mark.parametrize("order", ["l, s", "s, l"])
def test_a_layer_norm_adds_two_rows_and_a_bias_first(order: str) -> None:
    ports = "(float[2,3,8] x, float[2,3,8] s, float[8,8] w1, float[8] w2, float[8] w3, float[8] w4)"
    nodes = f"m = MatMul(x, w1)\n l = Add(m, w2)\n t = Add({order})\n n = {LAYER}(t, w3, w4)"
    model = rewritten(f"{ports} => (float[2,3,8] n) {{ {nodes} }}", skip_layer_norm)
    assert kinds(model) == {"MatMul": 1, "SkipLayerNormalization": 1}
    both = rewritten(f"{ports} => (float[2,3,8] y) {{ {nodes}\n y = Add(n, t) }}", skip_layer_norm)
    assert kinds(both) == {"MatMul": 1, "SkipLayerNormalization": 1, "Add": 1}
    node = next(node for node in both.graph if node.op_type == "SkipLayerNormalization")
    assert [value.name for value in node.outputs] == ["n", "", "", "t"]


@pytest.mark.parametrize(("call", "axis"), [("w3", -1), ("w3, w4", 1)], ids=["no shift", "two axes"])
def test_another_layer_norm_of_a_sum_stays(call: str, axis: int) -> None:
    ports = "(float[2,8,8] x, float[2,8,8] s, float[8,8] w1, float[8] w2, float[8] w3, float[8] w4)"
    ports = ports.replace("float[8] w3, float[8] w4", "float[8,8] w3, float[8,8] w4") if axis == 1 else ports
    nodes = f"m = MatMul(x, w1)\n l = Add(m, w2)\n t = Add(l, s)\n n = LayerNormalization<axis = {axis}>(t, {call})"
    model = rewritten(f"{ports} => (float[2,8,8] n) {{ {nodes} }}", skip_layer_norm)
    assert kinds(model) == {"MatMul": 1, "Add": 2, "LayerNormalization": 1}


def test_positions_are_added_before_a_layer_norm_as_they_were() -> None:
    text = "(float[2,3,8] x, float[3,8] w1, float[8] w2, float[8] w3) => (float[2,3,8] y)"
    nodes = f"t = Add(x, w1)\n y = {LAYER}(t, w2, w3)"
    assert kinds(rewritten(f"{text} {{ {nodes} }}", skip_layer_norm)) == {"Add": 1, "LayerNormalization": 1}
