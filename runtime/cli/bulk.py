"""Lists whose pictures are named by what makes them, so that a restart makes the missing ones: `generate --resume`.

Knows nothing of how lines are read and pictures made: that is as in every list.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipskip.engines.files import NotAFileError, open_regular
from clipskip.errors import ClipskipError
from clipskip.noise import image_seeds

from . import Outcome, lists, output, pictures

if TYPE_CHECKING:
    from clipskip.metadata import Origin
    from clipskip.pipeline import Pipeline
    from clipskip.request import Request
    from clipskip.resolve import Resolved

BEGIN, END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"  # of every PNG
NAME = 32  # hexadecimal digits


def resume(args: argparse.Namespace) -> Outcome:
    """Make the pictures of a list that are not there yet. Lines that cannot be made are told, and stop no others."""
    requests, refused = lists.read_list(args.lines, pictures.given(args))
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
) -> tuple[list[lists.Job], list[dict[str, Any]]]:
    """What is still to be made, those together that share calls, and what is there; the others join `refused`."""
    jobs: dict[Path, lists.Job] = {}
    there: list[dict[str, Any]] = []
    for number, request, resolved in lists.checked(pipe, requests, refused):
        resolved = _settled(pipe, request, resolved)
        origins = pipe.origins(resolved)
        for job, origin in zip(lists.parts(pipe, number, request, resolved, 1), origins, strict=True):
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
    fixed = resolved.request.over(dict.fromkeys(drawn, 0))
    digest = pipe.origins(replace(resolved, request=fixed))[0].digest
    asked = fixed.over({name: int(digest[8 * place :][:8], 16) for place, name in enumerate(drawn)})
    assert asked.seed is not None
    seeds = image_seeds(asked.seed, asked.subseed, asked.subseed_strength, asked.batch)
    return replace(resolved, request=asked, seeds=tuple(seeds))


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
