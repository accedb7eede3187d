"""The verb `recommend`: captioned pictures from a folder, what they say about a model's clip skip, and its record."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

import clipskip
from clipskip import fields
from clipskip.engines import hints, publish, report
from clipskip.errors import BackendUnavailable, CheckpointError, RequestError
from clipskip.metadata import format_of, save
from clipskip.pictures import opened
from clipskip.recommend import LEAST, SURE, Verdict, recommend

from . import Outcome, output

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def run(args: argparse.Namespace) -> Outcome:
    """Measure, show every depth, and write the answer into the store where that is asked for."""
    paths = _captioned(args.pictures)
    if args.plot is not None:
        figure, _ = empty_figure(), format_of(args.plot, "plot")
        destination = output.Destination(args.plot, args.overwrite, 1, "plot")
    most = len(paths) if args.most is None else fields.at_least("most", fields.whole("most", args.most), LEAST)
    skips = None if args.skips is None else fields.ranges("skips", args.skips)
    with clipskip.open(args.store, backend=args.target) as pipe, output.stages() as say:

        def show(verdict: Verdict) -> None:
            alike = len(verdict.alike) - 1
            say(f"{len(verdict.losses)} pictures: clip skip {verdict.best}, {alike} others alike")

        verdict = recommend(pipe, islice(_read(paths), most), skips, show)
    written = args.write and verdict.recommended is not None
    if verdict.recommended is not None and written:
        publish.recommend(args.store, pipe.model.model_sha256, verdict.recommended, verdict.evidence)
    plot = None
    if args.plot is not None:
        picture = draw(verdict, figure)
        plot = str(destination.save(0, lambda path, overwrite: save(picture, path, None, overwrite=overwrite)))
    losses, depths = dict(zip(verdict.skips, verdict.losses.mean(0).tolist(), strict=True)), list[dict[str, Any]]()
    rows = [("clip skip", "loss", "above the least", "standard error")]
    for skip in verdict.skips:
        above, error = verdict.worse(skip)
        depths.append({"clip_skip": skip, "loss": losses[skip], "above": above, "standard_error": error})
        rows.append((str(skip), f"{losses[skip]:.5f}", f"{above:.5f}", f"{error:.5f}"))
    facts = {"recommended": verdict.recommended, "evidence": verdict.evidence, "written": written, "depths": depths}
    lines = [report.table(rows), "", verdict.evidence, *["written into the store"] * written, *[plot] * bool(plot)]
    return Outcome({**facts, "pictures": len(verdict.losses), "plot": plot}, "\n".join(map(str, lines)))


def empty_figure() -> Any:
    """matplotlib's; BackendUnavailable without it."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        hint = hints.install("matplotlib>=3.9")
        raise BackendUnavailable("plots are drawn with matplotlib, which is not installed", hint=hint) from error
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw(verdict: Verdict, figure: Any) -> PIL.Image.Image:
    """The loss of each clip skip above the best one's, with SURE standard errors around it, as a picture."""
    above, errors = (np.array(each) for each in zip(*map(verdict.worse, verdict.skips), strict=True))
    axes, skips, alike = figure.subplots(), np.array(verdict.skips), np.isin(verdict.skips, verdict.alike)
    axes.axhline(0, color="0.6", linewidth=1)
    for chosen, colour, name in ((alike, "tab:blue", "cannot be told from the best"), (~alike, "tab:red", "worse")):
        lengths = SURE * errors[chosen]
        axes.errorbar(skips[chosen], above[chosen], lengths, fmt="o", color=colour, capsize=3, label=name)
    axes.set_xticks(skips)
    axes.set(xlabel="clip skip", ylabel="loss above the least")
    axes.set_title(
        f"{verdict.evidence}\nbars: {SURE:.0f} standard errors of the paired difference", fontsize=9, wrap=True
    )
    axes.legend(frameon=False, fontsize=8)
    figure.canvas.draw()
    return PIL.Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")


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
            caption, picture = path.with_suffix(".txt").read_text("utf-8").strip(), opened(path.name, str(path))
        except (OSError, ValueError, RequestError) as error:
            raise CheckpointError(f"{path} or its caption cannot be read: {error}", path=path) from error
        yield picture, caption
