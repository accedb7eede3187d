"""LoRAs merged into an engine make a variant of it: which of its weights change, and what they become.

Knows the tables beside graphs, and nothing of graphs, of layouts of LoRA files and of who runs an engine.
"""

from __future__ import annotations

import os
from collections.abc import Collection, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import numpy.typing as npt

from clipskip.engines.errors import EngineIncompatible
from clipskip.engines.lora import Choice, Lora, merged_stored, read
from clipskip.engines.manifest import LORA, STEP, Artefact, Role, key_of
from clipskip.engines.store import Store, export_command
from clipskip.engines.weights import Shape, Stored, Table, loads, table_path

Array = npt.NDArray[Any]
DIGITS = 12  # of a mix's key in that name


@dataclass(frozen=True)
class Active:
    """A LoRA with its weight in the text encoders and in the U-Net."""

    lora: Lora
    path: Path
    text: float
    unet: float

    @property
    def option(self) -> str:
        """What `clipskip build` and `export` are told for it, to the last digit: another weight is another engine."""
        weights = (np.format_float_positional(weight, trim="-") for weight in (self.unet, self.text))
        return f"--lora {quote(':'.join([str(self.path), *weights]))}"


@dataclass(frozen=True)
class Mix:
    """LoRAs merged into one engine, each with its weight there; equal ones have one key, "" where nothing changes."""

    key: str = ""
    parts: tuple[tuple[Lora, float], ...] = field(default=(), compare=False)
    options: str = field(default="", compare=False)  # for the command that builds the engine

    @property
    def variant(self) -> str:
        """What an engine is called that was built with it."""
        return f"{LORA}{self.key[:DIGITS]}"


PLAIN = Mix()


@dataclass(frozen=True)
class Changed:
    """What a stored weight becomes; equal keys are equal numbers, whichever graph they are for."""

    key: str
    array: Array


def table(store: Store, artefact: Artefact) -> Table:
    """What is stored where for a graph. EngineIncompatible where it was exported before there were such tables."""
    path = table_path(artefact, store.root)
    found = loads(path.read_bytes()) if path else {}
    if path is None or not (artefact.role.layers == 0 or any(stored.origin for stored in found.values())):
        message = f"{artefact.role} does not say which of its weights a LoRA changes: it was exported before LoRAs were"
        hint = f"{export_command(store.root, artefact.precision)}, then build again what is built from it"
        raise EngineIncompatible(message, path=store.root / artefact.files[0].path, hint=hint)
    return found


def parameters(table: Table) -> dict[str, Shape]:
    """All parameters of the network that a graph holds, with their shapes there."""
    return {name: shape for stored in table.values() for name, shape in stored.parameters().items()}


def changeable(store: Store, precision: str) -> dict[str, Shape]:
    """All parameters of a store's model that LoRAs may change: of its step, and of its deepest text encoder."""
    graphs_here = (each for each in store.manifest().artefacts if each.identity[1:] == ("onnx", precision, ""))
    texts = [each.role for each in graphs_here if each.role.part == "text"]
    graphs = [store.find(role, "onnx", precision) for role in (STEP, *sorted(texts)[-1:])]
    return {name: shape for graph in graphs for name, shape in parameters(table(store, graph)).items()}


def opened(store: Store, precision: str, options: Sequence[str]) -> tuple[Active, ...]:
    """The LoRAs of options such as FILE:0.8, read for a store's model. RequestError, CheckpointError."""
    there = changeable(store, precision) if options else {}
    chosen = [Choice.parse(typed) for typed in options]
    return tuple(Active(read(each.path, there), each.path, each.text, each.unet) for each in chosen)


def mix(role: Role, there: Collection[str], loras: Sequence[Active]) -> Mix:
    """What LoRAs change of an engine that holds the parameters `there`: those with a weight and a tensor for it."""
    weights: dict[str, tuple[Lora, float]] = {}
    for each in loras:
        if each.lora.layers.keys() & there:
            _, before = weights.get(each.lora.sha256, (each.lora, 0.0))
            weights[each.lora.sha256] = each.lora, before + (each.text if role.part == "text" else each.unet)
    parts = tuple(weights[digest] for digest in sorted(weights) if weights[digest][1])
    if not parts:
        return PLAIN
    key = key_of({lora.sha256: repr(float(weight)) for lora, weight in parts})
    return Mix(key, parts, " ".join(each.option for each in loras))


def changed(
    store: Store, artefact: Artefact, mix: Mix, known: MutableMapping[str, Array] | None = None
) -> dict[str, Changed]:
    """The weights of a graph that the LoRAs change, by the names of its initializers. NumericalError.

    `known` has those that are in use already, by their keys; what is new is put into it.
    """
    known = {} if known is None else known
    records = {Path(record.path).name: record for record in artefact.files}

    def become(item: tuple[str, Stored]) -> tuple[str, Changed] | None:
        name, stored = item
        loras = [part for part in mix.parts if part[0].layers.keys() & stored.parameters().keys()]
        if not loras or stored.origin is None:
            return None
        record = records[stored.file]
        place = {"file": record.sha256, "place": repr((stored.offset, stored.shape, stored.origin))}
        key = key_of({**place, **{lora.sha256: repr(weight) for lora, weight in loras}})
        array = known.get(key)
        if array is None:
            block = np.memmap(store.root / record.path, np.uint8, "r", stored.offset, (stored.nbytes,))
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused by name
                array = merged_stored(block.view(stored.dtype).reshape(stored.shape), stored.origin, loras)
            known[key] = array
        return name, Changed(key, array)

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        made = list(pool.map(become, table(store, artefact).items()))
    return dict(each for each in made if each is not None)
