"""Clip skip: how many of the text encoder's layers a request leaves out, in either numbering.

`clip_skip` counts from 1 as A1111 does: n keeps `layers + 1 - n` layers, so 1 keeps all of them and `layers + 1` none.
`clip_skip_diffusers` counts from 0: one less. Knows nothing of engines: whether a depth was built is not its business.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from .errors import RequestError
from .scalars import plain, shown

SD1_LAYERS = 12
LOW_GUIDANCE_ABOVE = 2
ERRATIC_ABOVE = 5

Number = int | float


@dataclass(frozen=True)
class Depth:
    """Where both prompts are cut, in A1111's numbering and as layers that are run; `notes` are for the result."""

    clip_skip: int
    negative_clip_skip: int
    layers: int
    negative_layers: int
    notes: tuple[str, ...]


def resolve(
    clip_skip: Number | None,
    clip_skip_diffusers: Number | None,
    negative_clip_skip: Number | None,
    *,
    layers: int,
    recommended: int,
) -> Depth:
    """The depth that a request means for a model of `layers` layers that recommends clip skip `recommended`.

    The negative prompt follows the prompt unless it has its own. Fractions count as the whole number below them.
    Raises RequestError for what is no number in the range, and for both numberings at once.
    """
    asked = {
        "clip_skip": clip_skip,
        "clip_skip_diffusers": clip_skip_diffusers,
        "negative_clip_skip": negative_clip_skip,
    }
    if clip_skip is not None and clip_skip_diffusers is not None:
        raise RequestError(
            "clip_skip and clip_skip_diffusers are two numberings of one setting: give one of them",
            field="clip_skip_diffusers",
            hint="clip_skip is clip_skip_diffusers + 1",
        )
    given = {field: _counted(field, value, layers) for field, value in asked.items() if value is not None}
    skip = given.get("clip_skip", given.get("clip_skip_diffusers", recommended))
    negative = given.get("negative_clip_skip", skip)
    return Depth(
        clip_skip=skip,
        negative_clip_skip=negative,
        layers=layers + 1 - skip,
        negative_layers=layers + 1 - negative,
        notes=(*_reading_notes(asked, recommended), *_depth_notes(skip, negative)),
    )


def depths(skips: Iterable[int], layers: int) -> list[int]:
    """The numbers of layers that text engines for these clip skips keep. RequestError for one out of range."""
    return sorted({layers + 1 - _counted("clip_skip", skip, layers) for skip in skips})


def check(field: str, value: object, layers: int = SD1_LAYERS) -> Number:
    """`value` as a plain number; RequestError if it is none, in the words that a number out of range gets too."""
    number = plain(value)
    if number is None:
        raise _refusal(field, value, layers)
    return number


def _counted(field: str, value: object, layers: int) -> int:
    """The value in A1111's numbering."""
    skip = math.floor(check(field, value, layers)) + _offset(field)
    if not 1 <= skip <= layers + 1:
        raise _refusal(field, value, layers)
    return skip


def _offset(field: str) -> int:
    return 1 if field == "clip_skip_diffusers" else 0


def _refusal(field: str, value: object, layers: int) -> RequestError:
    if _offset(field):
        meaning = "it counts from 0 (the last layer, clip_skip 1); 1 is the penultimate (clip_skip 2)"
        hint = f"clip_skip is the same setting counted from 1: 1..{layers + 1}"
    else:
        meaning = "it counts from 1 (the last layer, diffusers' None or 0); 2 is the penultimate (diffusers' 1)"
        hint = f"clip_skip_diffusers takes diffusers' own numbers, 0..{layers}"
    first = 1 - _offset(field)
    message = f"{field} must be {first}..{layers + first}, not {shown(value)}: {meaning}"
    return RequestError(message, field=field, hint=hint)


def _reading_notes(asked: dict[str, Number | None], recommended: int) -> Iterable[str]:
    for field, value in asked.items():
        if value is not None and value != math.floor(value):
            yield f"{field} {value} counts as {math.floor(value)}: only whole numbers change the picture"
    if asked["clip_skip"] is None and asked["clip_skip_diffusers"] is None:
        yield f"no clip_skip was given: {recommended} is used, which the model recommends"


def _depth_notes(skip: int, negative: int) -> Iterable[str]:
    fields = {"clip_skip": skip} if negative == skip else {"clip_skip": skip, "negative_clip_skip": negative}
    for field, value in fields.items():
        if value > LOW_GUIDANCE_ABOVE:
            yield f"{field} {value}: above {LOW_GUIDANCE_ABOVE} pictures tend to look like those of a low guidance"
        if value > ERRATIC_ABOVE:
            yield f"{field} {value}: above {ERRATIC_ABOVE} results are erratic"
