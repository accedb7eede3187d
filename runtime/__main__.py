"""The command line: parses arguments, runs one verb, and turns every outcome into text or JSON and an exit status.

What the verbs do is in `commands` (pictures) and `admin` (the engine store). Results go to stdout; progress, warnings
and errors go to stderr.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn

from . import __version__, admin, commands
from .errors import ClipskipError
from .terminal import say

INTERRUPTED, TERMINATED = 130, 143


class Terminated(BaseException):
    """SIGTERM or SIGHUP: unwinds like KeyboardInterrupt, so that everything is put away."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status (the table is in the README)."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminate)
    args = build_parser().parse_args(arguments)
    try:
        outcome = args.run(args)
    except ClipskipError as error:
        return _report(error, as_json=args.json)
    except KeyboardInterrupt:
        print("\ninterrupted; nothing half-made was kept", file=sys.stderr)
        return INTERRUPTED
    except Terminated:
        return TERMINATED
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception:
        traceback.print_exc()
        print("\nThis is a bug in clipskip: please report it with the lines above.", file=sys.stderr)
        return 1
    print(json.dumps(outcome.data) if args.json else outcome.text)
    return int(outcome.status)


def build_parser() -> argparse.ArgumentParser:
    """The parser with one sub-command per verb."""
    parser = argparse.ArgumentParser(prog="clipskip", description="Stable Diffusion with clip skip per request.")
    parser.add_argument("--version", action="version", version=f"clipskip {__version__}")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (*admin.VERBS, *commands.VERBS):
        verb = add(verbs)
        verb.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    return parser


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated


def _report(error: ClipskipError, *, as_json: bool) -> int:
    say(f"clipskip: {error}")
    if as_json:
        fields: dict[str, Any] = {name: getattr(error, name) for name in ("code", "message", "field", "path", "hint")}
        print(json.dumps({"error": fields}))
    return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
