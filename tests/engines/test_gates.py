"""What a graph or a form may differ by. That the gates see a wrong network is in tests/export/test_cases.py."""

from __future__ import annotations

import re

import numpy as np
import pytest

from clipskip.engines import gates
from clipskip.engines.manifest import DECODE, STEP, Role
from clipskip.errors import NumericalError

EXACT = {"next_state": np.ones((1, 4, 8, 8))}


def off(by: float) -> gates.Pairs:
    return [({"next_state": EXACT["next_state"] * (1 + by)}, EXACT)]


@pytest.mark.parametrize(
    ("own", "limit"),
    [
        ({}, 1e-5),
        ({gates.TORCH_FP16: 2e-3}, 4e-3),
        ({gates.TORCH_FP16: 8e-3}, 1e-2),
        ({gates.TORCH_FP16: 2e-2}, 2e-2),
        ({gates.TORCH_FP16: 1}, 5e-2),
    ],
)
def test_the_limit_is_that_of_the_precision_and_at_most_twice_torchs_own_error(own: gates.Parity, limit: float) -> None:
    parity = gates.judge(STEP, off(0.99 * limit), own)
    assert parity == pytest.approx({"relative_l2": 0.99 * limit, "max_abs": 0.99 * limit} | dict(own))
    with pytest.raises(NumericalError, match="step differs from torch: relative_l2 is"):
        gates.judge(STEP, off(1.01 * limit), own)


def test_a_form_is_called_by_its_name_and_its_graph() -> None:
    with pytest.raises(NumericalError, match="step-cuda differs from step: relative_l2 is inf"):
        gates.judge(STEP, off(np.nan), {}, "step-cuda")
    pictures = {"image": np.zeros((1, 8, 8, 3), np.uint8), "finite": np.array([True])}
    other = pictures | {"image": pictures["image"] + 9}
    with pytest.raises(NumericalError, match=re.escape("decode-cpu differs from decode: PSNR is 29.0 dB, at least 40")):
        gates.judge(DECODE, [(other, pictures)], {}, "decode-cpu")
    assert gates.judge(DECODE, [(pictures, pictures)], {}) == {"psnr_db": 120}


def test_the_worst_row_counts() -> None:
    exact = {"context": np.ones((2, 77, 8))}
    given = {"context": exact["context"].copy()}
    given["context"][1, 76] += 1e-6
    assert gates.judge(Role("text", 12), [(given, exact)], {})["relative_l2"] == pytest.approx(1e-6)
