"""The verb `grid`: a request varied along up to three axes, as a labelled sheet, a page and single files."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING

from clipskip.errors import RequestError

from . import Outcome, Verbs, output, path, pictures, store_verb

if TYPE_CHECKING:
    from clipskip.axes import Axis
    from clipskip.sheet import Sheet, Stage

AXES = {
    "x": 'such as "clip_skip=1-13", "cfg=4-7(+0.5)", "sampler=Euler a,DDIM", "prompt_sr=red,blue", "lora:NAME=0-1[5]"',
    "y": "the same, downwards; store=FOLDER,FOLDER puts other checkpoints beside STORE",
    "z": "the same, in blocks",
}


def add_to(verbs: Verbs) -> None:
    """Let argparse know the verb."""
    about = "Vary a request along one to three axes: any of its fields, words of its prompts, LoRAs, checkpoints."
    verb = store_verb(verbs, grid, "draw a labelled X/Y/Z sheet", about)
    pictures.add_making(verb, "the sheet: a .png file, or - for stdout", required=True)
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

    base, axes = pictures.request_of(args), _axes(args)
    if str(args.out) != "-" and args.out.suffix.lower() != ".png":
        raise RequestError(f"a sheet is written as a .png file, not {args.out}", field="out")
    if args.font is not None:
        lettering([], 12, args.font)
    if args.html is not None and args.html.suffix.lower() != ".html":
        raise RequestError(f"a page is written as a .html file, not {args.html}", field="html")
    destination = pictures.destination_of(args, 1)
    page = None if args.html is None else output.Destination(args.html, args.overwrite, 1, "html", ".html")
    stages = steps(base, axes, partial(pictures.opened, args))
    sheet, files = None, dict[int, str]()
    try:
        for grown in _made(stages, args, files):
            sheet = grown
    finally:
        if sheet is not None and sheet.made:
            written = {"file": str(destination.save(0, partial(sheet.save, font=args.font)))}
            if page:
                written["page"] = str(page.save(0, partial(save, sheet)))
            if len(sheet.made) < len(sheet.results):
                output.say(f"{len(sheet.made)} of {len(sheet.results)} cells are finished, and in {args.out}")
            axes_told = [{"field": axis.field, "values": axis.values} for axis in axes]
            requests = [result and asdict(result.request) for result in sheet.results]
            args.kept |= {**written, "axes": axes_told, "cells": requests}
            args.kept |= {"files": [files.get(i) for i in range(len(requests))]} if files else {}
            args.kept |= {"timings": sheet.made[0].timings, **pictures.noted(sheet.notes)}
    return Outcome(args.kept, "\n".join(shown for shown in (*written.values(), *files.values()) if shown != "-"))


def _axes(args: argparse.Namespace) -> list[Axis]:
    """The axes that were typed. STORE is the first of those on an axis `store`, unless it is named there as well."""
    from clipskip.axes import STORE, parse_axis

    if args.z and not args.y:
        raise RequestError("--z without --y: the second axis is y", field="axis")
    axes = [parse_axis(text) for text in (args.x, args.y, args.z) if text]
    own = str(args.store)
    return [
        replace(axis, values=(own, *axis.values))
        if axis.field == STORE and os.path.realpath(own) not in map(os.path.realpath, axis.values)
        else axis
        for axis in axes
    ]


def _made(stages: Iterator[Stage], args: argparse.Namespace, files: dict[int, str]) -> Iterator[Sheet]:
    """The sheet as it grows, with the bar drawn and the cells saved one by one."""
    bar, saved, cells = None, set[int](), None
    try:
        for stage in stages:
            results = stage.sheet.results
            bar = bar or output.Bar(len(results))
            if args.cells and cells is None:
                cells = output.Destination(args.cells, args.overwrite, len(results))
            for i, result in enumerate(results):
                if result and i not in saved:
                    if cells:
                        files[i] = str(cells.save(result.seeds[0], result.save))
                    saved.add(i)
                    bar.saved(None)
            bar.show(stage.call, stage.calls)
            yield stage.sheet
    finally:
        if bar:
            bar.clear()
