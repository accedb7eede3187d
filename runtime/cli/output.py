"""What a person sees on stderr while a command runs, and where its pictures go. stdout is for results."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from clipskip.errors import RequestError, StorageError

if TYPE_CHECKING:
    from clipskip.pipeline import Progress

INTERVAL = 5.0  # seconds between lines where there is no terminal to draw on
OTHER_FORMATS = (".gif", ".bmp", ".tif", ".tiff", ".avif")
_NUMBERED = re.compile(r"(\d{5,})-\d+\.png")


def printable(text: str) -> str:
    """The text with control characters escaped, so that a prompt or a file name cannot steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def say(text: str) -> None:
    """One line on stderr."""
    _show(printable(text) + "\n")


@contextmanager
def stages() -> Iterator[Callable[[str], None]]:
    """A function that says what is being done, with the seconds since the start."""
    start = time.monotonic()
    yield lambda text: say(f"[{time.monotonic() - start:6.1f} s] {text}")


def steps(progress: Iterable[Progress]) -> Any:
    """Show the calls of the network as they go by; gives the results."""
    start = shown = time.monotonic()
    drawn = sys.stderr is not None and sys.stderr.isatty()
    for state in progress:
        now = time.monotonic()
        if drawn or now - shown > INTERVAL:
            shown = now
            _show(f"{state.call}/{state.calls} calls, {now - start:.1f} s" + ("\r" if drawn else "\n"))
    if drawn:
        _show("\n")
    return state.results


def _show(text: str) -> None:
    if sys.stderr is not None:
        write(sys.stderr, text)


def write(stream: TextIO, text: str) -> None:
    """Text on stdout or stderr. That it is full, or its reader gone, is no reason to undo or to stop the work."""
    try:
        print(text, end="", file=stream, flush=True)
    except ValueError:  # closed
        pass
    except OSError:
        with suppress(OSError):  # what is still in the buffer has to go somewhere, or Python ends with status 120
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Destination:
    """Where `count` pictures go: `out` itself where it ends as pictures do, else "00001-SEED.png", ... in the folder.

    What can be refused is refused when this is made, before any work. Two processes may write into one folder.
    """

    def __init__(self, out: Path, overwrite: bool, count: int) -> None:
        from clipskip.metadata import FORMATS, format_of

        if out.suffix.lower() in OTHER_FORMATS:
            format_of(out)
        self._file = out if out.suffix.lower() in FORMATS and not out.is_dir() else None
        self._folder = out.parent if self._file else out
        self._overwrite = overwrite
        if self._file and count > 1:
            raise RequestError(f"{count} pictures do not fit into one file {out}", field="out", hint="name a folder")
        if self._file and self._file.exists() and not overwrite:
            raise self._taken()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make the folder {self._folder}: {error.strerror}", path=self._folder) from error
        if not os.access(self._folder, os.W_OK | os.X_OK):
            raise StorageError(f"no permission to write into {self._folder}", path=self._folder)
        numbers = (_NUMBERED.fullmatch(name) for name in os.listdir(self._folder))
        self._number = max((int(match[1]) for match in numbers if match), default=0)

    def save(self, seed: int, write: Callable[..., None]) -> Path:
        """Have `write(path, overwrite=...)` make the next picture's file; gives its name.

        It raises FileExistsError for a name that is taken: then the next number is tried. RequestError if that happens
        to the one file that was named.
        """
        while True:
            self._number += 1
            path = self._file or self._folder / f"{self._number:05d}-{seed}.png"
            try:
                write(path, overwrite=self._file is not None and self._overwrite)
                return path
            except FileExistsError:
                if self._file:
                    raise self._taken() from None

    def _taken(self) -> RequestError:
        return RequestError(f"{self._file} exists already", field="out", hint="add --overwrite to replace it")
