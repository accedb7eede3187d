"""Sheets: one request varied along up to three axes with everything else locked, made and drawn as one picture."""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from itertools import chain, groupby, islice
from math import prod
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageOps

from . import metadata
from .axes import SIZE, STORE, Axis, places, requests
from .cells import Cells
from .errors import ClipskipError
from .fields import written
from .lettering import Lettering, lettering
from .request import FIELDS, Request

if TYPE_CHECKING:
    from .pipeline import Pipeline
    from .resolve import Resolved
    from .result import Result

GAP = 4
MOST_PIXELS = metadata.MOST_PIXELS  # of a sheet: larger cells are drawn smaller
ALWAYS = ("clip_skip", "seed", "steps", "cfg", "sampler", "schedule")  # are told though they have their defaults
SIZING = {SIZE, STORE, "width", "height", "hires_scale", "hires_size", "image"}  # may differ where cells are not made
Kind = tuple[int, int, str, int, tuple[tuple[str, float], ...]]  # so many together, of so many calls; size, ...
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Sheet:
    """A request, what was varied (x, y and z, as far as there are), and a result for every cell, x first.

    None stands for a cell that was not made.
    """

    base: Request
    axes: tuple[Axis, ...]
    results: tuple[Result | None, ...]

    @property
    def made(self) -> list[Result]:
        return [result for result in self.results if result is not None]

    @property
    def labels(self) -> list[list[str]]:
        """Those of x, y and z; one empty label where there is no axis."""
        return [[axis.label(value) for value in axis.values] for axis in self.axes] + [[""]] * (3 - len(self.axes))

    @property
    def notes(self) -> list[str]:
        """What all cells say, each once."""
        return merged([result.warnings for result in self.made])

    def names(self) -> list[str]:
        """What each cell is called: the labels of its values."""
        lists = self.labels
        return [", ".join(lists[i][at] for i, at in enumerate(place)) for place in places(self.axes)]

    def locked(self) -> dict[str, str]:
        """What all cells have in common: the model, the prompts, and every setting of note."""
        varied = {axis.field for axis in self.axes}
        models = {result.model.name for result in self.made}
        told = {"model": " ".join(models)} if len(models) == 1 else {}
        if "prompt" not in varied:
            told["prompt"] = self.base.prompt
        sizes = {f"{result.images[0].width}x{result.images[0].height}" for result in self.made}
        for name, field in FIELDS.items():
            values = {getattr(result.request, name) for result in self.made}
            if len(values) != 1 or name in (*varied, "prompt", "width", "height", "batch"):
                continue
            value = values.pop()
            follows = name == "negative_clip_skip" and {value} == {each.request.clip_skip for each in self.made}
            if not follows and (name in ALWAYS or value != field.default):
                told[name] = written(Axis(name, ()).told(value))
        known = len(sizes) == 1 and (len(self.made) == len(self.results) or not varied & SIZING)
        return told | ({"size": sizes.pop()} if known else {})

    @property
    def header(self) -> str:
        """The same in one line."""
        bare = ("model", "prompt", "sampler", "schedule", "size")
        told = {name: text or '""' for name, text in self.locked().items()}
        return " · ".join(text if name in bare else f"{name} {text}" for name, text in told.items())

    def texts(self) -> dict[str, str]:
        """The text of the sheet's picture: the axes, and the request of every cell."""
        own = [None if each is None else json.loads(each.origin(0).texts()["clipskip"]) for each in self.results]
        if len(text := Cells(self.axes, tuple(own)).text()) <= metadata.LARGEST_TEXT:
            return {"clipskip": text}
        warnings.warn("the sheet is without the requests of its cells: above 1 MiB", RuntimeWarning, stacklevel=2)
        return {}

    def save(self, target: metadata.Target, font: str | os.PathLike[str] | None = None, overwrite: bool = True) -> None:
        """Write the sheet as `Result.save` does, with the request of every cell: `read_ledger(..., cell=(2, 1))`."""
        metadata.save(draw(self, font), target, self, overwrite)


@dataclass(frozen=True)
class Stage:
    """`call` of `calls` model evaluations are done; `sheet` has the cells that are finished."""

    call: int
    calls: int
    sheet: Sheet


def steps(
    base: Request, axes: Sequence[Axis], opened: Callable[[str | None], AbstractContextManager[Pipeline]]
) -> Iterator[Stage]:
    """Make a sheet, yielding whenever its cells have moved on; to cancel, stop iterating.

    `opened` gives the pipeline of a value of the axis `store`, of None where there is no such axis. Everything is
    checked before the first cell is made. Cells of one kind are made together, as many as share calls of the network.
    """
    cells = requests(base, *axes)
    along = next((i for i, axis in enumerate(axes) if axis.field == STORE), None)
    stores = (None,) if along is None else axes[along].values
    which = [0 if along is None else place[along] for place in places(axes)]
    sheet = Sheet(base, tuple(axes), (None,) * len(cells))
    with ExitStack() as everything:
        holds = [everything.enter_context(ExitStack()) for _ in stores]
        pipes = [hold.enter_context(opened(store)) for hold, store in zip(holds, stores, strict=True)]
        kinds = kinds_of(cells, [pipes[store] for store in which], sheet.names())
        order = sorted(range(len(cells)), key=lambda i: kinds.index(kinds[i]))
        done, left = 0, sum(calls for _, calls, *_ in kinds)
        for number, hold in enumerate(holds):
            with hold:
                for (together, calls, *_), alike in groupby(
                    (i for i in order if which[i] == number), kinds.__getitem__
                ):
                    while group := list(islice(alike, together)):
                        left -= calls * len(group)
                        for state in pipes[number].steps(*(cells[i] for i in group)):
                            yield Stage(done + state.call, done + state.calls + left, sheet)
                        done += state.calls
                        made = dict(zip(group, state.results, strict=True))
                        sheet = replace(sheet, results=tuple(made.get(i, old) for i, old in enumerate(sheet.results)))
                        yield Stage(done, done + left, sheet)


def kinds_of(
    cells: Sequence[Request],
    pipes: Sequence[Pipeline],
    names: Sequence[str],
    limit: Callable[[Resolved], object] = lambda resolved: None,
) -> list[Kind]:
    """The kind of every cell: what those have in common that share calls. A refusal, also `limit`'s, names its cell."""
    kinds: list[Kind] = []
    for cell, pipe, name in zip(cells, pipes, names, strict=True):
        try:
            limit(resolved := pipe.check(cell))
        except ClipskipError as error:
            error.message = f"{name}: {error.message}" if kinds else error.message  # the first: it may be every cell's
            raise
        loras = tuple((each.lora.sha256, each.unet) for each in resolved.loras)  # in the network
        kinds.append((pipe.together(resolved), resolved.calls, resolved.passes[0].size, resolved.chunks, loras))
    return kinds


def merged(notes: Sequence[Sequence[str]]) -> list[str]:
    """Every note once; those that differ in their numbers alone are one, with all the numbers."""
    groups: dict[tuple[str, ...], list[list[str]]] = {}
    for note in (note for own in notes for note in dict.fromkeys(own)):
        parts = _NUMBER.split(note)
        groups.setdefault(tuple(parts[::2]), []).append(parts[1::2])
    said = []
    for words, numbers in groups.items():
        columns = [sorted(set(column), key=float) for column in zip(*numbers, strict=True)]
        listed = [", ".join(each) if len(each) < 4 else f"{each[0]} to {each[-1]}" for each in columns]
        note = "".join(part for pair in zip(words, [*listed, ""], strict=True) for part in pair)
        said.append(note if len(numbers) == len(notes) else f"{note} ({len(numbers)} of {len(notes)} cells)")
    return said


@dataclass(frozen=True)
class Layout:
    """A sheet whose cells are drawn in one size: its labels in lines, where a block's cells begin, and its own size."""

    cell: tuple[int, int]
    letters: Lettering
    head: str
    above: list[str]
    beside: list[str]
    titles: list[str]
    first: tuple[int, int]
    size: tuple[int, int]

    @classmethod
    def of(cls, sheet: Sheet, cell: tuple[int, int], letters: Lettering) -> Layout:
        """That of cells of this size, with letters that go with it."""
        (columns, rows, blocks), (width, height) = sheet.labels, cell
        letters = replace(letters, size=max(11, width // 11))
        beside = [letters.fitted(label, width, max(1, height // letters.line)) for label in rows]
        left = GAP + (max(map(letters.wide, beside)) + 2 * GAP if len(sheet.axes) > 1 else 0)
        across = left + len(columns) * (width + GAP)
        head = letters.fitted(sheet.header, across - 2 * GAP, 8)
        above = [letters.fitted(label, width, 3) for label in columns]
        titles = [letters.fitted(label, across - 2 * GAP, 2) for label in blocks]
        first = max(map(letters.tall, above)) + GAP
        block = first + len(rows) * (height + GAP) + GAP
        down = 2 * GAP + letters.tall(head) + sum(letters.tall(title) + block for title in titles)
        return cls(cell, letters, head, above, beside, titles, (left, first), (across, down))


def draw(sheet: Sheet, font: str | os.PathLike[str] | None = None) -> Image.Image:
    """The cells with x's labels above and y's at the left, a block for each value of z, and on top what all share.

    Larger than a picture that can be read back, cells are drawn smaller, with a warning. `font`: see `lettering`.
    """
    layout = _fitting(sheet, lettering([*chain(*sheet.labels), sheet.header], 12, font))
    (width, height), (left, first), letters = layout.cell, layout.first, layout.letters
    picture = Image.new("RGB", layout.size, "white")
    pen = ImageDraw.Draw(picture)
    letters.write(pen, (GAP, GAP), layout.head)
    top, results = 2 * GAP + letters.tall(layout.head), iter(sheet.results)
    for title in layout.titles:
        letters.write(pen, (GAP, top), title)
        top += letters.tall(title)
        for column, label in enumerate(layout.above):
            letters.write(pen, (left + column * (width + GAP) + width // 2, top), label, "ma")
        top += first
        for label in layout.beside:
            letters.write(pen, (GAP, top + (height - letters.tall(label)) // 2), label)
            for column, result in enumerate(islice(results, len(layout.above))):
                cell = Image.new("RGB", (width, height), "#dddddd") if result is None else result.images[0]
                if cell.width > width or cell.height > height:
                    cell = ImageOps.contain(cell, (width, height))
                picture.paste(cell, (left + column * (width + GAP), top))
            top += height + GAP
        top += GAP
    return picture


def _fitting(sheet: Sheet, letters: Lettering) -> Layout:
    """The layout with cells as large as the largest picture, or smaller where the sheet would be too large."""
    sizes = [result.images[0].size for result in sheet.made] or [(64, 64)]
    width, height = max(width for width, _ in sizes), max(height for _, height in sizes)
    whole = layout = Layout.of(sheet, (width, height), letters)
    while (pixels := prod(layout.size)) > MOST_PIXELS and min(layout.cell) > GAP:
        part = min(0.98, math.sqrt(MOST_PIXELS / pixels))  # letters do not shrink below what can be read
        layout = Layout.of(sheet, (int(layout.cell[0] * part), int(layout.cell[1] * part)), letters)
    if layout is not whole:
        said = f"the sheet would have {prod(whole.size) / 1e6:.0f} million pixels: its cells are drawn at"
        warnings.warn(f"{said} {layout.cell[0] / width:.0%} of their size", RuntimeWarning, stacklevel=3)
    return layout
