"""Timing for the benchmarks: contenders take turns, figures say how sure they are. Knows nothing of what is timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf

import numpy as np

Seconds = list[float]
Contenders = Mapping[str, Callable[[], object]]
OWN_PATH = "import sys; sys.path = [folder for folder in sys.path if folder]; "  # not the working folder's modules
MOST = 20  # times as many rounds as must be, where they are short
WIDE = 0.1  # of the median, between a quarter of the runs and three


class Took(float):
    """Seconds that a contender measured itself, in a process of its own."""


@dataclass(frozen=True)
class Turns:
    """How contenders take turns: `rounds` at least, and more while all together have taken less than `seconds`.

    `pause`: seconds of quiet before each turn, in which the threads of the one before stop spinning. A round that would
    end after `until` (of time.monotonic) is not begun, but for the first.
    """

    rounds: int
    seconds: float = 0.0
    pause: float = 0.0
    until: float = inf

    def take(self, contenders: Contenders, warmups: int = 1) -> dict[str, Seconds]:
        """The seconds of each contender, round by round; warm-ups do not count, and fall away where time is short."""
        taken: dict[str, Seconds] = {name: [] for name in contenders}
        count = -warmups if time.monotonic() < self.until else 0
        enough = not contenders
        while not enough:
            began = time.monotonic()
            for name, seconds in self._round(contenders).items():
                taken[name] += [seconds] if count >= 0 else []
            count += 1
            spent, now = sum(map(sum, taken.values())), time.monotonic()
            enough = count >= self.rounds and (spent >= self.seconds or count >= MOST * self.rounds)
            enough = enough or (count > 0 and 2 * now - began > self.until)
        return taken

    def _round(self, contenders: Contenders) -> dict[str, float]:
        taken = {}
        for name, run in contenders.items():
            time.sleep(self.pause)
            started = time.perf_counter()
            result = run()
            taken[name] = float(result) if isinstance(result, Took) else time.perf_counter() - started
        return taken


def interleaved(contenders: Contenders, rounds: int, warmups: int = 1) -> dict[str, Seconds]:
    """Run all contenders in turn, round after round, so that what disturbs the machine disturbs all of them."""
    return Turns(rounds).take(contenders, warmups)


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """The figures that go into a report, in milliseconds; `spread` is the middle half's width over the median."""
    low, median, high, p90, p99 = (1000 * float(each) for each in np.quantile(seconds, (0.25, 0.5, 0.75, 0.9, 0.99)))
    return {
        "median_ms": round(median, 3), "p25_ms": round(low, 3), "p75_ms": round(high, 3), "p90_ms": round(p90, 3),
        "p99_ms": round(p99, 3), "min_ms": round(1000 * min(seconds), 3), "max_ms": round(1000 * max(seconds), 3),
        "spread": round((high - low) / median, 3), "bimodal": bimodal(seconds), "runs": len(seconds),
    }  # fmt: skip


def bimodal(seconds: Sequence[float]) -> bool:
    """Whether ten runs or more lie in two heaps: one gap is over half of all, a fifth of the runs on either side."""
    ordered = sorted(seconds)
    inside = ordered[len(ordered) // 5 - 1 : len(ordered) - len(ordered) // 5 + 1]
    gap = max((above - below for below, above in pairwise(inside)), default=0.0)
    return len(ordered) >= 10 and gap > max((ordered[-1] - ordered[0]) / 2, WIDE * statistics.median(ordered) / 2)


def difference(seconds: Sequence[float], others: Sequence[float]) -> tuple[float, float]:
    """How much longer than the others, and the standard error of that: a mean over rounds, in which they took turns."""
    apart = np.subtract(seconds, others)
    return float(apart.mean()), float(apart.std(ddof=1) / len(apart) ** 0.5) if len(apart) > 1 else inf


def noise(stages: Mapping[str, Mapping[str, float]], rounds: int) -> dict[str, list[str]]:
    """The rows that a quiet machine would not give, and those of fewer than `rounds` runs, by what is wrong."""
    wide = [f"{name} ({row['spread']:.0%})" for name, row in stages.items() if row["spread"] > WIDE]
    heaps = [name for name, row in stages.items() if row["bimodal"]]
    few = [f"{name} ({row['runs']})" for name, row in stages.items() if row["runs"] < rounds]
    said = {"the middle half of the runs is wide": wide, "the runs lie in two heaps": heaps, "few runs": few}
    return {what: rows for what, rows in said.items() if rows}
