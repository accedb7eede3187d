"""The machine that figures are from: what it is, what it is busy with beside us, and what a process costs in memory."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from contextlib import suppress
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from clipskip.backends import cores
from clipskip.bench.measure import interleaved
from clipskip.cli.doctor import PACKAGES
from clipskip.engines import gpu
from clipskip.errors import ClipskipError

QUIET = 0.1  # of our own processor time may be others'
MEMORY = {"Rss": "rss", "Pss": "pss", "Anonymous": "anonymous", "VmHWM": "peak"}  # the kernel's names and ours
SAY_MEMORY = (  # at the end of a process that is measured
    "from pathlib import Path; files = map(Path, ('/proc/self/smaps_rollup', '/proc/self/status')); "
    "print(*(file.read_text() for file in files if file.exists()))"
)


def facts() -> dict[str, Any]:
    """Processor, memory, GPUs, versions and, of a source tree, the commit."""
    cards, versions = list[dict[str, Any]](), {}
    with suppress(ClipskipError):
        cards = [{**asdict(card), "uuid": ""} for card in gpu.gpus(gpu.cuda_runtime())]
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "processor": processor(), "cores": cores(), "gpus": cards, "platform": platform.platform(),
        "python": platform.python_version(), "versions": versions, "commit": commit(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None,
        "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def processor() -> str:
    """Its name as its maker writes it."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of the source tree that this runs from, with a + where files were changed, or None."""
    git = ["git", "--no-optional-locks", "-C", str(Path(__file__).parent)]  # which would write into the tree
    with suppress(OSError):
        head, changed = (
            subprocess.run([*git, *command], capture_output=True, text=True).stdout.strip()
            for command in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
        return head + "+" * bool(changed) if head else None
    return None


def memory(text: str) -> dict[str, int]:
    """Bytes by kind, from what SAY_MEMORY printed; none where this is not Linux."""
    rows = (line.split() for line in text.splitlines())
    return {MEMORY[row[0][:-1]]: int(row[1]) * 1024 for row in rows if row and row[0][:-1] in MEMORY}


class Watch:
    """How busy the machine is with other things while we measure."""

    def __init__(self) -> None:
        self.before, self._busy, self._own = load(), busy(), own()

    def report(self) -> dict[str, Any]:
        """Load before and after, and the processor time of others as a share of all that was used; None if unknown."""
        ours, all_of_us = own() - self._own, busy() - self._busy
        others = max(0.0, 1 - ours / all_of_us) if all_of_us > 0 else None
        return {"load_before": self.before, "load_after": load(), "others": others and round(others, 3)}


def warnings(seen: dict[str, Any]) -> list[str]:
    """What a Watch saw that makes figures doubtful."""
    said = []
    if seen["load_before"] is not None and seen["load_before"] > cores() / 2:
        said.append(f"the machine was busy before: load {seen['load_before']:.1f} on {cores()} cores")
    if seen["others"] is not None and seen["others"] > QUIET:
        said.append(f"other programs had {seen['others']:.0%} of the processor time meanwhile")
    return said


def load() -> float | None:
    """Over the last minute."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def own() -> float:
    """Processor seconds of this process and of the children that have ended."""
    return sum(os.times()[:4])


def busy() -> float:
    """Processor seconds of everybody since the machine started, 0.0 where that is not told."""
    path = Path("/proc/stat")
    ticks = [int(number) for number in path.read_text().splitlines()[0].split()[1:9]] if path.exists() else [0] * 8
    return (sum(ticks) - ticks[3] - ticks[4]) / (os.sysconf("SC_CLK_TCK") if path.exists() else 1)  # less idle, iowait


def peak_rates() -> dict[str, float]:
    """What this processor does at best in float32, measured: operations and bytes a second."""
    square, block = np.ones((1536, 1536), np.float32), np.zeros(1 << 26, np.uint8)
    target = np.empty_like(block)
    taken = interleaved({"flops": lambda: square @ square, "bytes": lambda: np.copyto(target, block)}, 8)
    work = {"flops": 2 * 1536**3, "bytes": 2 * block.nbytes}
    return {name: work[name] / min(seconds) for name, seconds in taken.items()}


def available() -> int | None:
    """Bytes of memory that programs may still take, None where that is not told."""
    path = Path("/proc/meminfo")
    lines = [line for line in path.read_text().splitlines() if line.startswith("MemAvailable")] if path.exists() else []
    return int(lines[0].split()[1]) * 1024 if lines else None
