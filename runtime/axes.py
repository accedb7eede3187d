"""What a sheet varies: axes as they are typed, and the request of every cell. Knows nothing of pictures."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import islice, product
from math import prod
from typing import Any

from .errors import RequestError
from .fields import CLIP_SKIP, CLIP_SKIPS, FRACTION, TEXT, WHOLE, Kind, shown, written
from .loras import called
from .render import size
from .request import ALIASES, FIELDS, PICTURES, Request, unknown_field
from .resolve import random_seed

MAX_CELLS = 1000
STORE, SEARCH, LORA, SIZE = "store", "prompt_sr", "lora:", "size"  # axes that are no field
_NUMBER = r"\d{1,20}(?:\.\d{1,9})?"
_RANGE = re.compile(rf"(-?{_NUMBER})\s*-\s*(-?{_NUMBER})(?:\s*\(([+-]{_NUMBER})\)|\s*\[(\d{{1,4}})\])?", re.ASCII)
_SKIPS = ("clip_skip", "clip_skip_diffusers")


@dataclass(frozen=True)
class Axis:
    """What is varied, and the values that it takes.

    `field`: one of Request; "store", of paths; "prompt_sr", whose first value is replaced by each in both prompts;
    "size", of such as "512x768"; or "lora:NAME", of weights.
    """

    field: str
    values: tuple[Any, ...]

    def label(self, value: Any) -> str:
        """How a value is named on a sheet."""
        name = written(self.told(value))
        return (name or '""') if self.field in ("prompt", SEARCH) else f"{self.field.replace(':', ' ')} {name}".strip()

    def told(self, value: Any) -> Any:
        """A value as a picture's text has it: of a file its name, without the way to it."""
        if self.field != STORE and self.field not in PICTURES:
            return value
        return os.path.basename(os.path.normpath(value)) if isinstance(value, str) and value[:5] != "data:" else "given"


def parse_axis(text: str) -> Axis:
    """An axis such as `clip_skip=1-13`, `cfg=1,4,7.5`, `steps=10-30(+5)`, `eta=0-1[5]`, `prompt_sr=red,blue`,
    `lora:NAME=0-1(+0.25)`, `store=FOLDER,FOLDER` or `prompt="a cat, sitting","a dog"` (CSV). RequestError."""
    name, equals, listed = text.partition("=")
    name = name.strip()
    if not name.startswith(LORA):
        name = name.replace("-", "_")
        name = ALIASES.get(name, name)
    if not equals or not listed.strip():
        raise RequestError(f"an axis is written FIELD=VALUES, as in clip_skip=1-13; not {text!r}", field="axis")
    if name not in (*FIELDS, STORE, SEARCH, SIZE) and name.removeprefix(LORA) in (name, ""):
        raise unknown_field(name)
    if name == "batch":
        raise RequestError("batch is no axis: a cell shows one picture", field="axis", hint="vary the seed: seed=1-4")
    try:
        items = next(csv.reader([listed], skipinitialspace=True))
    except (csv.Error, StopIteration) as error:
        raise RequestError(f"the values of the axis {name} are no list ({error})", field="axis") from error
    kind = FIELDS[name].kind if name in FIELDS else FRACTION if name.startswith(LORA) else TEXT
    values = tuple(islice((value for item in items for value in _values(kind, name, item)), MAX_CELLS + 1))
    if len(values) > MAX_CELLS:  # before memory is full of them
        raise RequestError(f"the axis {name} has more values than a sheet has cells, {MAX_CELLS}", field="axis")
    return Axis(name, values)


def _values(kind: Kind, name: str, item: str) -> Sequence[object]:
    """What one item of an axis stands for: a text as it is, one value, or the numbers of a range."""
    if kind is TEXT:
        return [item]
    numbers = kind in (WHOLE, FRACTION, CLIP_SKIP, CLIP_SKIPS)
    found = _RANGE.fullmatch(item.strip()) if numbers else None
    values = [kind.read(item.strip())] if found is None else spread(item, *found.groups())
    taken = [kind.take(value) for value in values]
    if None in taken:
        hint = "ranges are written 1-13, 1-13(+3), 4-7(+0.5) or 0-1[5]" if numbers else None
        said = f"and the range {item.strip()!r} has others" if found else f"not {item.strip()!r}"
        raise RequestError(f"{name} is {kind.what}, {said}", field="axis", hint=hint)
    return taken


def spread(item: str, low: str, high: str, step: str | None, count: str | None) -> list[int | float]:
    """The numbers of a range, exactly: in decimals."""
    first, last = Decimal(low), Decimal(high)
    by = (last - first) / max(int(count) - 1, 1) if count else Decimal(step or 1)
    if count and int(count) < 2:
        raise RequestError(f"the range {item!r} has {count} of its ends: name 2 values or more", field="axis")
    if not by or (last - first) / by < 0:
        hint = f"downwards is written {low}-{high}(-1)" if last < first else None
        raise RequestError(f"the range {item!r} never gets from {low} to {high}", field="axis", hint=hint)
    if (last - first) / by >= MAX_CELLS:
        raise RequestError(f"the range {item!r} has more than the {MAX_CELLS} cells of a sheet", field="axis")
    if 0 < abs(last - first) < abs(by):
        raise RequestError(f"the range {item!r} is {low} alone", field="axis", hint=f"name a step: {low}-{high}(+0.1)")
    values = [first + by * place for place in range(int((last - first) / by + Decimal("1e-9")) + 1)]
    whole = all(value == value.to_integral_value() for value in values)
    return [int(value) if whole else float(round(value, 9)) for value in values]


def places(axes: Sequence[Axis]) -> list[tuple[int, ...]]:
    """Where each cell is along the axes, in the order of cells: x changes first."""
    return [place[::-1] for place in product(*(range(len(axis.values)) for axis in reversed(axes)))]


def requests(base: Request, *axes: Axis) -> list[Request]:
    """One request per cell, in order. A random seed is drawn once, so that only the axes differ. RequestError."""
    if not 1 <= len(axes) <= 3 or not all(axis.values for axis in axes):
        raise RequestError("a sheet has one to three axes, and each of them has values", field="axis")
    fields = [axis.field if axis.field != SEARCH else f"{SEARCH} {axis.values[0]}" for axis in axes]
    fields += [side for side in ("width", "height") if SIZE in fields]
    if twice := [field for field in fields if fields.count(field) > 1]:
        raise RequestError(f"two axes vary {twice[0]}", field="axis")
    if (count := prod(len(axis.values) for axis in axes)) > MAX_CELLS:
        raise RequestError(f"a sheet has at most {MAX_CELLS} cells, not {count}", field="axis")
    if base.batch != 1:
        raise RequestError(f"a cell shows one picture, not a batch of {base.batch}", field="batch", hint="leave it out")
    varied = base.subseed is not None or base.subseed_strength or "subseed_strength" in fields
    open_ones = [name for name in ("seed", *["subseed"] * bool(varied)) if getattr(base, name) in (None, -1)]
    base = base.over({name: random_seed() for name in open_ones})
    return [_request(base, axes, place) for place in places(axes)]


def _request(base: Request, axes: Sequence[Axis], place: Sequence[int]) -> Request:
    """The request of one cell: fields first, for words are replaced in the prompts that it has."""
    values = [(axis, axis.values[i]) for axis, i in zip(axes, place, strict=True)]
    fields = {axis.field: value for axis, value in values if axis.field in FIELDS}
    fields |= {side: int(each) for axis, value in values if axis.field == SIZE for side, each in size(value).items()}
    if fields.keys() & {*_SKIPS}:  # an axis in one numbering takes the place of a value in the other
        fields = dict.fromkeys(_SKIPS) | fields
    request = replace(base, **fields)
    for axis, value in values:
        if axis.field == SEARCH:
            request = replaced(request, axis.values[0], value)
        elif axis.field.startswith(LORA):
            name = axis.field.removeprefix(LORA)
            if any(each.name == name and each.field == "prompt" for each in called(request)):
                message = f"the prompt has <lora:{name}> already, and the axis says its weight"
                raise RequestError(message, field="axis", hint="take the tag out of the prompt")
            others = [each for each in request.loras or () if each.split(":")[0] != name]
            request = replace(request, loras=(*others, f"{name}:{written(value)}"))
    return request


def replaced(request: Request, searched: str, by: str) -> Request:
    """The request with other words in both prompts, as A1111's search and replace."""
    prompts = request.prompt, request.negative_prompt
    if not searched or not any(searched in prompt for prompt in prompts):
        message = f"prompt_sr searches for {shown(searched)}, which is in neither prompt"
        raise RequestError(message, field="axis", hint="its first value is what is replaced: a part of the prompt")
    prompt, negative = (each.replace(searched, by) for each in prompts)
    return replace(request, prompt=prompt, negative_prompt=negative)
