"""The verb that makes pictures, `generate`, the lists of prompts that it reads, and what `grid` shares with it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import groupby, islice
from operator import attrgetter
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import clipskip
from clipskip.errors import CheckpointError, ClipskipError, RequestError, StoreError
from clipskip.fields import whole
from clipskip.request import FIELDS, Request, given_twice

from . import Outcome, Parser, Verbs, output, path, store_verb

if TYPE_CHECKING:
    from clipskip.ledger import Ledger
    from clipskip.pipeline import Pipeline
    from clipskip.result import Result

TOGETHER = 8  # at most so many pictures are in the making at once
LARGEST, MOST_LINES = 16 << 20, 100_000  # bytes and lines of a list of prompts
MOST_REFUSED = 20  # lines of it that are named
SHORT = {"negative_prompt": "-n", "width": "-W", "height": "-H", "seed": "-s", "batch": "-b"}  # stable-diffusion.cpp's


@dataclass(frozen=True)
class Job:
    """A request, or as much of its batch as shares every call; from line `number` of a list, or 0.

    `kind`: how many neighbours of the same kind share calls, about how many those are, and width, height and chunks.
    """

    number: int
    request: Request | Ledger
    kind: tuple[int, int, int, int, int]


def add_to(verbs: Verbs) -> None:
    """Let argparse know these verbs."""
    verb = store_verb(verbs, generate, "make pictures", "Make pictures from an engine store.")
    add_making(verb, "a .png, .jpg or .webp file, - (stdout), or a folder (default: this one)", default=Path())
    verb.add_argument(
        "--from", dest="repeat", type=path, metavar="IMAGE", help="repeat a picture, or the .txt beside one"
    )
    text = "one prompt, /render line, or line such as --prompt 'a cat' --steps 20 per line; # starts a comment"
    verb.add_argument("--lines", type=path, metavar="FILE", help=text)
    text = "a .png, .jpg or .webp file that shows what is in the making"
    verb.add_argument("--preview", type=path, metavar="FILE", help=text)
    text = "between previews; 0 is every call (default: 1, and more where they would take above a fifth of the time)"
    verb.add_argument("--preview-interval", type=float, metavar="SECONDS", help=text)
    text = "of a sheet: the place of the cell to repeat along its axes, such as 2,1"
    verb.add_argument("--cell", metavar="X,Y,Z", help=text)


def add_making(verb: Parser, out: str, **row: Any) -> None:
    """What both verbs take: a prompt, how the store is opened, and every field of a request under all its names."""
    verb.names = _names
    verb.add_argument("prompt", nargs="?", metavar="PROMPT", help="a prompt, a /render line, or - for lines from stdin")
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
    alone = _repeated if args.repeat is not None else request_of
    requests, refused = read_list(args) if from_lines else ({0: alone(args)}, {})
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
            for number, result in _results(pipe, plan(pipe, requests, refused, args.lines), bar, preview):
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


def _results(
    pipe: Pipeline, jobs: Sequence[Job], bar: output.Bar, preview: output.Preview | None
) -> Iterator[tuple[int, Result]]:
    """The results in order, with the numbers of their lines."""
    done, left = 0, sum(job.kind[1] for job in jobs)
    for (together, calls, *_), neighbours in groupby(jobs, attrgetter("kind")):
        while group := list(islice(neighbours, together)):
            left -= calls * len(group)
            for state in pipe.steps(*(job.request for job in group)):
                bar.show(done + state.call, done + state.calls + left)
                if preview:
                    preview.show(state)
            done += state.calls
            yield from zip((job.number for job in group), state.results, strict=True)


def _saved(result: Result, destination: output.Destination) -> Iterator[dict[str, Any]]:
    """The facts of each picture of a result, when it is saved."""
    for index, seed in enumerate(result.seeds):
        path = destination.save(seed, partial(result.save, index=index))
        request = asdict(result.alone(index))
        yield {"file": str(path), "request": request, "engines": result.engines, "timings": result.timings}


def destination_of(args: argparse.Namespace, count: int) -> output.Destination:
    """Where a verb's pictures go."""
    destination = output.Destination(args.out, args.overwrite, count)
    if destination.is_stdout and (args.json or sys.stdout is None or sys.stdout.isatty()):
        message = "--out - writes the PNG to standard output: not beside --json, and not to a terminal"
        raise RequestError(message, field="out", hint="redirect it to a file or a pipe, or name a file")
    return destination


def _given(args: argparse.Namespace) -> dict[str, str]:
    """The fields that were given as options."""
    from clipskip.render import size

    if sum(source is not None for source in (args.prompt, args.prompt_option, args.repeat, args.lines)) != 1:
        sources = "a PROMPT (or - for stdin), --from IMAGE, --lines FILE" if args.verb == "generate" else "a PROMPT"
        raise RequestError(f"give one of: {sources}", field="prompt")
    given = {field: vars(args)[field] for field in FIELDS if field != "prompt" and vars(args)[field] is not None}
    sides = size(args.size) if args.size is not None else {}
    if twice := [side for side in sides if side in given]:
        raise given_twice(twice[0])
    return given | sides


def request_of(args: argparse.Namespace) -> Request:
    """The request of a prompt. What a /render line says goes before the options."""
    from clipskip import render

    given = _given(args)
    return Request.from_text(given | render.fields(args.prompt if args.prompt is not None else args.prompt_option))


def _repeated(args: argparse.Namespace) -> Ledger:
    """The request of a picture, with what was typed over it."""
    from clipskip import metadata

    given = _given(args)
    cell = None if args.cell is None else [whole("cell", number.strip()) for number in args.cell.split(",")]
    return metadata.read_ledger(args.repeat, cell).given(given)


def read_list(args: argparse.Namespace) -> tuple[dict[int, Request | Ledger], dict[int, ClipskipError]]:
    """The requests of a list, and what is wrong with its other lines, by their numbers."""
    from clipskip import render

    requests: dict[int, Request | Ledger] = {}
    given, refused = _given(args), dict[int, ClipskipError]()
    for number, line in enumerate(_text(args.lines).split("\n"), 1):
        if number > MOST_LINES:
            raise RequestError(f"a list has at most {MOST_LINES} lines", field="lines", hint="give it in parts")
        line = line.strip()
        if line and not line.startswith("#"):
            try:
                fields = render.options(line) if line.startswith("--") else render.fields(line)
                requests[number] = Request.from_text(given | fields)
            except RequestError as error:
                refused[number] = error
    if not requests and not refused:
        raise RequestError("there is no prompt: every line is empty or a comment", field="prompt")
    return requests, refused


def plan(
    pipe: Pipeline, requests: Mapping[int, Request | Ledger], refused: dict[int, ClipskipError], lines: Path | None
) -> list[Job]:
    """What is to be done, in order. Whatever is refused is refused now, all of it together."""
    jobs = []
    for number, request in requests.items():
        try:
            resolved = pipe.check(request)
        except (RequestError, CheckpointError, StoreError) as error:
            refused[number] = error
            continue
        most = min(pipe.together(resolved), TOGETHER)
        calls = resolved.calls
        for start in range(0, request.batch, most):
            (seed, subseed), batch = resolved.seeds[start], min(most, request.batch - start)
            kind = most // batch, calls * batch, resolved.width, resolved.height, resolved.chunks
            asked = request if isinstance(request, Request) else request.request
            asked = replace(asked, seed=seed, subseed=subseed, batch=batch)
            jobs.append(Job(number, asked if isinstance(request, Request) else replace(request, request=asked), kind))
    if not refused:
        return jobs
    first = refused[min(refused)]
    if not min(refused):  # it is of no list
        raise first
    source = lines or "standard input"
    if len(refused) == 1:
        message, hint = f"{source}:{min(refused)}: {first.message}", first.hint
    else:
        told = [f"{source}:{number}: {refused[number].message}" for number in sorted(refused)[:MOST_REFUSED]]
        more = [f"and {len(refused) - MOST_REFUSED} more"] if len(refused) > MOST_REFUSED else []
        message, hint = "\n  ".join([f"{len(refused)} lines are refused, and none is made", *told, *more]), None
    raise type(first)(message, path=lines, field=first.field, hint=hint)


def _text(file: Path | None) -> str:
    """The text of a file, or of stdin: in UTF-8, with or without a mark at its beginning."""
    from clipskip import files

    name = str(file or "standard input")
    try:
        if file is None and sys.stdin is None:
            raise CheckpointError("it is closed")
        data = sys.stdin.buffer.read(LARGEST + 1) if file is None else files.read(file, LARGEST + 1)
    except (OSError, CheckpointError) as error:
        hint = "lists are regular files, or come from standard input where the prompt is -"
        raise CheckpointError(f"cannot read {name}: {error}", path=file, hint=hint) from error
    try:
        if len(data) > LARGEST:
            raise CheckpointError(f"{name} has more than {LARGEST >> 20} MiB", path=file, hint="give it in parts")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        message = f"{name}:{number}: no UTF-8 ({error.reason})"
        raise RequestError(message, path=file, field="lines", hint="save the list as UTF-8") from error
