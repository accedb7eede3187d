"""The verbs that make pictures: `generate` and `grid`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import clipskip
from clipskip.errors import CheckpointError, RequestError
from clipskip.request import FIELDS, Request

from . import Outcome, Verbs, output, store_verb

if TYPE_CHECKING:
    from clipskip.ledger import Ledger
    from clipskip.pipeline import Result

TOGETHER = 16  # requests that are planned and saved at once: a failure later loses none of them


def add_to(verbs: Verbs) -> None:
    """Let argparse know these verbs."""
    verb = store_verb(verbs, generate, "make pictures", "Make pictures from an engine store.")
    verb.add_argument("prompt", nargs="?", metavar="PROMPT", help="a prompt, a /render line, or - for lines from stdin")
    verb.add_argument(
        "--from",
        dest="image",
        type=Path,
        metavar="IMAGE",
        help="repeat the request in a picture, or in the .txt beside one",
    )
    verb.add_argument("--lines", type=Path, metavar="FILE", help="one prompt or /render line per line")
    verb.add_argument(
        "--out", type=Path, default=Path(), help="a .png, .jpg or .webp file, or a folder (default: this one)"
    )
    _add_making(verb)
    verb = store_verb(verbs, grid, "draw a labelled X/Y sheet", "Vary a request along two axes.")
    verb.add_argument("prompt", metavar="PROMPT", help="a prompt or a /render line")
    verb.add_argument("--x", required=True, metavar="FIELD=VALUES", help='such as "clip_skip=1-13"')
    verb.add_argument("--y", metavar="FIELD=VALUES", help='such as "cfg=1,4,7,12"')
    verb.add_argument("--out", type=Path, required=True, help="the sheet, a .png file")
    _add_making(verb)


def _add_making(verb: argparse.ArgumentParser) -> None:
    """What both verbs take: how the store is opened, and every field of a request."""
    verb.add_argument("--overwrite", action="store_true", help="replace an existing file")
    verb.add_argument("--target", default="onnxruntime", help="the backend (default: onnxruntime, on the CPU)")
    verb.add_argument("--embeddings", type=Path, action="append", default=[], help="a textual inversion, or a folder")
    settings = verb.add_argument_group("the request")
    for field in FIELDS.values():
        if field.option:
            settings.add_argument(field.option, dest=field.name, metavar="VALUE", help=field.help)


def generate(args: argparse.Namespace) -> Outcome:
    """Make the pictures of every prompt, some at a time, and write each with its request in the metadata."""
    requests = _requests(args)
    destination = output.Destination(args.out, args.overwrite, sum(request.batch for request in requests))
    pictures: list[dict[str, Any]] = []
    warnings: dict[str, None] = {}
    with clipskip.open(args.store, backend=args.target, embeddings=args.embeddings) as pipe:
        for start in range(0, len(requests), TOGETHER):
            for result in output.steps(pipe.steps(*requests[start : start + TOGETHER])):
                pictures += _saved(result, destination)
                warnings.update(dict.fromkeys(result.warnings))
    for warning in warnings:
        output.say(f"note: {warning}")
    data = {"pictures": pictures, "warnings": list(warnings)}
    return Outcome(data, "\n".join(picture["file"] for picture in pictures))


def _saved(result: Result, destination: output.Destination) -> Iterator[dict[str, Any]]:
    for index, seed in enumerate(result.seeds):
        path = destination.save(seed, partial(result.save, index=index))
        request = asdict(result.alone(index))
        yield {"file": str(path), "request": request, "engines": result.engines, "timings": result.timings}


def grid(args: argparse.Namespace) -> Outcome:
    """Draw one labelled sheet of a request varied along one or two axes."""
    from clipskip import metadata, sheet

    base = _requests(args)[0]
    assert isinstance(base, Request)  # there is no --from here
    x = sheet.parse_axis(args.x)
    y = sheet.parse_axis(args.y) if args.y else sheet.Axis("prompt", (base.prompt,))
    if args.y and x.field == y.field:
        raise RequestError(f"both axes vary {x.field}", field="axis")
    cells = sheet.requests(base, x, y)
    destination = output.Destination(args.out, args.overwrite, 1)
    with clipskip.open(args.store, backend=args.target, embeddings=args.embeddings) as pipe:
        results = output.steps(pipe.steps(*cells))
    first = results[0]
    origin = replace(first.origin(0), request=first.request)
    path = destination.save(0, partial(metadata.save, sheet.draw(results, x, y), origin=origin))
    warnings = dict.fromkeys(warning for result in results for warning in result.warnings)
    for warning in warnings:
        output.say(f"note: {warning}")
    data = {"file": str(path), "cells": [asdict(result.request) for result in results], "timings": first.timings}
    return Outcome({**data, "warnings": list(warnings)}, str(path))


def _requests(args: argparse.Namespace) -> Sequence[Request | Ledger]:
    """The requests that the arguments ask for, at least one. What a /render line says goes before the options."""
    from clipskip import metadata, render

    image, lines = getattr(args, "image", None), getattr(args, "lines", None)
    if sum(source is not None for source in (args.prompt, image, lines)) != 1:
        raise RequestError("give one of: a PROMPT (or - for stdin), --from IMAGE, --lines FILE", field="prompt")
    given = {field: vars(args)[field] for field in FIELDS if field != "prompt" and vars(args)[field] is not None}
    if image is not None:
        return [metadata.read_ledger(image).given(given)]
    if lines is None and args.prompt != "-":
        return [Request.from_text({**given, **render.fields(args.prompt)})]
    requests = []
    for number, line in enumerate(_text(lines).split("\n"), 1):
        try:
            if line.strip():
                requests.append(Request.from_text({**given, **render.fields(line.rstrip("\r"))}))
        except RequestError as error:
            raise RequestError(f"line {number}: {error.message}", field=error.field, hint=error.hint) from error
    if not requests:
        raise RequestError("there is no prompt: every line is empty", field="prompt")
    return requests


def _text(path: Path | None) -> str:
    """The text of a file, or of stdin."""
    name = "standard input" if path is None else str(path)
    if path is None and sys.stdin is None:
        raise CheckpointError("cannot read standard input: it is closed", hint="name a file with --lines")
    try:
        return (sys.stdin.buffer.read() if path is None else path.read_bytes()).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {name}: {error}", path=path) from error
