"""Where pictures go: one file, or numbered files in a folder. Checked before the work begins."""

from __future__ import annotations

import os
import re
from pathlib import Path

from .errors import RequestError, StorageError

OTHER_FORMATS = (".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
_NUMBERED = re.compile(r"(\d{5,})-\d+\.png")


class Target:
    """Names for `count` pictures: `out` itself where it ends in .png, otherwise "00001-SEED.png", ... in the folder."""

    def __init__(self, out: Path, overwrite: bool, count: int) -> None:
        if out.suffix.lower() in OTHER_FORMATS:
            raise RequestError(f"pictures are written as .png, not {out.suffix}", field="out")
        self._file = out if out.suffix.lower() == ".png" and not out.is_dir() else None
        self._folder = out.parent if self._file else out
        if self._file and count > 1:
            raise RequestError(f"{count} pictures do not fit into one file {out}", field="out", hint="name a folder")
        if self._file and self._file.exists() and not overwrite:
            raise RequestError(f"{out} exists already", field="out", hint="add --overwrite to replace it")
        self._make_folder()
        self._number = self._last_number()

    def path(self, seed: int) -> Path:
        """The name of the next picture."""
        if self._file:
            return self._file
        self._number += 1
        return self._folder / f"{self._number:05d}-{seed}.png"

    def _make_folder(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make the folder {self._folder}: {error.strerror}", path=self._folder) from error
        if not os.access(self._folder, os.W_OK | os.X_OK):
            raise StorageError(f"no permission to write into {self._folder}", path=self._folder)

    def _last_number(self) -> int:
        found = (_NUMBERED.fullmatch(name) for name in os.listdir(self._folder))
        return max((int(match[1]) for match in found if match), default=0)
