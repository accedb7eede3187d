"""The verb that makes pictures, `generate`, and what other verbs share with it."""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from itertools import groupby, islice
from operator import attrgetter
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import clipskip
from clipskip.errors import ClipskipError, DeviceOutOfMemory, NumericalError, RequestError
from clipskip.fields import whole
from clipskip.request import FIELDS, Request, given_twice

from . import Outcome, Parser, Verbs, lists, output, path, store_verb

if TYPE_CHECKING:
    from clipskip.ledger import Ledger
    from clipskip.pipeline import Pipeline
    from clipskip.result import Result

SHORT = {"negative_prompt": "-n", "width": "-W", "height": "-H", "seed": "-s", "batch": "-b"}  # stable-diffusion.cpp's


def add_to(verbs: Verbs) -> None:
    """Let argparse know these verbs."""
    verb = store_verb(verbs, generate, "make pictures", "Make pictures from an engine store.")
    text, prompt = "a .png, .jpg or .webp file, - (stdout), or a folder (default: this one)", "a prompt, a /render line"
    add_making(verb, f"{prompt}, or - for lines from stdin", text, default=Path())
    verb.add_argument(
        "--from", dest="repeat", type=path, metavar="IMAGE", help="repeat a picture, or the .txt beside one"
    )
    text = "a prompt, /render line, JSON object, or line such as --prompt 'a cat' --steps 20 per line; # is a comment"
    verb.add_argument("--lines", type=path, metavar="FILE", help=text)
    text = "of lines: name pictures by what makes them, and make those that OUT has not; a wrong line stops no other"
    verb.add_argument("--resume", action="store_true", help=text)
    text = "a .png, .jpg or .webp file that shows what is in the making"
    verb.add_argument("--preview", type=path, metavar="FILE", help=text)
    text = "between previews; 0 is every call (default: 1, and more where they would take above a fifth of the time)"
    verb.add_argument("--preview-interval", type=float, metavar="SECONDS", help=text)
    text = "of a sheet: the place of the cell to repeat along its axes, such as 2,1"
    verb.add_argument("--cell", metavar="X,Y,Z", help=text)


def add_making(verb: Parser, prompt: str, out: str, **row: Any) -> None:
    """What both verbs take: a prompt, how the store is opened, and every field of a request under all its names."""
    verb.names = _names
    verb.add_argument("prompt", nargs="?", metavar="PROMPT", help=prompt)
    verb.add_argument("-p", "--prompt", dest="prompt_option", metavar="PROMPT", help="the same")
    verb.add_argument("-o", "--out", "--output", type=path, metavar="OUT", help=out, **row)
    verb.add_argument("--overwrite", action="store_true", help="replace an existing file")
    verb.add_argument("--target", default="onnxruntime", help="the backend (default: onnxruntime, on the CPU)")
    verb.add_argument("--embeddings", type=path, action="append", default=[], help="a textual inversion, or a folder")
    text = "a LoRA, or a folder: for <lora:name:0.8> in prompts, and --lora"
    verb.add_argument("--loras", dest="lora_files", type=path, action="append", default=[], help=text)
    settings = verb.add_argument_group("the request")
    settings.add_argument("--size", metavar="WxH", help="width and height, such as 512x768")
    for field in FIELDS.values():
        if field.option:
            shown = [*([SHORT[field.name]] if field.name in SHORT else []), field.option]
            settings.add_argument(*shown, dest=field.name, metavar="VALUE", help=field.help)
            names = {f"--{name.replace('_', mark)}" for name in (field.name, *field.aliases) for mark in "-_"}
            if names := names - {field.option, "--loras"}:
                settings.add_argument(*sorted(names), dest=field.name, help=argparse.SUPPRESS)


def _names() -> str:
    """What there is to choose from, for the end of the help."""
    from clipskip.backends import NAMES
    from clipskip.samplers import SAMPLERS
    from clipskip.schedules import SCHEDULES

    aliases = {field.option: {f"--{alias.replace('_', '-')}" for alias in field.aliases} for field in FIELDS.values()}
    listed = {
        "targets": NAMES,
        "samplers": [sampler.name for sampler in SAMPLERS],
        "schedules": ["automatic", *SCHEDULES],
        "other names": [
            f"{option}: {' '.join(sorted(names - {option}))}" for option, names in aliases.items() if names
        ],
    }
    return "\n".join(fill(f"{what}: {', '.join(names)}", 100) for what, names in listed.items())


def generate(args: argparse.Namespace) -> Outcome:
    """Make the pictures of every prompt, and write each with its request in the metadata as soon as it is finished."""
    from_lines = args.lines is not None or "-" in (args.prompt, args.prompt_option)
    if args.preview_interval is not None and args.preview is None:
        raise RequestError("--preview-interval is for --preview FILE", field="preview", hint="name the file")
    if args.cell is not None and args.repeat is None:
        raise RequestError("--cell is for --from SHEET", field="cell", hint="name the sheet")
    if args.resume:
        if args.preview is not None or not from_lines:
            hint = "give --lines FILE, or - as the prompt, and no --preview"
            raise RequestError("--resume is for lists that nobody watches", field="resume", hint=hint)
        return lists.resume(args)
    requests: Mapping[int, Request | Ledger] = {}
    refused: dict[int, ClipskipError] = {}
    if from_lines:
        requests, refused = lists.read_list(args.lines, given(args))
    else:
        requests = {0: _repeated(args) if args.repeat is not None else request_of(args)}
    count = sum(request.batch for request in requests.values())
    destination = destination_of(args, count)
    pictures: list[dict[str, Any]] = []
    warnings: list[str] = []
    bar = output.Bar(count)
    preview = None
    if args.preview is not None:
        preview = output.Preview(args.preview, args.out, args.overwrite, args.preview_interval, bar)
    try:
        with opened(args) as pipe:
            for number, result in results(pipe, lists.plan(pipe, requests, refused, args.lines), bar, preview):
                warnings += result.warnings
                for picture in _saved(result, destination):
                    pictures.append({"line": number, **picture} if from_lines else picture)
                    bar.saved(None if args.json or destination.is_stdout else picture["file"])
    finally:
        bar.clear()
        if from_lines and 0 < len(pictures) < count:
            output.say(f"{len(pictures)} of {count} pictures are saved")
        args.kept |= {"pictures": pictures, **noted(warnings)}
    return Outcome(args.kept, "")


def opened(args: argparse.Namespace, store: str | None = None) -> Pipeline:
    """The pipeline of a verb's store, or of another one."""
    files = {"embeddings": args.embeddings, "loras": args.lora_files}
    return clipskip.open(args.store if store is None else store, backend=args.target, **files)


def noted(warnings: Iterable[str]) -> dict[str, list[str]]:
    """Every warning once: said on stderr, and for the data."""
    once = list(dict.fromkeys(warnings))
    for warning in once:
        output.say(f"note: {warning}")
    return {"warnings": once}


def results(
    pipe: Pipeline,
    jobs: Iterable[lists.Job],
    bar: output.Bar,
    preview: output.Preview | None = None,
    broken: dict[int, ClipskipError] | None = None,
) -> Iterator[tuple[int, Result]]:
    """The results in order, with the numbers of their lines.

    Where `broken` is given, pictures that come out as NaN or lack memory join it, and end nothing.
    """
    groups = deque[list[lists.Job]]()
    for (together, *_), neighbours in groupby(jobs, attrgetter("kind")):
        while neighbouring := list(islice(neighbours, together)):
            groups.append(neighbouring)
    done, left = 0, sum(job.kind[1] for group in groups for job in group)
    while groups:
        group = groups.popleft()
        left -= (calls := sum(job.kind[1] for job in group))
        try:
            for state in pipe.steps(*(job.request for job in group)):
                bar.show(done + state.call, done + state.calls + left)
                if preview:
                    preview.show(state)
        except (NumericalError, DeviceOutOfMemory) as error:
            if broken is None:
                raise
            if len(group) == 1:
                broken[group[0].number] = error
            else:  # one of them: which one, each alone will tell
                groups.extendleft([job] for job in reversed(group))
                left += calls
            continue
        done += state.calls
        yield from zip((job.number for job in group), state.results, strict=True)


def _saved(result: Result, destination: output.Destination) -> Iterator[dict[str, Any]]:
    """The facts of each picture of a result, when it is saved."""
    for index, seed in enumerate(result.seeds):
        yield facts(result, index, destination.save(seed, partial(result.save, index=index)))


def facts(result: Result, index: int, file: Path) -> dict[str, Any]:
    """What --json tells of a picture."""
    request = asdict(result.alone(index))
    return {"file": str(file), "request": request, "engines": result.engines, "timings": result.timings}


def destination_of(args: argparse.Namespace, count: int) -> output.Destination:
    """Where a verb's pictures go."""
    destination = output.Destination(args.out, args.overwrite, count)
    if destination.is_stdout and (args.json or sys.stdout is None or sys.stdout.isatty()):
        message = "--out - writes the PNG to standard output: not beside --json, and not to a terminal"
        raise RequestError(message, field="out", hint="redirect it to a file or a pipe, or name a file")
    return destination


def given(args: argparse.Namespace) -> dict[str, str]:
    """The fields that were given as options."""
    from clipskip.render import size

    if sum(source is not None for source in (args.prompt, args.prompt_option, args.repeat, args.lines)) != 1:
        sources = "a PROMPT (or - for stdin), --from IMAGE, --lines FILE" if args.verb == "generate" else "a PROMPT"
        raise RequestError(f"give one of: {sources}", field="prompt")
    fields = {name: vars(args)[name] for name in FIELDS if name != "prompt" and vars(args)[name] is not None}
    sides = size(args.size) if args.size is not None else {}
    if twice := [side for side in sides if side in fields]:
        raise given_twice(twice[0])
    return fields | sides


def request_of(args: argparse.Namespace) -> Request:
    """The request of a prompt. What a /render line says goes before the options."""
    from clipskip import render

    fields = given(args)
    return Request.from_text(fields | render.fields(args.prompt if args.prompt is not None else args.prompt_option))


def _repeated(args: argparse.Namespace) -> Ledger:
    """The request of a picture, with what was typed over it."""
    from clipskip import metadata

    fields = given(args)
    cell = None if args.cell is None else [whole("cell", number.strip()) for number in args.cell.split(",")]
    return metadata.read_ledger(args.repeat, cell).given(fields)
