"""The verb `recommend`: captioned pictures from a folder, what they say about a model's clip skip, and its record."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import PIL.Image

import clipskip
from clipskip import fields
from clipskip.engines import publish, report
from clipskip.errors import CheckpointError, RequestError
from clipskip.recommend import LEAST, Verdict, recommend

from . import Outcome, output

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def run(args: argparse.Namespace) -> Outcome:
    """Measure, show every depth, and write the answer into the store where that is asked for."""
    paths = _captioned(args.pictures)
    most = len(paths) if args.most is None else fields.at_least("most", fields.whole("most", args.most), LEAST)
    skips = None if args.skips is None else fields.ranges("skips", args.skips)
    with clipskip.open(args.store, backend=args.target) as pipe, output.stages() as say:

        def show(verdict: Verdict) -> None:
            alike = len(verdict.alike) - 1
            say(f"{len(verdict.losses)} pictures: clip skip {verdict.best}, {alike} others alike")

        verdict = recommend(pipe, islice(_read(paths), most), skips, show)
    written = args.write and verdict.recommended is not None
    if verdict.recommended is not None and written:
        publish.recommend(args.store, verdict.recommended, verdict.evidence)
    losses, depths = dict(zip(verdict.skips, verdict.losses.mean(0).tolist(), strict=True)), list[dict[str, Any]]()
    rows = [("clip skip", "loss", "above the least", "standard error")]
    for skip in verdict.skips:
        above, error = verdict.worse(skip)
        depths.append({"clip_skip": skip, "loss": losses[skip], "above": above, "standard_error": error})
        rows.append((str(skip), f"{losses[skip]:.5f}", f"{above:.5f}", f"{error:.5f}"))
    facts = {"recommended": verdict.recommended, "evidence": verdict.evidence, "written": written, "depths": depths}
    lines = [report.table(rows), "", verdict.evidence, *["written into the store"] * written]
    return Outcome(facts, "\n".join(lines))


def _captioned(folder: Path) -> list[Path]:
    """The pictures that have a caption beside them, a .txt of the same name."""
    if not folder.is_dir():
        raise RequestError(f"{folder} is no folder", field="pictures", hint="it holds name.png and name.txt")
    pictures = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
    captioned = [path for path in pictures if path.with_suffix(".txt").is_file()]
    if len(captioned) < LEAST:
        message = f"{folder} has {len(captioned)} captioned pictures (of {len(pictures)}); {LEAST} are the least"
        raise RequestError(message, field="pictures", hint="beside name.png belongs name.txt, with what it shows")
    return captioned


def _read(paths: list[Path]) -> Iterator[tuple[PIL.Image.Image, str]]:
    for path in paths:
        try:
            caption = path.with_suffix(".txt").read_text("utf-8").strip()
            with PIL.Image.open(path) as picture:
                picture.load()
                yield picture, caption
        except (OSError, ValueError, PIL.Image.DecompressionBombError) as error:
            raise CheckpointError(f"{path} or its caption cannot be read: {error}", path=path) from error
