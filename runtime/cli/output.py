"""What a person sees on stderr while a command runs, and where its pictures go. stdout is for results."""

from __future__ import annotations

import math
import os
import re
import shutil
import stat
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from clipskip.engines.files import storage_error
from clipskip.errors import ClipskipError, RequestError, StorageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from clipskip.result import Progress

INTERVAL = 5.0  # seconds between lines where there is no terminal to draw on
SHOWN, LONGEST = 1.0, 86400  # seconds between previews
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


class Bar:
    """How far `pictures` are: a line that is drawn anew on a terminal, elsewhere one line every few seconds."""

    def __init__(self, pictures: int) -> None:
        self._pictures, self._saved = pictures, 0
        self._shown = time.monotonic()
        self._first: tuple[float, int] | None = None  # when the first calls were done, and how many: engines are open
        self._drawn = sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()

    def show(self, call: int, calls: int) -> None:
        """`call` of `calls` evaluations of the network are done."""
        now = time.monotonic()
        start, before = self._first = self._first or (now, call)
        if not self._drawn and now - self._shown <= INTERVAL:
            return
        self._shown = now
        left = f", {(now - start) / (call - before) * (calls - call):.0f} s left" if call > before else ""
        text = f"{call}/{calls} calls, {self._saved}/{self._pictures} pictures{left}"
        if self._drawn:
            self.clear()
            text = f"[{'#' * (20 * call // max(calls, 1)):.<20}] {text}"[: shutil.get_terminal_size().columns - 1]
        _show(text + ("" if self._drawn else "\n"))

    def saved(self, name: str | None) -> None:
        """One more picture is saved; a name goes to stdout now, for whoever waits for it."""
        self._saved += 1
        if name is not None and sys.stdout is not None:
            self.clear()
            write(sys.stdout, f"{name}\n")

    def clear(self) -> None:
        """Make room for another line."""
        if self._drawn:
            _show("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r")


class Preview:
    """What is in the making, side by side in one file, which is replaced in one step; in the end what was made last.

    `interval`: seconds between two; None: SHOWN, and more where that would take above a fifth of the time.
    """

    def __init__(self, file: Path, out: Path, overwrite: bool, interval: float | None, bar: Bar) -> None:
        from clipskip.metadata import format_of

        format_of(file, "preview")
        if not 0 <= (interval or 0) <= LONGEST:
            raise RequestError(f"an interval is 0 to {LONGEST} seconds, not {interval}", field="preview_interval")
        if os.path.realpath(file) == os.path.realpath(out):
            raise RequestError(f"--preview and --out both name {out}", field="preview", hint="name two files")
        if os.path.isdir(file):
            raise StorageError(f"{file} is there and is no file", path=file)
        Destination(file, overwrite, 1, "preview")
        self._file, self._interval, self._bar, self._failed = file, interval, bar, False
        self._due = time.monotonic() + (SHOWN if interval is None else interval)

    def show(self, state: Progress) -> None:
        """Write the file if it is time. What goes wrong is said, and ends the previews, not the work."""
        from clipskip.metadata import save

        start = time.monotonic()
        if self._failed or (start < self._due and not state.results):
            return
        try:
            save(_side_by_side(state.preview()), self._file, None)
        except ClipskipError as error:
            self._failed = True
            self._bar.clear()
            warnings.warn(f"no more previews: {error}", RuntimeWarning, stacklevel=2)
        now = time.monotonic()
        self._due = now + (max(SHOWN, 4 * (now - start)) if self._interval is None else self._interval)


def _side_by_side(pictures: Sequence[Image]) -> Image:
    """Pictures in rows, about as many as there are in each, in cells as large as the largest."""
    from PIL.Image import new

    columns = math.isqrt(len(pictures) - 1) + 1
    width, height = map(max, *(picture.size for picture in pictures), (1, 1))
    whole = new("RGB", (columns * width, -(-len(pictures) // columns) * height))
    for number, picture in enumerate(pictures):
        whole.paste(picture, (number % columns * width, number // columns * height))
    return whole


def _show(text: str) -> None:
    if sys.stderr is not None:
        write(sys.stderr, text)


def write(stream: TextIO, text: str) -> OSError | None:
    """Text on stdout or stderr. That it is full, or its reader gone, is given back: no reason to undo or to stop work.

    The bytes of a file name are written as they are; other characters that the encoding lacks are escaped.
    """
    try:
        try:
            print(text, end="", file=stream, flush=True)
        except UnicodeEncodeError:
            try:
                data = text.encode(stream.encoding, "surrogateescape")
            except UnicodeEncodeError:
                data = text.encode(stream.encoding, "backslashreplace")
            stream.buffer.write(data)
            stream.flush()
    except ValueError:  # closed
        pass
    except OSError as error:
        _abandon(stream)
        return error
    return None


def _abandon(stream: TextIO) -> None:
    """What is still in the buffer has to go somewhere, or Python ends with status 120."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Destination:
    """Where `count` pictures go: the file `out` if it ends as pictures do (or in `suffix`), stdout for "-", a folder.

    There (`suffix` None: whatever its name is) they are "00001-SEED.png", ..., in the order of the requests, and on
    after what is there. What can be refused is refused when this is made, before any work; also a new folder whose name
    ends like a file's. Several processes may write into one folder, and no number is there twice.
    """

    def __init__(self, out: Path, overwrite: bool, count: int, option: str = "out", suffix: str | None = "") -> None:
        from clipskip.metadata import FORMATS, format_of

        suffixes = FORMATS if suffix == "" else [suffix]
        if suffix == "" and re.search("[^0-9.]", out.suffix) and not os.path.isdir(out):
            format_of(out, option)  # v1.5 may be a new folder
        self.is_stdout = str(out) == "-"
        self._file = out if self.is_stdout or (out.suffix.lower() in suffixes and not os.path.isdir(out)) else None
        self._folder = out.parent if self._file else out
        self._overwrite, self._number, self._option = overwrite, 0, option
        if self._file and count > 1:
            raise RequestError(f"{count} pictures do not fit into one file {out}", field=option, hint="name a folder")
        if self.is_stdout:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            numbers = (_NUMBERED.fullmatch(name) for name in os.listdir(self._folder))
            self._number = max((int(match[1]) for match in numbers if match), default=0)
            if self._file:
                regular = stat.S_ISREG(os.lstat(self._file).st_mode)  # FileNotFoundError: as it should be
                if not overwrite:
                    raise self._taken()
                if not regular:
                    raise StorageError(f"{out} is there and is no file", path=out)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StorageError(f"cannot write to {out}: {error.strerror}", path=out) from error
        if not os.access(self._folder, os.W_OK | os.X_OK):
            raise StorageError(f"no permission to write into {self._folder}", path=self._folder)

    def save(self, seed: int, write: Callable[..., None]) -> Path:
        """Have `write(path or open file, overwrite=...)` make the next picture's file; gives its name.

        It raises FileExistsError for a name that is taken: RequestError if it is the one file that was named.
        StorageError where stdout does not take the picture.
        """
        if self.is_stdout:
            write(picture := BytesIO(), overwrite=True)
            _pipe(picture.getvalue())
            return Path("-")
        while not self._file:
            self._number += 1
            with _claimed(self._folder, self._number) as free, suppress(FileExistsError):  # of who claims none
                if free:
                    write(path := self._folder / f"{self._number:05d}-{seed}.png", overwrite=False)
                    return path
        try:
            write(self._file, overwrite=self._overwrite)
        except FileExistsError:
            raise self._taken() from None
        return self._file

    def _taken(self) -> RequestError:
        return RequestError(f"{self._file} exists already", field=self._option, hint="add --overwrite to replace it")


@contextmanager
def _claimed(folder: Path, number: int) -> Iterator[bool]:
    """Whether a picture may have this number: no file has it, whatever its seed, and nobody else takes it meanwhile."""
    claim, mine = folder / f".clipskip-{number:05d}", False
    try:
        with suppress(FileExistsError):
            claim.touch(exist_ok=False)
            mine = True
        yield mine and not any(name.startswith(f"{number:05d}-") for name in os.listdir(folder))
    except OSError as error:
        raise storage_error(error, folder) from error
    finally:
        if mine:
            claim.unlink(missing_ok=True)


def _pipe(picture: bytes) -> None:
    """A picture on stdout, where it must not get lost."""
    try:
        sys.stdout.buffer.write(picture)
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        _abandon(sys.stdout)
        raise StorageError(f"cannot write the picture to standard output: {error}") from error
