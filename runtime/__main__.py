"""The command line: parses arguments, runs one verb, and turns every outcome into text or JSON and an exit status.

What the verbs do is in `cli.pictures`, `cli.grid`, `cli.builds`, `cli.stores` and `cli.listings`. Results go to stdout;
progress, warnings and errors to stderr.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .errors import ClipskipError, StorageError

if TYPE_CHECKING:  # everything else is imported when signals are listened to
    import argparse
    from collections.abc import Sequence
    from types import FrameType

INTERRUPTED, TERMINATED = 130, 143
FACTS = ("code", "message", "field", "path", "hint")  # of an error, in JSON
AGAIN = 0.001  # seconds until a signal that came while something was imported is raised once more


class Terminated(BaseException):
    """SIGTERM or SIGHUP: unwinds like KeyboardInterrupt, so that everything is put away."""


class _Signals:
    """Signals unwind the work, once each; what is ignored stays so (nohup). Only Python's main thread hears them.

    While a module is imported a signal waits: a library in C would make an ImportError of what it raises, or print it.
    """

    def __init__(self) -> None:
        self.before: dict[int, Any] = {}  # handlers
        self._waiting: list[threading.Timer] = []

    def listen(self) -> None:
        numbers = [
            getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
        ]  # Windows
        for number in numbers if threading.current_thread() is threading.main_thread() else ():
            if (handler := signal.getsignal(number)) not in (signal.SIG_IGN, None):
                self.before[number] = handler
                signal.signal(number, self._stop)

    def settle(self) -> None:
        """A signal that waits comes now, whatever happened meanwhile."""
        while self._waiting:
            self._waiting.pop().join()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        while frame is not None and frame.f_code is not main.__code__:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                self._waiting.append(threading.Timer(AGAIN, signal.raise_signal, [number]))
                return self._waiting[-1].start()
            frame = frame.f_back
        signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status (the table is in the README)."""
    signals = _Signals()
    try:
        return _run(list(sys.argv[1:] if arguments is None else arguments), signals)
    finally:
        for number, handler in signals.before.items():
            signal.signal(number, handler)


def _run(arguments: list[str], signals: _Signals) -> int:
    kept: dict[str, Any] = {}  # what is finished, for --json also where the rest fails
    facts: dict[str, Any] = dict.fromkeys(FACTS)
    told: list[str] = []  # Python's warnings, ours above all

    def warn(message: Warning | str, *where: object, **more: object) -> None:
        told.append(str(message))
        _say(f"warning: {message}")

    try:
        signals.listen()
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass  # where stdin, stdout or stderr is closed, no file that is opened later may get its number
        os.close(descriptor)
        with warnings.catch_warnings():
            warnings.showwarning = warn
            try:
                args = parse(arguments)
                args.kept = kept
                outcome = args.run(args)
            finally:
                signals.settle()
        if args.json or outcome.text:
            _print(outcome.data if args.json else outcome.text, told)
        return int(outcome.status)
    except ClipskipError as error:
        _say(f"clipskip: {error}")
        facts, status = {name: getattr(error, name) for name in FACTS}, error.exit_status
    except (KeyboardInterrupt, Terminated) as stop:
        code, status = ("terminated", TERMINATED) if isinstance(stop, Terminated) else ("interrupted", INTERRUPTED)
        what = "what was finished" if kept.get("pictures") or kept.get("file") else "nothing half-made"
        facts |= {"code": code, "message": f"{code}; {what} was kept"}
        _say(f"\n{facts['message']}")
    except Exception as error:
        import traceback

        _say(f"{traceback.format_exc()}\nThis is a bug in clipskip: please report it with the lines above.")
        facts, status = facts | {"code": "bug", "message": f"{type(error).__name__}: {error}"}, 1
    if "--json" in arguments:
        with suppress(StorageError):
            _print({"error": facts, **kept}, told)
    return status


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments of one verb; the prompt may stand anywhere. RequestError for what is no command line."""
    import argparse

    from . import __version__
    from .cli import Parser, builds, grid, listings, pictures, serve, stores

    parser = Parser(prog="clipskip", description="Stable Diffusion with clip skip per request.")
    anywhere: dict[str, Any] = {"action": "store_true", "help": "print one JSON object on stdout"}
    parser.add_argument("--json", **anywhere)
    parser.add_argument("--version", action="version", version=f"clipskip {__version__}")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", dest="verb", required=True)
    builds.add_to(verbs)
    stores.add_to(verbs)
    pictures.add_to(verbs)
    grid.add_to(verbs)
    listings.add_to(verbs)
    serve.add_to(verbs)
    for verb in verbs.choices.values():
        verb.add_argument("--json", default=argparse.SUPPRESS, **anywhere)
    args, rest = parser.parse_known_args(arguments)
    if len(rest) == 1 and not rest[0].startswith("-") and getattr(args, "prompt", "") is None:
        args.prompt, rest = rest[0], []  # argparse takes an optional PROMPT only beside STORE
    verbs.choices[args.verb].check_rest(rest)
    return args


def _say(text: str) -> None:
    from .cli.output import say

    say(text)


def _print(answer: str | dict[str, Any], told: list[str]) -> None:
    """The result on stdout, where there is one; warnings are in the JSON. StorageError where it is full."""
    import json

    from .cli.output import write

    if told and isinstance(answer, dict):
        answer = {**answer, "warnings": [*told, *answer.get("warnings", [])]}
    text = answer if isinstance(answer, str) else json.dumps(answer)
    lost = write(sys.stdout, f"{text}\n") if sys.stdout is not None else None
    if lost is not None and not isinstance(lost, BrokenPipeError):  # whose reader had enough
        raise StorageError(f"cannot write the answer to standard output: {lost.strerror}") from lost


if __name__ == "__main__":
    sys.exit(main())
