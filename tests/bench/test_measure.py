"""Timing itself: contenders take turns, warm-ups do not count."""

from __future__ import annotations

from clipskip.bench.measure import interleaved, summary, table


def test_contenders_take_turns_and_warm_ups_do_not_count() -> None:
    order: list[str] = []
    taken = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, warmups=1)
    assert order == ["a", "b"] * 4
    assert {name: len(seconds) for name, seconds in taken.items()} == {"a": 3, "b": 3}


def test_a_summary_is_in_milliseconds_and_a_table_has_a_line_per_stage() -> None:
    figures = summary([0.001, 0.003, 0.002])
    assert figures == {"median_ms": 2.0, "min_ms": 1.0, "max_ms": 3.0, "runs": 3}
    lines = table({"one stage": figures, "two": figures}).splitlines()
    assert lines[1].split() == ["one", "stage", "2.00", "1.00", "3.00", "3"]
    assert len(lines) == 4
