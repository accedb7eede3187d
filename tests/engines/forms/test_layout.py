"""Channels last: which transpositions stay, and that the numbers do."""

from __future__ import annotations

import pytest
from small_forms import kinds, rewritten

from clipskip.engines.forms.layout import (
    joined_channels,
    nhwc_conv,
    no_transposition,
    picture_of_rows,
    resized,
    rows_of_picture,
    size,
    value_by_value,
)

PICTURE = "(float[2,4,6,5] x, float[8,4,3,3] w1, float[8] w2, float[4,8,1,1] w3)"
FIRST_CONV = "a = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, w1, w2)"


def test_a_convolution_has_its_channels_last_between_two_transpositions() -> None:
    model = rewritten(f"{PICTURE} => (float[2,8,6,5] a) {{ {FIRST_CONV} }}", nhwc_conv)
    assert kinds(model) == {"Transpose": 2, "NhwcConv": 1}
    assert list(model.graph.initializers["w1.ohwi"].shape or []) == [8, 3, 3, 4]
    assert {"a", "a.nhwc"} <= {value.name for node in model.graph for value in node.outputs}


def test_a_convolution_of_one_axis_and_one_of_a_computed_kernel_stay() -> None:
    model = rewritten("(float[2,4,6] x, float[8,4,3] w) => (float[2,8,4] y) { y = Conv(x, w) }", nhwc_conv)
    assert kinds(model) == {"Conv": 1}
    model = rewritten("(float[1,4,6,5] x, float[2,4,3,3] k) => (float[1,2,4,3] y) { y = Conv(x, k) }", nhwc_conv)
    assert kinds(model) == {"Conv": 1}


def test_between_convolutions_nothing_is_transposed() -> None:
    text = f"{PICTURE} => (float[2,4,6,5] y) <float half = {{0.5}}> {{ {FIRST_CONV}\n b = Sigmoid(a)\n c = Mul(b, half)"
    model = rewritten(text + "\n y = Conv(c, w3) }", nhwc_conv, value_by_value, no_transposition)
    assert kinds(model) == {"Transpose": 2, "NhwcConv": 2, "Sigmoid": 1, "Mul": 1}


def test_arithmetic_with_a_stored_array_stays_where_it_is() -> None:
    text = f"{PICTURE[:-1]}, float[8,1,1] w4) => (float[2,8,6,5] y) {{ {FIRST_CONV}\n y = Mul(a, w4) }}"
    assert kinds(rewritten(text, nhwc_conv, value_by_value)) == {"Transpose": 2, "NhwcConv": 1, "Mul": 1}


def test_a_picture_that_comes_from_elsewhere_is_turned_before_a_sum() -> None:
    text = f"{PICTURE[:-1]}, float[2,8,6,5] z) => (float[2,8,6,5] y) {{ {FIRST_CONV}\n y = Add(z, a) }}"
    model = rewritten(text, nhwc_conv, value_by_value, no_transposition)
    assert kinds(model) == {"Transpose": 3, "NhwcConv": 1, "Add": 1}


def test_pictures_are_joined_by_their_last_axis() -> None:
    text = f"{PICTURE} => (float[2,16,6,5] y) {{ {FIRST_CONV}\n b = Sigmoid(a)\n y = Concat<axis=1>(a, b) }}"
    model = rewritten(text, nhwc_conv, value_by_value, joined_channels, no_transposition)
    assert kinds(model) == {"Transpose": 2, "NhwcConv": 1, "Sigmoid": 1, "Concat": 1}
    along = text.replace("axis=1", "axis=2").replace("16,6,5", "8,12,5")
    assert kinds(rewritten(along, nhwc_conv, value_by_value, joined_channels))["Transpose"] > 2


@pytest.mark.parametrize(
    "enlarged",
    [
        'y = Resize<mode = "nearest">(a, "", scales)',
        's = Shape<end = 2>(a)\n t = Concat<axis = 0>(s, new)\n y = Resize<mode = "nearest">(a, "", "", t)',
    ],
)
def test_a_picture_is_enlarged_by_factors_or_to_a_size_with_its_channels_last(enlarged: str) -> None:
    weights = "<float[4] scales = {1.0, 1.0, 2.0, 2.0}, int64[2] new = {12, 10}>"
    text = f"{PICTURE} => (float[2,8,12,10] y) {weights} {{ {FIRST_CONV}\n {enlarged} }}"
    model = rewritten(text, nhwc_conv, resized)
    assert [node.op_type for node in model.graph if node.op_type in ("Transpose", "NhwcConv", "Resize")] == [
        "Transpose", "NhwcConv", "Resize", "Transpose",
    ]  # fmt: skip


def test_pixels_become_rows_and_a_picture_again_without_being_moved() -> None:
    text = f"""{PICTURE} => (float[2,8,6,5] y) <int64[1] all = {{-1}}> {{
        {FIRST_CONV}
        n = Shape<end = 1>(a)
        c = Shape<start = 1, end = 2>(x0)
        h = Shape<start = 2, end = 3>(a)
        v = Shape<start = 3, end = 4>(a)
        flat = Concat<axis = 0>(n, c, all)
        b = Reshape(a, flat)
        rows = Transpose<perm = [0, 2, 1]>(b)
        gated = Sigmoid(rows)
        d = Transpose<perm = [0, 2, 1]>(gated)
        back = Concat<axis = 0>(n, c, h, v)
        y = Reshape(d, back)
    }}""".replace("x0", "a")
    patterns = (nhwc_conv, picture_of_rows, size, no_transposition, rows_of_picture)
    model = rewritten(text, *patterns)
    assert kinds(model)["Sigmoid"] == 1
    rows = next(node for node in model.graph if node.op_type == "Sigmoid").inputs[0]
    assert rows is not None
    assert [node.op_type for node in (rows.producer(),) if node] == ["Reshape"]


def test_the_height_of_a_picture_is_asked_where_it_stands() -> None:
    text = f"{PICTURE} => (int64[1] y, int64[1] c) {{ {FIRST_CONV}\n y = Shape<start = 2, end = 3>(a)\n"
    model = rewritten(text + " c = Shape<start = 1, end = 2>(a) }", nhwc_conv, size)
    assert [node.attributes.get_int("start") for node in model.graph if node.op_type == "Shape"] == [1, 1]
    assert kinds(model) == {"NhwcConv": 1, "Transpose": 2}
