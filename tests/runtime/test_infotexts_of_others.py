"""Texts as other programs and years write them: read, run, and written back with the same meaning.

`data/infotexts.txt` has for each, behind `->`, the fields that a request takes of it beside size and seed; the settings
that change the picture and are not honoured; and the field that is refused. What becomes possible is changed there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import clipskip
from clipskip import infotext, ledger, metadata
from clipskip.errors import RequestError
from clipskip.request import Request

BESIDE = ("prompt", "negative_prompt", "width", "height", "seed")
DEFAULTS = asdict(Request(prompt=""))


@dataclass(frozen=True)
class Case:
    name: str
    text: str
    fields: dict[str, Any]
    ignored: str = ""
    refused: str = ""

    @classmethod
    def of(cls, block: str) -> Case:
        name, _, rest = block.partition("\n")
        text, fields, *said = rest.strip().split("\n-> ")
        return cls(name, text, json.loads(fields), **dict(line.split(": ", 1) for line in said))

    @property
    def ledger(self) -> ledger.Ledger:
        info = infotext.read(self.text)
        assert info is not None
        return ledger.of_text(info)


BLOCKS = (Path(__file__).parent / "data" / "infotexts.txt").read_text(encoding="utf-8")
CASES = [Case.of(block) for block in re.split("^= ", BLOCKS, flags=re.MULTILINE)[1:]]
EACH = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.fixture(scope="module")
def pipe(sample_store: Path) -> Iterator[clipskip.Pipeline]:
    with clipskip.open(sample_store) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def results(pipe: clipskip.Pipeline) -> dict[str, clipskip.Result]:
    """Of all that is not refused: small, and of three steps at most."""
    possible = [case for case in CASES if not case.refused]
    small = [
        replace(case.ledger.request, width=64, height=64, steps=min(case.ledger.request.steps, 3)) for case in possible
    ]
    return dict(zip([case.name for case in possible], pipe.run(small), strict=True))


def test_there_are_forty_of_six_programs() -> None:
    programs = {case.ledger.program.split()[0] for case in CASES}
    assert len(CASES) >= 40
    assert programs >= {"AUTOMATIC1111", "Forge", "SD.Next"}


@EACH
def test_a_text_is_read_as_expected(case: Case) -> None:
    fields = asdict(case.ledger.request)
    assert {name: value for name, value in fields.items() if value != DEFAULTS[name] and name not in BESIDE} == {
        name: value if not isinstance(value, list) else tuple(value) for name, value in case.fields.items()
    }
    assert ", ".join(case.ledger.ignored) == case.ignored
    assert re.search(f"Size: {fields['width']}x{fields['height']}|First pass size", case.text)
    assert f"Seed: {fields['seed']}" in case.text
    for prompt in (*fields["prompt"].split("\n"), *fields["negative_prompt"].split("\n")):
        assert prompt in case.text


@EACH
def test_a_text_is_run_and_written_back_with_the_same_meaning(
    case: Case, pipe: clipskip.Pipeline, results: dict[str, clipskip.Result]
) -> None:
    if case.refused:
        with pytest.raises(RequestError) as caught:
            pipe.check(case.ledger)
        assert caught.value.field == case.refused
        return
    made = results[case.name]
    written = infotext.read(metadata.parameters(made.origin(0)))
    assert written is not None
    again = ledger.of_text(written)
    assert (again.ignored, again.filled) == ({}, {})
    assert pipe.check(again).request == made.request
    assert pipe.check(case.ledger).request == replace(
        made.request,
        width=case.ledger.request.width,
        height=case.ledger.request.height,
        steps=case.ledger.request.steps,
    )
