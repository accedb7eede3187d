"""Lists of requests: what their lines say, what is refused of them, what is made together, and what is there already.

Pictures have numbers, or (`generate --resume`) names by what makes them, so that a restart makes the missing ones.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from clipskip.engines.files import NotAFileError, open_regular
from clipskip.errors import CheckpointError, ClipskipError, RequestError, StoreError
from clipskip.request import Request

from . import Outcome, output

if TYPE_CHECKING:
    from clipskip.ledger import Ledger
    from clipskip.metadata import Origin
    from clipskip.pipeline import Pipeline
    from clipskip.resolve import Resolved

Asked = TypeVar("Asked", bound="Request | Ledger")
TOGETHER = 8  # at most so many pictures are in the making at once
LARGEST, MOST_LINES = 16 << 20, 100_000  # bytes and lines of a list of prompts
MOST_REFUSED = 20  # lines of it that are named
JSON = re.compile(r'\{\s*"')  # how a line begins that is a request as JSON; a prompt may begin with a brace
BEGIN, END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"  # of every PNG
NAME = 32  # hexadecimal digits


@dataclass(frozen=True)
class Job:
    """A request, or as much of its batch as shares every call; from line `number` of a list, or 0.

    `kind`: how many neighbours of the same kind share calls, about how many those are, and width, height and chunks.
    """

    number: int
    request: Request | Ledger
    kind: tuple[int, int, int, int, int]


def read_list(lines: Path | None, given: dict[str, str]) -> tuple[dict[int, Request], dict[int, ClipskipError]]:
    """The requests of a list, and what is wrong with its other lines, by their numbers."""
    from clipskip import render

    requests: dict[int, Request] = {}
    refused: dict[int, ClipskipError] = {}
    for number, line in enumerate(_text(lines).split("\n"), 1):
        if number > MOST_LINES:
            raise RequestError(f"a list has at most {MOST_LINES} lines", field="lines", hint="give it in parts")
        line = line.strip()
        if line and not line.startswith("#"):
            try:
                if JSON.match(line):
                    requests[number] = render.read(Request.from_json(line, given))
                    continue
                fields = render.options(line) if line.startswith("--") else render.fields(line)
                requests[number] = Request.from_text(given | fields)
            except RequestError as error:
                refused[number] = error
    if not requests and not refused:
        raise RequestError("there is no prompt: every line is empty or a comment", field="prompt")
    return requests, refused


def checked(
    pipe: Pipeline, requests: Mapping[int, Asked], refused: dict[int, ClipskipError]
) -> Iterator[tuple[int, Asked, Resolved]]:
    """The requests and what they mean to a model; those that mean nothing join `refused`."""
    for number, request in requests.items():
        try:
            resolved = pipe.check(request)
        except (RequestError, CheckpointError, StoreError) as error:
            refused[number] = error
        else:
            yield number, request, resolved


def parts(pipe: Pipeline, number: int, request: Request | Ledger, resolved: Resolved, size: int) -> Iterator[Job]:
    """The jobs of a request, each of at most `size` of its pictures."""
    most = min(pipe.together(resolved), TOGETHER)
    size = min(size, most)
    for start in range(0, request.batch, size):
        (seed, subseed), batch = resolved.seeds[start], min(size, request.batch - start)
        kind = most // batch, resolved.calls * batch, resolved.width, resolved.height, resolved.chunks
        asked = request if isinstance(request, Request) else request.request
        asked = replace(asked, seed=seed, subseed=subseed, batch=batch)
        yield Job(number, asked if isinstance(request, Request) else replace(request, request=asked), kind)


def plan(
    pipe: Pipeline, requests: Mapping[int, Request | Ledger], refused: dict[int, ClipskipError], lines: Path | None
) -> list[Job]:
    """What is to be done, in order. Whatever is refused is refused now, all of it together."""
    jobs = [job for each in checked(pipe, requests, refused) for job in parts(pipe, *each, TOGETHER)]
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


def resume(args: argparse.Namespace) -> Outcome:
    """Make the pictures of a list that are not there yet. Lines that cannot be made are told, and stop no others."""
    from . import pictures

    requests, refused = read_list(args.lines, pictures.given(args))
    output.Destination(args.out, True, 2)  # a folder
    made: list[dict[str, Any]] = []
    warnings: dict[str, None] = {}
    broken: dict[int, ClipskipError] = {}
    with pictures.opened(args) as pipe:
        jobs, there = _plan(pipe, requests, refused, args)
        _tell(refused, args.lines)
        output.say(f"{len(jobs)} to make, {len(there)} there already, {len(refused)} lines refused")
        bar = output.Bar(len(jobs))
        try:
            for number, result in pictures.results(pipe, jobs, bar, broken=broken):
                warnings |= dict.fromkeys(result.warnings)
                result.save(file := named(args.out, result.origin(0)))
                made.append({"line": number, **pictures.facts(result, 0, file)})
                bar.saved(None if args.json else str(file))
        finally:
            bar.clear()
            _tell(broken, args.lines)
            failed = dict(sorted({**refused, **broken}.items()))
            output.say(f"{len(made)} made, {len(there)} there already, {len(failed)} lines refused")
            told = [{"line": line, "code": each.code, "message": each.message} for line, each in failed.items()]
            args.kept |= {"pictures": made, "there": there, "refused": told, **pictures.noted(warnings)}
    return Outcome(args.kept, "", next((each.exit_status for each in failed.values()), 0))


def named(folder: Path, origin: Origin) -> Path:
    """The file of a picture, by what makes it."""
    return folder / f"{origin.digest[:NAME]}.png"


def _plan(
    pipe: Pipeline, requests: Mapping[int, Request], refused: dict[int, ClipskipError], args: argparse.Namespace
) -> tuple[list[Job], list[dict[str, Any]]]:
    """What is still to be made, those together that share calls, and what is there; the others join `refused`."""
    jobs: dict[Path, Job] = {}
    there: list[dict[str, Any]] = []
    for number, request, resolved in checked(pipe, requests, refused):
        resolved = _settled(pipe, request, resolved)
        origins = pipe.origins(resolved)
        for job, origin in zip(parts(pipe, number, request, resolved, 1), origins, strict=True):
            file = named(args.out, origin)
            if file in jobs or (not args.overwrite and _whole(file)):
                there.append({"line": number, "file": str(file), "seed": origin.request.seed})
            else:
                jobs[file] = job
    return sorted(jobs.values(), key=attrgetter("kind")), there


def _settled(pipe: Pipeline, request: Request, resolved: Resolved) -> Resolved:
    """With seeds of what else makes the picture, where the request would draw some: a restart must not draw others."""
    known = [name for name in ("seed", "subseed") if getattr(resolved.request, name) is not None]
    drawn = [name for name in known if getattr(request, name) in (None, -1)]
    if not drawn:
        return resolved
    digest = pipe.origins(replace(resolved, request=resolved.request.over(dict.fromkeys(drawn, 0))))[0].digest
    return pipe.check(request.over({name: int(digest[8 * place :][:8], 16) for place, name in enumerate(drawn)}))


def _whole(file: Path) -> bool:
    """Whether a PNG is there to its end. Ours appear whole; a disk that lost power may have kept a part."""
    try:
        with open_regular(Path(os.path.realpath(file))) as opened:
            begin = opened.read(len(BEGIN))
            opened.seek(max(opened.seek(0, os.SEEK_END) - len(END), 0))
            return (begin, opened.read()) == (BEGIN, END)
    except NotAFileError:
        return False


def _tell(failed: Mapping[int, ClipskipError], lines: Path | None) -> None:
    for number, error in sorted(failed.items()):
        output.say(f"{lines or 'standard input'}:{number}: {error}")
