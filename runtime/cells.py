"""What the text in a sheet's picture holds: its axes, and of every cell what a picture's text has. Not how it is drawn.

Cells are kept as what differs from the first one. Trusts no text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from clipskip.engines import strict

from . import ledger
from .axes import MAX_CELLS, Axis, places
from .errors import CheckpointError, ManifestError, RequestError
from .ledger import Ledger

Truth = Mapping[str, Any]  # of a picture, as its text `clipskip` has it: schema, request, model, ...


@dataclass(frozen=True)
class Cells:
    """The axes of a sheet and its cells, x first; None for one that was not made."""

    axes: tuple[Axis, ...]
    truths: tuple[Truth | None, ...]

    def text(self) -> str:
        """For the picture."""
        made = [each for each in self.truths if each is not None]
        first: Truth = made[0] if made else {}
        cells = [None if each is None else _without(each, first) for each in self.truths]
        axes = [{"field": axis.field, "values": [axis.told(value) for value in axis.values]} for axis in self.axes]
        return json.dumps({"schema": ledger.SCHEMA, "sheet": {"axes": axes, "first": first, "cells": cells}})

    def ledger(self, cell: Sequence[int] | None) -> Ledger:
        """That of one cell, counted from 1 along x, y and z. CheckpointError where there is none."""
        sizes = [len(axis.values) for axis in self.axes]
        every = " x ".join(map(str, sizes))
        some, along = ",".join(map(str, sizes)), ", ".join("xyz"[: len(sizes)])
        hint = f"name one by its place along {along}: --cell {some} is the last; `inspect` lists them"
        if cell is None:
            raise CheckpointError(f"this is a sheet of {every} cells, not one picture", field="cell", hint=hint)
        name = ",".join(map(str, cell))
        if (place := tuple(number - 1 for number in cell)) not in places(self.axes):
            raise CheckpointError(f"there is no cell {name} in a sheet of {every} cells", field="cell", hint=hint)
        if (truth := self.truths[places(self.axes).index(place)]) is None:
            raise CheckpointError(f"the cell {name} was not made: the sheet was interrupted", field="cell")
        try:
            return ledger.of_truth(json.dumps(truth))
        except RequestError as error:
            raise CheckpointError(f"the cell {name}: {error.message}", field=error.field, hint=error.hint) from error


def of_truth(text: str) -> Cells | None:
    """The cells in a text; None where it is not a sheet's. CheckpointError for one that is broken."""
    try:
        truth: Any = strict.parse(text.encode("utf-8", "replace"))
    except ManifestError:  # `ledger` says what is wrong
        return None
    if not isinstance(truth, dict) or truth.get("schema") != ledger.SCHEMA or "sheet" not in truth:
        return None
    try:
        sheet, first = truth["sheet"], truth["sheet"]["first"]
        values = [
            [tuple(each) if isinstance(each, list) else each for each in axis["values"]] for axis in sheet["axes"]
        ]
        axes = tuple(Axis(str(axis["field"]), tuple(own)) for axis, own in zip(sheet["axes"], values, strict=True))
        count = prod(len(axis.values) for axis in axes)
        if not 1 <= len(axes) <= 3 or count != len(sheet["cells"]) or count > MAX_CELLS:
            raise ValueError
        truths = [None if each is None else first | each | {"request": first["request"] | each["request"]}
                  for each in sheet["cells"]]  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError("the text `clipskip` is broken: its axes and cells do not fit together") from error
    return Cells(axes, tuple(truths))


def _without(truth: Truth, first: Truth) -> Truth:
    """A cell's truth without what the first one says as well."""
    request = {name: value for name, value in truth["request"].items() if first["request"].get(name) != value}
    rest = {name: value for name, value in truth.items() if name != "request" and first.get(name) != value}
    return {**rest, "request": request}
