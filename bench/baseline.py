"""Two reports of one kind, row by row: what became slower, and whether they agree. Measures nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipskip.engines import hints, strict
from clipskip.engines import report as reports
from clipskip.errors import ClipskipError, RequestError
from clipskip.fields import number, shown
from clipskip.files import read as read_file

SAME = ("bench", "model", "target", "size", "steps")  # or the figures cannot be compared
AGREE = 0.1  # two runs on an idle machine are within this
FEW = 3  # runs, below which a row is not called slower
LARGEST = 16 << 20  # bytes of a file of reports


def read(path: Path) -> dict[str, Any]:
    """A report as it was written: the last line of a file. RequestError, by file and figure, for anything else."""
    try:
        report = strict.parse(read_file(path, LARGEST + 1).strip().rpartition(b"\n")[2] or b"{}", LARGEST)
        if not isinstance(report, dict) or not isinstance(report.get("stages"), dict) or not report["stages"]:
            raise RequestError("it has no stages")
        if report.get("bench") == "store":
            sound(report)
    except ClipskipError as error:
        what, hint = f"{path} is no report of the benchmark", f"{hints.clipskip()} bench STORE --out OLD.json makes one"
        raise RequestError(f"{what}: {error.message}", path=path, field="baseline", hint=hint) from error
    return report


def sound(report: Mapping[str, Any]) -> None:
    """RequestError for the first of the figures to compare that is missing, or none."""
    box, memory = (part if isinstance(part := report.get(name), dict) else {} for name in ("machine", "memory"))
    kinds = part if isinstance(part := memory.get("first_picture"), dict) else {"peak": None}
    figures = {f"memory.first_picture.{kind}": size for kind, size in kinds.items()}
    for name, row in report["stages"].items():
        row = row if isinstance(row, dict) else {}
        figures |= {f"stages.{name}.{key}": row.get(key) for key in ("median_ms", "p75_ms")}
    if wrong := [name for name, value in figures.items() if (number(value) or 0) <= 0]:
        raise RequestError(f"{wrong[0]} is {shown(figures[wrong[0]])}, no number above 0")
    if not isinstance(box.get("processor"), str):
        raise RequestError("machine.processor is missing")


def row_of(images: int) -> str:
    """The name of the row of one call of the step for so many images."""
    return "step" if images == 1 else f"step, {images} images"


def rows(report: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """What is compared: every stage, and the memory, which has one value."""
    memory = {
        f"memory, {kind}": {"median_ms": size, "p25_ms": size, "p75_ms": size}
        for kind, size in report["memory"]["first_picture"].items()
    }
    return {**report["stages"], **memory}


def comparable(new: Mapping[str, Any], old: Mapping[str, Any]) -> None:
    """RequestError where reports are of different things. `new` may be the head alone of one that is to be measured."""
    if different := [name for name in SAME if new[name] != old.get(name)]:
        told = ", ".join(f"{name} {old.get(name)!r} there, {new[name]!r} here" for name in different)
        raise RequestError(f"the baseline is of something else: {told}", field="baseline")
    steps = {row_of(images) for images in new["batches"]}
    lost = [name for name in old["stages"] if name.startswith("step") and name not in steps]
    if lost := lost or sorted(rows(old).keys() - rows(new).keys() if "stages" in new else ()):
        raise RequestError(f"a figure is missing that the baseline has: {', '.join(lost)}", field="baseline")


def compare(new: Mapping[str, Any], old: Mapping[str, Any], threshold: float) -> dict[str, Any]:
    """New over old by row; slower is a row beyond `threshold`, where the middle halves of FEW runs lie apart too."""
    comparable(new, old)
    now, then = rows(new), rows(old)
    ratios = {name: round(now[name]["median_ms"] / then[name]["median_ms"], 3) for name in then}
    beyond = [name for name, ratio in ratios.items() if ratio > 1 + threshold]
    slower = [
        name
        for name in beyond
        if now[name]["p25_ms"] > then[name]["p75_ms"] * (1 + threshold / 2) and now[name].get("runs", FEW) >= FEW
    ]
    machines = {report["machine"]["processor"] for report in (new, old)}
    apart = [name for name, ratio in ratios.items() if not 1 / (1 + AGREE) <= ratio <= 1 + AGREE]
    figures = {"ratios": ratios, "slower": slower, "doubtful": [name for name in beyond if name not in slower]}
    return {**figures, "apart": apart, "threshold": threshold, "machines": sorted(machines)}


def text(comparison: Mapping[str, Any]) -> str:
    """The comparison for people."""
    ratios, apart, machines = comparison["ratios"], comparison["apart"], comparison["machines"]
    lines = [("now / then", "")] + [
        (name, f"{ratio:.3f}" + "  SLOWER" * (name in comparison["slower"])) for name, ratio in ratios.items()
    ]
    said = [f"doubtful: two processors, {' and '.join(machines)}"] if len(machines) > 1 else []
    said += [f"{len(ratios) - len(apart)} of {len(ratios)} rows are within {AGREE:.0%}"]
    above, why = (
        f"{comparison['threshold']:.0%}",
        f"the runs' middle halves are not apart, or there are fewer than {FEW}",
    )
    listed = {f"not within {AGREE:.0%}": apart, f"above {above}, not called slower, for {why}": comparison["doubtful"]}
    listed[f"slower by more than {above}"] = comparison["slower"]
    said += [f"{what}: {', '.join(names)}" for what, names in listed.items() if names]
    return "\n".join([reports.table(lines), *said])
