"""Timing itself: contenders take turns, warm-ups do not count, and doubtful figures are named."""

from __future__ import annotations

import time

import pytest

from clipskip.bench.measure import Took, Turns, bimodal, difference, interleaved, noise, summary


def test_contenders_take_turns_and_warm_ups_do_not_count() -> None:
    order: list[str] = []
    taken = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, warmups=1)
    assert order == ["a", "b"] * 4
    assert {name: len(seconds) for name, seconds in taken.items()} == {"a": 3, "b": 3}


def test_short_runs_are_repeated_and_one_that_measures_itself_is_believed() -> None:
    assert Turns(2, seconds=3.5).take({"a": lambda: Took(1.0)}) == {"a": [1.0] * 4}
    assert len(Turns(2, seconds=1e9).take({"a": lambda: None})["a"]) == 40


def test_when_time_is_over_there_is_one_round_and_no_warm_up() -> None:
    order: list[str] = []
    taken = Turns(5, until=time.monotonic()).take({name: lambda: order.append("run") for name in "ab"}, warmups=3)
    assert (order, [len(seconds) for seconds in taken.values()]) == (["run"] * 2, [1, 1])


def test_a_summary_is_in_milliseconds() -> None:
    figures = summary([0.001, 0.003, 0.002, 0.002, 0.004])
    assert figures == {
        "median_ms": 2.0, "p25_ms": 2.0, "p75_ms": 3.0, "p90_ms": 3.6, "p99_ms": 3.96, "min_ms": 1.0, "max_ms": 4.0,
        "spread": 0.5, "bimodal": False, "runs": 5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "two_heaps"),
    [
        ([1.0, 1.01, 1.02, 1.03, 1.04, 2.0, 2.01, 2.02, 2.03, 2.04], True),
        ([1.0, 1.01, 1.02, 1.03, 1.04, 1.05, 1.06, 1.07, 1.08, 2.0], False),  # one that was disturbed
        ([1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9], False),
        ([1.0, 1.0, 1.0, 1.0, 1.0, 1.001, 1.001, 1.001, 1.001, 1.001], False),  # the clock's own steps
        ([1.0, 1.0, 2.0, 2.0], False),  # too few to tell
    ],
)
def test_two_heaps_are_told_from_one_with_an_outlier(seconds: list[float], two_heaps: bool) -> None:
    assert bimodal(seconds) is two_heaps


def test_rows_that_a_quiet_machine_would_not_give_are_named() -> None:
    rows = {"good": summary([1.0, 1.01, 1.02]), "wide": summary([1.0, 1.5, 2.0])}
    wide = {"the middle half of the runs is wide": ["wide (33%)"]}
    assert noise(rows, 3) == wide
    assert noise(rows, 4) == {**wide, "few runs": ["good (3)", "wide (3)"]}


def test_a_difference_is_over_rounds_so_a_drift_of_both_does_not_hide_it() -> None:
    drift = [1.0, 2.0, 3.0, 4.0]
    apart, error = difference([each + 0.1 for each in drift], drift)
    assert (apart, error) == (pytest.approx(0.1), pytest.approx(0, abs=1e-9))
    assert difference([1.0], [2.0])[1] == float("inf")
