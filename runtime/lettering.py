"""The font of a sheet: one that has the characters of its labels, from where systems keep theirs."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import ImageDraw, ImageFont

from .errors import CheckpointError
from .files import read

LARGEST = 128 << 20  # bytes of a font file
LONGEST = 1000  # characters of a label
MOST_FILES = 2000  # fonts that are looked at
NO_CHARACTER = "\U0010ffff"  # no font has it: what is drawn for it is drawn for all that a font lacks
PREFERRED = (  # with Chinese, Japanese and Korean: names without marks, as files of Linux, Windows and macOS begin
    "notosanscjk", "sourcehansans", "notosansjp", "notosanssc", "notosanskr", "wqymicrohei", "wqyzenhei",
    "droidsansfallback", "msyh", "yugoth", "meiryo", "msgothic", "malgun", "simsun", "pingfang", "hiraginosans",
    "applesdgothic", "arialunicode", "unifont", "notosans", "dejavusans", "segoeui", "arial",
)  # fmt: skip
_CJK = "\u1100-\u11ff\u2e80-\ud7ff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"  # a line may end after each
_PIECES = re.compile(rf"[{_CJK}]|[^\s{_CJK}]+\s*|\s+")


@dataclass(frozen=True)
class Lettering:
    """A font in one size, of a file or Pillow's own, and the characters that it lacks."""

    size: int
    file: Path | None = None
    lacks: frozenset[str] = frozenset()

    @cached_property
    def font(self) -> Any:
        if self.file is None:
            return ImageFont.load_default(size=self.size)
        return ImageFont.truetype(BytesIO(read(self.file, LARGEST)), self.size)

    @property
    def line(self) -> int:
        """The height of a line."""
        return self.size * 13 // 10

    def tall(self, text: str) -> int:
        """The height of lines, nothing for no text."""
        return (text.count("\n") + 1) * self.line if text else 0

    def wide(self, text: str) -> int:
        """The width of the longest line."""
        return int(max(self.font.getlength(line) for line in text.split("\n"))) + 1

    def write(self, pen: ImageDraw.ImageDraw, place: tuple[int, int], text: str, anchor: str = "la") -> None:
        """Draw lines below a place; the anchor says which point of a line, as in Pillow."""
        for number, line in enumerate(text.split("\n")):
            pen.text((place[0], place[1] + number * self.line), line, "black", self.font, anchor)

    def fitted(self, text: str, width: int, lines: int = 1000) -> str:
        """The text in lines of at most `width` pixels, each as many words as it takes; at most so many lines."""
        rows = [""]
        drawable = "".join("?" if character in self.lacks else character for character in text[:LONGEST])
        for piece in _PIECES.findall(re.sub(r"\s+", " ", drawable).strip()):
            if rows[-1] and self.font.getlength((rows[-1] + piece).rstrip()) > width:
                rows.append("")
            while len(piece) > 1 and len(rows) <= lines and self.font.getlength(piece.rstrip()) > width:  # a long word
                most = next(n for n in range(1, len(piece)) if self.font.getlength(piece[: n + 1]) > width)
                rows[-1:], piece = [piece[:most], ""], piece[most:]
            rows[-1] += piece
        if len(rows) > lines:
            rows = [*rows[: lines - 1], rows[max(lines - 1, 0)].rstrip()[:-1] + "…"]
        return "\n".join(row.rstrip() for row in rows)


def lettering(texts: Iterable[str], size: int, file: str | os.PathLike[str] | None = None) -> Lettering:
    """A font for these texts: `file`, or Pillow's own, or the first of the system's that has every character.

    What the font lacks is drawn as a question mark, and a warning says so. CheckpointError: `file` is no font.
    """
    characters = {character for text in texts for character in text if not character.isspace()}
    if file is not None:
        try:
            best = _having(characters, Lettering(size, Path(file)))
        except OSError as error:
            message = f"{os.fspath(file)} is no font that can be read: a .ttf, .otf or .ttc file is one"
            raise CheckpointError(message, path=os.fspath(file)) from error
    else:
        best = _having(characters, Lettering(size))
        for path in _files() if best.lacks else ():
            try:
                other = _having(characters, Lettering(size, path))
            except (OSError, CheckpointError):  # one that is damaged is not the one
                continue
            best = min(best, other, key=lambda each: len(each.lacks))
            if not best.lacks:
                break
    if best.lacks:
        shown = " ".join(sorted(best.lacks)[:10]) + (" ..." if len(best.lacks) > 10 else "")
        where = "the font lacks" if file is not None else "no font here has"
        warnings.warn(f"{where} {shown}: drawn as ? (--font FILE names a font)", RuntimeWarning, stacklevel=3)
    return best


def _having(characters: Iterable[str], letters: Lettering) -> Lettering:
    """The lettering with what it lacks: control characters, and what is drawn as a font draws what it has not."""
    nothing = bytes(letters.font.getmask(NO_CHARACTER))
    lacks = {each for each in characters if not each.isprintable() or bytes(letters.font.getmask(each)) == nothing}
    return Lettering(letters.size, letters.file, frozenset(lacks))


def _files() -> Iterator[Path]:
    """The system's fonts, those that are known to have many characters first."""
    home, windows = Path(os.path.expanduser("~")), Path(os.environ.get("WINDIR", "C:/Windows"))
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local/share")
    folders = {
        "win32": [windows / "Fonts", home / "AppData/Local/Microsoft/Windows/Fonts"],
        "darwin": [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"],
    }.get(sys.platform, [Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), data / "fonts", home / ".fonts"])
    files = (path for folder in folders for path in sorted(folder.rglob("*")))

    def rank(path: Path) -> tuple[int, bool]:
        name = re.sub("[-_ ]", "", path.stem.lower())
        place = next((place for place, known in enumerate(PREFERRED) if name.startswith(known)), len(PREFERRED))
        return place, re.search("bold|black|thin|light|medium|italic|oblique|mono|condensed", name) is not None

    found = islice((path for path in files if path.suffix.lower() in (".ttf", ".otf", ".ttc")), MOST_FILES)
    yield from sorted(found, key=rank)
