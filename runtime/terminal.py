"""What a person sees on stderr while a command runs. stdout is for results."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pipeline import Progress

INTERVAL = 5.0  # seconds between lines where there is no terminal to draw on


def printable(text: str) -> str:
    """The text with control characters escaped, so that a prompt or a file name cannot steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def _show(text: str) -> None:
    with suppress(BrokenPipeError):  # nobody looks on: no reason to stop the work
        sys.stderr.write(text)
        sys.stderr.flush()


def say(text: str) -> None:
    """One line on stderr."""
    _show(printable(text) + "\n")


def note(messages: Iterable[str]) -> None:
    """Remarks on a result."""
    for message in messages:
        say(f"note: {message}")


@contextmanager
def stages() -> Iterator[Callable[[str], None]]:
    """A function that says what is being done, with the seconds since the start."""
    start = time.monotonic()
    yield lambda text: say(f"[{time.monotonic() - start:6.1f} s] {text}")


def steps(progress: Iterable[Progress]) -> Any:
    """Show the calls of the network as they go by; gives the results."""
    start = shown = time.monotonic()
    drawn = sys.stderr.isatty()
    for each in progress:
        now = time.monotonic()
        if drawn or now - shown > INTERVAL:
            shown = now
            _show(f"{each.call}/{each.calls} calls, {now - start:.1f} s" + ("\r" if drawn else "\n"))
    if drawn:
        _show("\n")
    return each.results
