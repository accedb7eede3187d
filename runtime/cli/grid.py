"""The verb `grid`: a request varied along up to three axes, as a labelled sheet, a page and single files."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict, replace
from functools import partial
from math import prod
from typing import TYPE_CHECKING

from clipskip.errors import RequestError

from . import Outcome, Verbs, output, path, pictures, store_verb

if TYPE_CHECKING:
    from clipskip.axes import Axis

AXES = {
    "x": 'such as "clip_skip=1-13", "cfg=4-7(+0.5)", "sampler=Euler a,DDIM", "prompt_sr=red,blue", "lora:NAME=0-1[5]"',
    "y": "the same, downwards; store=FOLDER,FOLDER puts other checkpoints beside STORE",
    "z": "the same, in blocks",
}


def add_to(verbs: Verbs) -> None:
    """Let argparse know the verb."""
    about = "Vary a request along one to three axes: any of its fields, words of its prompts, LoRAs, checkpoints."
    verb = store_verb(verbs, grid, "draw a labelled X/Y/Z sheet", about)
    prompt = "a prompt, or a /render line; none is needed where an axis is prompt=..."
    pictures.add_making(verb, prompt, "the sheet: a .png file, or - for stdout", required=True)
    for name, text in AXES.items():
        verb.add_argument(f"--{name}", required=name == "x", metavar="FIELD=VALUES", help=text)
    text = "also a page for a browser: a cell in full size, with its settings, at a click; one file, no network"
    verb.add_argument("--html", type=path, metavar="FILE", help=text)
    verb.add_argument("--cells", type=path, metavar="FOLDER", help="also each picture by itself, as it is finished")
    text = "of the labels (default: one of the system's that has their characters)"
    verb.add_argument("--font", type=path, metavar="FILE", help=text)
    verb.set_defaults(repeat=None, lines=None)


def grid(args: argparse.Namespace) -> Outcome:
    """Draw the sheet. What ends it early, an interrupt or an error, leaves the cells that are finished."""
    from clipskip.lettering import lettering
    from clipskip.page import save
    from clipskip.sheet import steps

    axes = _axes(args)
    if args.prompt is None and args.prompt_option is None and any(axis.field == "prompt" for axis in axes):
        args.prompt = ""  # the axis has all that there are
    if "-" in (args.prompt, args.prompt_option):
        raise RequestError("a sheet is of one prompt, and - is a list: `generate STORE -` takes one", field="prompt")
    base = pictures.request_of(args)
    for field, suffix in (("out", ".png"), ("html", ".html")):
        file = vars(args)[field]
        if file is not None and file.suffix.lower() != suffix and (field, str(file)) != ("out", "-"):
            raise RequestError(f"--{field} is a {suffix} file, not {file}", field=field)
    if args.font is not None:
        lettering([], 12, args.font)
    destination = pictures.destination_of(args, 1)
    page = None if args.html is None else output.Destination(args.html, args.overwrite, 1, "html", ".html")
    folder = None if args.cells is None else output.Destination(args.cells, args.overwrite, 2, "cells", None)
    bar, sheet, files = output.Bar(prod(len(axis.values) for axis in axes)), None, dict[int, str]()
    try:
        for stage in steps(base, axes, partial(pictures.opened, args)):
            before, sheet = sheet, stage.sheet
            for i, result in enumerate(sheet.results if sheet is not before else ()):
                if result and not (before and before.results[i]):
                    files |= {i: str(folder.save(result.seeds[0], result.save))} if folder else {}
                    bar.saved(None)
            bar.show(stage.call, stage.calls)
    finally:
        bar.clear()
        if sheet is not None and sheet.made:
            written = {"file": str(destination.save(0, partial(sheet.save, font=args.font)))}
            if page:
                written["page"] = str(page.save(0, partial(save, sheet)))
            if len(sheet.made) < len(sheet.results):
                output.say(f"{len(sheet.made)} of {len(sheet.results)} cells are finished, and in {args.out}")
            args.kept |= {**written, "axes": [{"field": axis.field, "values": axis.values} for axis in axes]}
            args.kept |= {"cells": [result and asdict(result.request) for result in sheet.results]}
            args.kept |= {"files": [files.get(i) for i in range(len(sheet.results))]} if files else {}
            args.kept |= {"timings": sheet.made[0].timings, **pictures.noted(sheet.notes)}
    names = [] if destination.is_stdout else [*written.values(), *files.values()]
    return Outcome(args.kept, "\n".join(names))


def _axes(args: argparse.Namespace) -> list[Axis]:
    """The axes that were typed. STORE is the first of those on an axis `store`, unless it is named there as well."""
    from clipskip.axes import STORE, parse_axis

    if args.z and not args.y:
        raise RequestError("--z without --y: the second axis is y", field="axis")
    axes, own = [parse_axis(text) for text in (args.x, args.y, args.z) if text], str(args.store)
    for i, axis in enumerate(axes):
        if axis.field == STORE and os.path.realpath(own) not in map(os.path.realpath, axis.values):
            axes[i] = replace(axis, values=(own, *axis.values))
    return axes
