"""The command line: parses arguments, runs one verb, and turns every outcome into text or JSON and an exit status.

What the verbs do is in `cli.pictures` and `cli.stores`. Results go to stdout; progress, warnings and errors to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn

from . import __version__
from .cli import Parser, pictures, stores
from .cli.output import say, write
from .errors import ClipskipError

INTERRUPTED, TERMINATED = 130, 143
FACTS = ("code", "message", "field", "path", "hint")  # of an error, in JSON


class Terminated(BaseException):
    """SIGTERM or SIGHUP: unwinds like KeyboardInterrupt, so that everything is put away."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status (the table is in the README)."""
    before = _listen()
    try:
        return _run(list(sys.argv[1:] if arguments is None else arguments))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _listen() -> dict[int, Any]:
    """Have signals unwind the work, once each; gives the handlers that were there. What is ignored stays so (nohup).

    Only Python's main thread may do so.
    """

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    if threading.current_thread() is not threading.main_thread():
        return {}
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows
    handlers = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
    for number in before:
        signal.signal(number, stop)
    return before


def _run(arguments: list[str]) -> int:
    kept: dict[str, Any] = {}  # what is finished, for --json also where the rest fails
    facts: dict[str, Any] = dict.fromkeys(FACTS)
    try:
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass  # where stdin, stdout or stderr is closed, no file that is opened later may get its number
        os.close(descriptor)
        args = parse(arguments)
        args.kept = kept
        outcome = args.run(args)
        if args.json or outcome.text:
            _answer(json.dumps(outcome.data) if args.json else outcome.text)
        return int(outcome.status)
    except ClipskipError as error:
        say(f"clipskip: {error}")
        facts, status = {name: getattr(error, name) for name in FACTS}, error.exit_status
    except (KeyboardInterrupt, Terminated) as stop:
        code, status = ("terminated", TERMINATED) if isinstance(stop, Terminated) else ("interrupted", INTERRUPTED)
        facts |= {"code": code, "message": f"{code}; nothing half-made was kept"}
        say(f"\n{facts['message']}")
    except Exception as error:
        say(f"{traceback.format_exc()}\nThis is a bug in clipskip: please report it with the lines above.")
        facts, status = facts | {"code": "bug", "message": f"{type(error).__name__}: {error}"}, 1
    if "--json" in arguments:
        _answer(json.dumps({"error": facts, **kept}))
    return status


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments of one verb; the prompt may stand anywhere. RequestError for what is no command line."""
    parser = Parser(prog="clipskip", description="Stable Diffusion with clip skip per request.")
    anywhere: dict[str, Any] = {"action": "store_true", "help": "print one JSON object on stdout"}
    parser.add_argument("--json", **anywhere)
    parser.add_argument("--version", action="version", version=f"clipskip {__version__}")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", dest="verb", required=True)
    stores.add_to(verbs)
    pictures.add_to(verbs)
    for verb in verbs.choices.values():
        verb.add_argument("--json", default=argparse.SUPPRESS, **anywhere)
    args, rest = parser.parse_known_args(arguments)
    if len(rest) == 1 and not rest[0].startswith("-") and getattr(args, "prompt", "") is None:
        args.prompt, rest = rest[0], []  # argparse takes an optional PROMPT only beside STORE
    verbs.choices[args.verb].check_rest(rest)
    return args


def _answer(text: str) -> None:
    """The result on stdout, where there is one."""
    if sys.stdout is not None:
        write(sys.stdout, f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
