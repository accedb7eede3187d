"""What weights do to a context, against the same formulas in float64 on lists."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from clipskip.conditioning import emphasise
from clipskip.request import FIELDS

Array = npt.NDArray[np.float32]


@pytest.fixture
def context() -> Array:
    return np.random.default_rng(0).normal(-0.1, 1, (3, 77, 8)).astype(np.float32)


@pytest.fixture
def weights() -> Array:
    weights = np.ones((3, 77), np.float32)
    weights[0, 3:6], weights[1, 3], weights[2, 70] = 1.3, 0.5, -2
    return weights


def test_no_norm_multiplies_each_vector(context: Array, weights: Array) -> None:
    found = emphasise(context, weights, "No norm")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[0, 4], context[0, 4] * np.float32(1.3))
    np.testing.assert_array_equal(found[2, 70], context[2, 70] * np.float32(-2))
    np.testing.assert_array_equal(found[0, 6:], context[0, 6:])


def test_original_keeps_the_mean_over_all_variants(context: Array, weights: Array) -> None:
    found = emphasise(context, weights, "Original")
    assert found.dtype == np.float32
    assert found.mean(dtype=np.float64) == pytest.approx(context.mean(dtype=np.float64), rel=1e-5)
    exact = context.astype(np.float64) * weights[..., None]
    np.testing.assert_allclose(found, exact * (context.mean(dtype=np.float64) / exact.mean()), rtol=1e-6)


def test_a_variant_counts_as_often_as_the_schedule_names_it(context: Array, weights: Array) -> None:
    places = [0, 1, 1, 1, 2]
    repeated = emphasise(context[places], weights[places], "Original")
    counted = emphasise(context, weights, "Original", [1, 3, 1])
    np.testing.assert_allclose(counted, repeated[[0, 1, 4]], rtol=1e-6)


@pytest.mark.parametrize("mode", ["Ignore", "None"])
def test_ignored_weights_change_nothing(context: Array, weights: Array, mode: str) -> None:
    np.testing.assert_array_equal(emphasise(context, weights, mode), context)


@pytest.mark.parametrize("mode", FIELDS["emphasis"].choices)
def test_weights_of_one_change_no_bit(context: Array, mode: str) -> None:
    np.testing.assert_array_equal(emphasise(context, np.ones((3, 77), np.float32), mode), context)


def test_weights_of_zero_give_zeros_and_not_nan(context: Array) -> None:
    np.testing.assert_array_equal(emphasise(context, np.zeros((3, 77), np.float32)), np.zeros_like(context))


def test_the_input_is_left_as_it_was(context: Array, weights: Array) -> None:
    before = context.copy()
    emphasise(context, weights, "Original")
    np.testing.assert_array_equal(context, before)
