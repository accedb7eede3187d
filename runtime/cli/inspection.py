"""What `clipskip inspect` tells of a file: one of weights, by its header, or a picture, by its ledger."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from clipskip.axes import places
from clipskip.cells import Cells
from clipskip.engines import identify, report
from clipskip.engines.files import readable_size
from clipskip.engines.identify import FileFacts
from clipskip.errors import RequestError
from clipskip.files import read
from clipskip.metadata import read_any

from . import Outcome, output

SUFFIXES = {".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf"}
FOREIGN = b"PK\x03\x04", b"\x80", b"GGUF", b"version https://git-lfs"  # what files of weights may be instead
SHOWN = {  # hash -> where people meet it
    "SHA-256": "model sites; its first 10 digits are A1111's `Model hash`, its first 12 those in `TI hashes`",
    "AutoV2": "model sites: the first 10 digits of SHA-256",
    "AutoV3": "model sites, and A1111's `Lora hashes`: of the tensors without the header",
    "sshs_model_hash": "kohya's metadata: AutoV3 in full",
    "AutoV1": "A1111 until 2023, as [12345678]: of 64 KiB of the file",
}


def of_file(path: Path, hashes: bool) -> Outcome:
    """The facts of the file, whatever it is. `hashes`: also those of a file of weights, which is read whole then."""
    start = read(path, 64)
    if path.suffix.lower() in SUFFIXES or start[6:9] == b"\0\0{" or start.startswith(FOREIGN):
        facts = identify.examine(path, hashes)
        text = report.table([("file", str(path)), *((name, value) for name, value in _rows(facts) if value)])
        return Outcome({"file": str(path), **asdict(facts)}, output.printable(text))
    if hashes:
        message = f"{path} is no file of weights, and hashes are shown of these"
        raise RequestError(message, field="hashes", hint="a picture names its model's hash without it")
    return _of_picture(path)


def _rows(facts: FileFacts) -> Iterator[tuple[str, str]]:
    yield "kind", facts.kind
    yield "family", facts.family or "not told by the header"
    if facts.kind in ("checkpoint", "U-Net"):
        yield "predicts", f"{facts.prediction} ({facts.prediction_source})" if facts.prediction else "not said"
    for part, count in facts.parameters.items():
        yield "holds", f"{part}: {count:,} numbers in {facts.tensors[part]} tensors"
    yield "missing", ", ".join(facts.missing)
    yield "precision", ", ".join(f"{name}: {count:,} numbers" for name, count in facts.precisions.items())
    yield "size", readable_size(facts.size)
    yield "note", "; ".join(facts.remarks)
    yield "rank", ", ".join(map(str, facts.ranks))
    yield "alpha", ", ".join(f"{alpha:g}" for alpha in facts.alphas)
    for name, value in facts.training.items():
        yield name, " ".join(value.split())[:200]
    skip = facts.suggested_clip_skip
    if facts.kind in ("checkpoint", "LoRA", "LyCORIS", "textual inversion"):
        yield "clip skip", f"{f'{skip} suggested' if skip else 'none suggested'}: {facts.suggested_because}"
    for name, digest in facts.hashes.items():
        yield name, f"{digest}  ({SHOWN[name]})"


def _of_picture(path: Path) -> Outcome:
    ledger = read_any(path)
    if isinstance(ledger, Cells):
        return _of_sheet(path, ledger)
    rows = [("file", str(path)), ("program", ledger.program), ("model", ledger.model)]
    rows += [("model hash", ledger.model_hash), ("prompt", ledger.request.prompt)]
    rows.append(("negative prompt", ledger.request.negative_prompt))
    honoured, refused = ledger.checked()
    parts = {"honoured": honoured, "not honoured": ledger.ignored, "filled in": ledger.filled}
    parts |= {"inversion": ledger.inversions or {}, "LoRA": ledger.loras or {}, "made from": ledger.pictures}
    rows += [(part, f"{name}: {value}") for part, entries in parts.items() for name, value in entries.items()]
    rows += [("refused", "; ".join(filter(None, (error.message, error.hint)))) for error in refused.values()]
    refusals = {field: {"message": error.message, "hint": error.hint} for field, error in refused.items()}
    text = report.table([(name, line) for name, value in rows for line in value.split("\n") if line])
    return Outcome(
        {"file": str(path), **asdict(ledger), "honoured": honoured, "refused": refusals}, output.printable(text)
    )


def _of_sheet(path: Path, cells: Cells) -> Outcome:
    """Its axes, and what made every cell: all of the first one, and of the others what is different."""
    rows = [("file", str(path)), ("program", "clipskip"), ("shows", f"a sheet of {len(cells.truths)} cells")]
    rows += [(name, ", ".join(map(axis.label, axis.values))) for name, axis in zip("xyz", cells.axes, strict=False)]
    told, first = [], dict[str, str]()
    for place, truth in zip(places(cells.axes), cells.truths, strict=True):
        number = [index + 1 for index in place]
        name = "cell " + ",".join(map(str, number))
        if truth is None:
            rows.append((name, "not made"))
            continue
        ledger = cells.ledger(number)
        own = {"model": ledger.model, "prompt": ledger.request.prompt, "negative": ledger.request.negative_prompt}
        own |= ledger.honoured
        lines = [f"{field}: {value}" for field, value in own.items() if first.get(field, "") != value]
        rows += [(name, ", ".join(lines))] if first else [(name, line) for line in lines]
        first = first or own
        told.append({"cell": number, **asdict(ledger)})
    axes = [asdict(axis) for axis in cells.axes]
    text = report.table([(name, line) for name, value in rows for line in value.split("\n") if line])
    return Outcome({"file": str(path), "program": "clipskip", "axes": axes, "cells": told}, output.printable(text))
