"""What reports look like, with matplotlib: one picture for each model. Measures nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Report = Mapping[str, Any]


def draw(store: Report | None, peers: Report | None, path: Path) -> None:
    """Four drawings in one file; those that need the report that is not there stay away."""
    drawings = ([(picture, store), (memory, store), (host, store)] if store else []) + [(depths, peers or store)]
    figure = Figure(figsize=(11, 3.2 * ((len(drawings) + 1) // 2)), layout="constrained")
    for place, (drawing, report) in enumerate(reversed(drawings), 1):
        assert report is not None
        drawing(report, figure.add_subplot((len(drawings) + 1) // 2, 2 if len(drawings) > 1 else 1, place))
    figure.savefig(path, dpi=80, metadata={"Software": None})


def depths(report: Report, axes: Axes) -> None:
    """Text by layers kept; of others all that they compute at that clip skip."""
    layers = report["layers"]
    if report["bench"] == "store":
        rows = {"clipskip": {depth: report["stages"].get(f"text-{depth:02}") for depth in range(layers + 1)}}
    else:
        skips = {
            layers + 1 - skip: report["stages"].get(f"text, clip skip {skip}", {}) for skip in range(1, layers + 2)
        }
        names = [name for name in report["peers"] if any(name in row for row in skips.values())]
        rows = {name: {depth: row[name] for depth, row in skips.items() if name in row} for name in names}
    for name, row in rows.items():
        there = sorted(depth for depth, figures in row.items() if figures)
        axes.plot(there, [row[depth]["median_ms"] for depth in there], marker=".", label=name)
    axes.set(title="two prompts by depth", xlabel="layers kept", ylabel="ms", yscale="log")
    axes.legend(fontsize="small")


def picture(report: Report, axes: Axes) -> None:
    """The parts of one picture as they were timed alone, and the whole."""
    stages, steps = report["stages"], report["steps"]
    text = stages[f"text-{report['layers']:02}"]["median_ms"]
    parts = {
        "text": text, f"{steps} steps": steps * stages["step"]["median_ms"],
        f"host, {steps} steps": steps * stages["host, per step"]["median_ms"], "decode": stages["decode"]["median_ms"],
        "whole picture": stages[f"picture, {steps} steps"]["median_ms"],
    }  # fmt: skip
    bars = axes.barh(list(parts), list(parts.values()), color=[*["tab:blue"] * 4, "tab:gray"])
    axes.bar_label(bars, fmt="%.4g")
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.set(title="where a picture's time goes", xlabel="ms")


def memory(report: Report, axes: Axes) -> None:
    opened = report["memory"]["depths_open"]
    for kind in ("rss", "pss", "anonymous"):
        if opened and kind in opened[0]:
            axes.plot(range(1, len(opened) + 1), [each[kind] / 1e6 for each in opened], marker=".", label=kind)
    axes.set(title="memory of a process", xlabel="depths that are open", ylabel="MB", ylim=(0, None))
    axes.legend(fontsize="small")


def host(report: Report, axes: Axes) -> None:
    """The host's time beside the engine's, from the median to the rarest."""
    names = ("min", "p25", "median", "p75", "p90", "p99")
    for title, name in (("the step engine", "step"), ("the host beside it", "host, per step")):
        axes.plot(names, [report["stages"][name][f"{each}_ms"] for each in names], marker=".", label=title)
    axes.set(title="one step", ylabel="ms", yscale="log")
    axes.legend(fontsize="small")
