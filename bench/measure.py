"""Timing and printing for the benchmarks. Knows nothing of what is timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Seconds = list[float]
Contenders = Mapping[str, Callable[[], object]]
OWN_PATH = "import sys; sys.path = [folder for folder in sys.path if folder]; "  # not the working folder's modules


def interleaved(contenders: Contenders, rounds: int, warmups: int = 1) -> dict[str, Seconds]:
    """Run all contenders in turn, round after round, so that what disturbs the machine disturbs all of them."""
    taken: dict[str, Seconds] = {name: [] for name in contenders}
    for number in range(warmups + rounds):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            if number >= warmups:
                taken[name].append(time.perf_counter() - started)
    return taken


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """The figures that go into a report, in milliseconds."""
    return {
        "median_ms": round(1000 * statistics.median(seconds), 3),
        "min_ms": round(1000 * min(seconds), 3),
        "max_ms": round(1000 * max(seconds), 3),
        "runs": len(seconds),
    }


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """One line per stage, for people."""
    width = max(map(len, rows))
    lines = [f"{'':{width}}    median       min       max  runs"]
    for name, row in rows.items():
        figures = "".join(f"{row[key]:10.2f}" for key in ("median_ms", "min_ms", "max_ms"))
        lines.append(f"{name:{width}}{figures}{row['runs']:6.0f}")
    return "\n".join([*lines, "(milliseconds)"])
