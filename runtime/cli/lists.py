"""Lists of requests: what their lines say, what is refused of them, and what is made together.

Knows nothing of options and of where pictures go.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from clipskip.errors import CheckpointError, ClipskipError, RequestError, StoreError
from clipskip.request import Request

if TYPE_CHECKING:
    from clipskip.ledger import Ledger
    from clipskip.pipeline import Pipeline
    from clipskip.resolve import Resolved

Asked = TypeVar("Asked", bound="Request | Ledger")
TOGETHER = 8  # at most so many pictures are in the making at once
LARGEST, MOST_LINES = 16 << 20, 100_000  # bytes and lines of a list of prompts
MOST_REFUSED = 20  # lines of it that are named
JSON = re.compile(r'\{\s*"')  # how a line begins that is a request as JSON; a prompt may begin with a brace


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
                    requests[number] = Request.from_json(line, given)
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
