"""The command line: parses arguments, runs one verb, and turns every outcome into text or JSON and an exit status.

What the verbs do is in `cli.pictures` and `cli.stores`. Results go to stdout; progress, warnings and errors to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from . import __version__
from .cli import pictures, stores
from .cli.output import say
from .errors import ClipskipError

INTERRUPTED, TERMINATED = 130, 143


class Terminated(BaseException):
    """SIGTERM or SIGHUP: unwinds like KeyboardInterrupt, so that everything is put away."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status (the table is in the README)."""

    def terminate(number: int, frame: FrameType | None) -> NoReturn:
        raise Terminated

    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, terminate)
    args = _parsed(arguments)
    try:
        outcome = args.run(args)
    except ClipskipError as error:
        say(f"clipskip: {error}")
        if args.json:
            facts = {name: getattr(error, name) for name in ("code", "message", "field", "path", "hint")}
            _answer(json.dumps({"error": facts}))
        return error.exit_status
    except KeyboardInterrupt:
        say("\ninterrupted; nothing half-made was kept")
        return INTERRUPTED
    except Terminated:
        say("\nterminated; nothing half-made was kept")
        return TERMINATED
    except Exception:
        traceback.print_exc()
        print("\nThis is a bug in clipskip: please report it with the lines above.", file=sys.stderr)
        return 1
    _answer(json.dumps(outcome.data) if args.json else outcome.text)
    return int(outcome.status)


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments. argparse takes an optional PROMPT only beside STORE; here it may also come last."""
    parser = build_parser()
    args, rest = parser.parse_known_args(arguments)
    if len(rest) == 1 and not rest[0].startswith("-") and getattr(args, "prompt", "") is None:
        args.prompt, rest = rest[0], []
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return args


def build_parser() -> argparse.ArgumentParser:
    """The parser with one sub-command per verb."""
    parser = argparse.ArgumentParser(prog="clipskip", description="Stable Diffusion with clip skip per request.")
    parser.add_argument("--version", action="version", version=f"clipskip {__version__}")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (*stores.VERBS, *pictures.VERBS):
        verb = add(verbs)
        verb.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return parser


def _answer(text: str) -> None:
    """The result on stdout. A reader that has gone away does not undo the work."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it ends


if __name__ == "__main__":
    sys.exit(main())
