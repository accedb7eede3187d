"""The command line: parses arguments, runs one verb, and turns every outcome into text or JSON and an exit status.

What the verbs do is in `cli.pictures` and `cli.stores`. Results go to stdout; progress, warnings and errors to stderr.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from . import __version__
from .cli import pictures, stores
from .cli.output import say, write
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
    args = parse(arguments)
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


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of one verb. argparse takes an optional PROMPT only beside STORE; here it may also come last."""
    parser = argparse.ArgumentParser(prog="clipskip", description="Stable Diffusion with clip skip per request.")
    parser.add_argument("--version", action="version", version=f"clipskip {__version__}")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    stores.add_to(verbs)
    pictures.add_to(verbs)
    for verb in verbs.choices.values():
        verb.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    args, rest = parser.parse_known_args(arguments)
    if len(rest) == 1 and not rest[0].startswith("-") and getattr(args, "prompt", "") is None:
        args.prompt, rest = rest[0], []
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return args


def _answer(text: str) -> None:
    """The result on stdout, where there is one."""
    if sys.stdout is not None:
        write(sys.stdout, f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
