"""How long something takes, in a unit that a slow machine is as slow at: no test fails because of the machine."""

from __future__ import annotations

import time
from collections.abc import Callable


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def pace(work: Callable[[], object], times: int = 1) -> float:
    """Processor time of the fastest of some runs of `work`, in that of adding up a million numbers (some 20 ms)."""
    unit = min(_seconds(lambda: sum(i for i in range(10**6))) for _ in range(3))
    return min(_seconds(work) for _ in range(times)) / unit
