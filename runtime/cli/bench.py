"""The verb `bench`: what a store takes, beside an earlier report if there is one. `clipskip.bench` measures."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from clipskip import fields, metadata
from clipskip.errors import RequestError, StorageError

from . import Outcome, extra, output

NUMBERS = {"size": 0, "steps": 3, "rounds": 5, "minutes": 1, "threshold": 1}  # options, and the least that they take
THRESHOLD = 10  # percent
SCENES = 48  # enough for intervals of some hundredths


def run(args: argparse.Namespace) -> Outcome:
    """Measure, write the report where that is asked for, and compare."""
    from clipskip.bench import baseline, store
    from clipskip.bench.report import chapter

    if args.fidelity:
        return fidelity(args)
    typed = {name: value for name in NUMBERS if (value := getattr(args, name)) is not None}
    given: dict[str, Any] = {
        name: fields.at_least(name, fields.whole(name, value), NUMBERS[name]) for name, value in typed.items()
    }
    threshold = given.pop("threshold", THRESHOLD) / 100
    given |= {"target": args.target} if args.target else {}
    batches = () if args.batch is None else fields.ranges("batch", args.batch)
    asked, old = store.Options(batches=batches, **given), args.baseline and baseline.read(args.baseline)
    _write(args.out)  # minutes before the report
    with output.stages() as say:
        report = store.measure(args.store, asked, say, old)
    lines = [*chapter(report["model"], report, None)]
    slower, line = list[str](), _write(args.out, json.dumps(report))  # also where it cannot be compared
    if old:
        comparison = baseline.compare(report, old, threshold)
        slower, report = comparison["slower"], {**report, "comparison": comparison}
        lines.append(f"{baseline.text(comparison)}\n")
        line = _write(args.out, json.dumps(report))
    return Outcome(report, "\n".join([*lines, line]), 1 if slower else 0)


def _write(path: Path | None, line: str = "") -> str:
    """Write the line in one step, where there is a file for it; without one, see that it could be. StorageError."""
    if path is not None:
        if path.exists() and not path.is_file():
            raise StorageError(f"{path} is there and is no file", path=path)
        try:
            with TemporaryFile(dir=next(folder for folder in path.absolute().parents if folder.exists())):
                pass  # a report is kept whole or not at all: so far not even its folder is made
            if line:
                path.parent.mkdir(parents=True, exist_ok=True)
                metadata.write(path, f"{line}\n".encode(), True)
        except OSError as error:
            raise StorageError(f"cannot write {path}: {error.strerror}", path=path) from error
    return line


def fidelity(args: argparse.Namespace) -> Outcome:
    """What pictures keep of their prompts at each clip skip."""
    for name in (*NUMBERS, "target", "batch", "baseline"):
        if getattr(args, name) is not None:
            raise RequestError(f"--fidelity measures no time: it takes no --{name}", field=name)
    _write(args.out)
    with extra("bench", "fidelity"):
        module = importlib.import_module("clipskip.bench.fidelity")
    report = module.measure(args.store, SCENES)
    return Outcome(report, f"{module.table(report)}\n{_write(args.out, json.dumps(report))}")
