"""Two reports of one kind, row by row: what became slower, and whether they agree. Measures nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipskip.engines import report as reports
from clipskip.errors import RequestError

SAME = ("bench", "model", "target", "size", "steps")  # or the figures cannot be compared
AGREE = 0.1  # two runs on an idle machine are within this


def read(path: Path) -> dict[str, Any]:
    """A report as it was written: the last line of a file. RequestError for anything else."""
    try:
        report = json.loads(path.read_text().strip().splitlines()[-1])
        if isinstance(report["stages"], dict):
            return dict(report)
    except (OSError, ValueError, LookupError, TypeError) as error:
        hint = "clipskip bench STORE --out OLD.json writes one"
        raise RequestError(f"{path} is no report of the benchmark: {error}", field="baseline", hint=hint) from error
    raise RequestError(f"{path} is no report of the benchmark: it has no stages", field="baseline")


def rows(report: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """What is compared: every stage, and the memory, which has one value."""
    memory = {
        f"memory, {kind}": {"median_ms": size, "p25_ms": size, "p75_ms": size}
        for kind, size in report["memory"]["first_picture"].items()
    }
    return {**report["stages"], **memory}


def compare(new: Mapping[str, Any], old: Mapping[str, Any], threshold: float) -> dict[str, Any]:
    """New over old by row; slower is a row beyond `threshold`, where the middle halves of the runs lie apart as well.

    RequestError where the reports are of different things, or the new one lacks a row.
    """
    if different := [name for name in SAME if new[name] != old.get(name)]:
        shown = ", ".join(f"{name} {old.get(name)!r} there, {new[name]!r} here" for name in different)
        raise RequestError(f"the baseline is of something else: {shown}", field="baseline")
    now, then = rows(new), rows(old)
    if missing := sorted(then.keys() - now.keys()):
        raise RequestError(f"a figure is missing that the baseline has: {', '.join(missing)}", field="baseline")
    ratios = {name: round(now[name]["median_ms"] / then[name]["median_ms"], 3) for name in then}
    slower = [
        name
        for name, ratio in ratios.items()
        if ratio > 1 + threshold and now[name]["p25_ms"] > then[name]["p75_ms"] * (1 + threshold / 2)
    ]
    machines = {report["machine"]["processor"] for report in (new, old)}
    apart = [name for name, ratio in ratios.items() if not 1 / (1 + AGREE) <= ratio <= 1 + AGREE]
    return {"ratios": ratios, "slower": slower, "apart": apart, "threshold": threshold, "machines": sorted(machines)}


def text(comparison: Mapping[str, Any]) -> str:
    """The comparison for people."""
    ratios, apart, machines = comparison["ratios"], comparison["apart"], comparison["machines"]
    lines = [("now / then", "")] + [
        (name, f"{ratio:.3f}" + "  SLOWER" * (name in comparison["slower"])) for name, ratio in ratios.items()
    ]
    said = [f"doubtful: two processors, {' and '.join(machines)}"] if len(machines) > 1 else []
    said += [f"{len(ratios) - len(apart)} of {len(ratios)} rows are within {AGREE:.0%}"]
    said += [f"not within {AGREE:.0%}: {', '.join(apart)}"] if apart else []
    said += [f"slower by more than {comparison['threshold']:.0%}: {', '.join(comparison['slower'])}"] * bool(
        comparison["slower"]
    )
    return "\n".join([reports.table(lines), *said])
