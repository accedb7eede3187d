"""The verb `recommend`: captioned pictures from a folder, what they say about a model's clip skip, and its record."""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

import clipskip
from clipskip import fields
from clipskip.engines import hints, publish, report
from clipskip.errors import BackendUnavailable, CheckpointError, ClipskipError, RequestError
from clipskip.files import read
from clipskip.metadata import format_of, save
from clipskip.pictures import FORMATS, LARGEST, opened
from clipskip.recommend import LEAST, SURE, Verdict, recommend

from . import Outcome, output

MEND = "mend it (captions are UTF-8), or take it out of the folder"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def run(args: argparse.Namespace) -> Outcome:
    """Measure, show every depth, and write the answer into the store where that is asked for."""
    if args.plot is not None:
        figure, _ = empty_figure(), format_of(args.plot, "plot")
        destination = output.Destination(args.plot, args.overwrite, 1, "plot")
    captioned, left_out = _captioned(args.pictures)
    most = len(captioned) if args.most is None else fields.at_least("most", fields.whole("most", args.most), LEAST)
    skips = None if args.skips is None else fields.ranges("skips", args.skips)
    with clipskip.open(args.store, backend=args.target) as pipe, output.stages() as say:

        def show(verdict: Verdict) -> None:
            alike = len(verdict.alike) - 1
            say(f"{len(verdict.losses)} pictures: clip skip {verdict.best}, {alike} others alike")

        verdict = recommend(pipe, islice(_read(captioned), most), skips, show)
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
    said = ["written into the store" if written else "nothing is written: there is no answer"] * args.write
    lines = [report.table(rows), "", verdict.evidence, *said, *[plot] * bool(plot)]
    facts |= {"pictures": len(verdict.losses), "left_out": left_out, "plot": plot}
    return Outcome(facts, "\n".join(map(str, lines)))


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


def _captioned(folder: Path) -> tuple[list[tuple[Path, str]], dict[str, int]]:
    """Pictures with what the .txt beside each says, and how many are left out, by why. CheckpointError for broken ones.

    All captions are read here, and of pictures what shows damage without decoding: minutes before the last is used.
    """
    if not folder.is_dir():
        raise RequestError(f"{folder} is no folder", field="pictures", hint="it holds name.png and name.txt")
    pictures = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
    captioned, left_out = dict[Path, tuple[Path, str]](), Counter[str]()
    for path in pictures:
        beside = path.with_suffix(".txt")
        try:
            caption = beside.read_text("utf-8").strip() if beside.is_file() else None
            if not caption or beside in captioned:
                whose = "an empty" if caption == "" else "another's" if caption else "no"
                left_out[f"with {whose} caption"] += 1
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's, of what is odd in Exif
                PIL.Image.open(BytesIO(read(path, LARGEST)), formats=FORMATS).verify()
        except Exception as error:  # Pillow raises anything, from SyntaxError to struct.error, on broken files
            raise CheckpointError(f"{path} or its caption cannot be read: {error}", path=path, hint=MEND) from error
        captioned[beside] = path, caption
    said = f"{len(pictures)} pictures: {', '.join(f'{count} {why}' for why, count in left_out.items()) or 'none'}"
    if len(captioned) < LEAST:
        message = f"{folder} has {len(captioned)} captioned pictures (left out of {said}); {LEAST} are the least"
        raise RequestError(message, field="pictures", hint="beside name.png belongs name.txt, with what it shows")
    if left_out:
        output.say(f"left out of {said}")
    return list(captioned.values()), dict(left_out)


def _read(captioned: Iterable[tuple[Path, str]]) -> Iterator[tuple[PIL.Image.Image, str]]:
    """The pictures, decoded; what breaks off is said, and left out: others are measured already."""
    for path, caption in captioned:
        try:
            yield opened(path.name, str(path)), caption
        except (ClipskipError, OSError) as error:
            output.say(f"left out: {error}")
