"""From parsed texts to what the rows of the U-Net's batch are fed, by the names of the step engine's inputs.

Encodes every distinct chunk once at its depth and applies emphasis. Knows nothing of prompts' syntax and of samplers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from clipskip.engines.manifest import Artefact, AxisRange, Role
from clipskip.engines.variants import Mix

from .backends import Array, Engine
from .engine_cache import EngineCache
from .errors import RequestError
from .prompt.parts import Text
from .recent import Recent
from .resolve import Resolved

BUDGET = 64 * 2**20  # bytes of each cache
MOST_ROWS = 64  # chunks encoded at once: 12 layers of SD 1.x take 3 MB for each
Floats = npt.NDArray[np.float32]
Place = tuple[int, str]  # layers, and the key of the LoRAs: caches hold on to their keys, which must not hold files
ChunkKey = tuple[int, str, tuple[int, ...]]  # that, and tokens
Encoded = Mapping[str, Array]  # what a text engine gives for one chunk, by name: `context` [77,D], ...


@dataclass(frozen=True)
class NetworkRow:
    """One row of the U-Net's batch over the calls of a request: its weight in the guidance mix, and what it is fed.

    `reference` is its weight in the network's second output, which is not guided.

    What the text engine gives beside `context`, such as a pooled vector, is that of the text's first chunk.

    `variants` are the inputs by name, of the schedule's distinct texts; `which[i]` of them holds up to and including
    call `ends[i]`. An input with an axis T (`context` [77 * chunks, D]) is repeated along it where the call is longer.
    """

    weight: float
    ends: tuple[int, ...]
    which: tuple[int, ...]
    variants: tuple[Mapping[str, Array], ...]
    reference: float = 0.0

    def feeds(self, call: int) -> Mapping[str, Array]:
        """The inputs at a call, counted from 0 (A1111 compares the call with the last step: one call late)."""
        return self.variants[self.which[min(bisect_left(self.ends, call), len(self.ends) - 1)]]


class TextEncoder:
    """Encodes with the text engines of `engines`; remembers chunks encoded at a depth, and whole rows.

    `concepts` [E,D] are the vectors of textual inversions. `parts`: how much of D each of several text encoders gives,
    whose means are their own; () where there is one. `round_up`: give engines few different numbers of rows, for
    each is compiled.
    """

    def __init__(self, engines: EngineCache, concepts: Array, round_up: bool, parts: Sequence[int] = ()) -> None:
        self._engines, self._concepts, self._round_up = engines, concepts, round_up
        self._ends = [sum(parts[: count + 1]) for count in range(len(parts) - 1)]
        self._chunks: Recent[Encoded] = Recent(BUDGET)  # by layers, LoRAs and tokens
        self._rows: Recent[NetworkRow] = Recent(BUDGET)

    def rows(self, requests: Sequence[Resolved]) -> list[tuple[NetworkRow, ...]]:
        """The rows of every request, one for each of its texts; all that is new at a depth is encoded at once."""
        mixed = [[(text, each.request.emphasis, self._mixes(text, each)) for text in each.texts] for each in requests]
        mixes = {place: mix for each in mixed for *_, own in each for place, mix in own.items()}
        keys = [[(text, emphasis, tuple(own)) for text, emphasis, own in each] for each in mixed]
        rows = {key: row for key in {k for each in keys for k in each} if (row := self._rows.get(key)) is not None}
        fresh = list(dict.fromkeys(key for each in keys for key in each if key not in rows))
        encoded = self._encode(((text, dict(places)) for text, _, places in fresh), mixes)
        for text, emphasis, places in fresh:
            counted = Counter(text.which)  # each counts as often as the schedule names it
            counts = [counted[i] for i in range(len(text.variants))]
            pieces = text.encoded()
            key_at = dict(places)
            given = [[encoded[layers, key_at[layers], chunk.tokens] for layers, chunk in variant] for variant in pieces]
            contexts = np.stack([[chunk["context"] for chunk in variant] for variant in given])
            weights = np.array([[chunk.weights for chunk in variant] for variant in text.variants], dtype=np.float32)
            for i, layers in sorted({(i, layers) for variant in pieces for i, (layers, _) in enumerate(variant)}):
                own = [place for place, variant in enumerate(pieces) if variant[i][0] == layers]
                counted_here = [counts[place] for place in own]
                parts = [
                    emphasise(part, weights[own, i], emphasis, counted_here)
                    for part in np.split(contexts[own, i], self._ends, axis=-1)
                ]
                contexts[own, i] = np.concatenate(parts, axis=-1)
            laid_out = [context.reshape(-1, context.shape[-1]) for context in contexts]
            variants = tuple(
                {**first, "context": context} for (first, *_), context in zip(given, laid_out, strict=True)
            )
            row = NetworkRow(text.weight, text.ends, text.which, variants, text.reference)
            rows[text, emphasis, places] = row
            self._rows.put((text, emphasis, places), row, contexts.nbytes)
        return [tuple(rows[key] for key in each) for each in keys]

    def _mixes(self, text: Text, resolved: Resolved) -> dict[Place, Mix]:
        """What LoRAs make of the engine of each depth that a text is encoded at."""
        depths = sorted({layers for variant in text.encoded() for layers, _ in variant})
        mixes = [(layers, self._engines.mix(Role("text", layers), resolved.loras)) for layers in depths]
        return {(layers, mix.key): mix for layers, mix in mixes}

    def _encode(
        self, texts: Iterable[tuple[Text, Mapping[int, str]]], mixes: Mapping[Place, Mix]
    ) -> dict[ChunkKey, Encoded]:
        """Every chunk of the texts, encoded by its engine; what is not remembered in one call per engine."""
        keys: set[ChunkKey] = {
            (layers, key_at[layers], chunk.tokens)
            for text, key_at in texts
            for variant in text.encoded()
            for layers, chunk in variant
        }
        contexts = {key: known for key in keys if (known := self._chunks.get(key)) is not None}
        for (layers, key_of_mix), group in groupby(sorted(keys - contexts.keys()), key=itemgetter(0, 1)):
            new = list(group)
            tokens = np.array([chunk for *_, chunk in new], dtype=np.int64)
            with self._engines.use(Role("text", layers), mixes[layers, key_of_mix]) as engine:
                encoded = self._run(engine, tokens)
            for place, key in enumerate(new):
                alone = {name: array[place].copy() for name, array in encoded.items()}  # views would keep their batch
                contexts[key] = alone
                self._chunks.put(key, alone, sum(array.nbytes for array in alone.values()))
        return contexts

    def _run(self, engine: Engine, tokens: Array) -> dict[str, Array]:
        """What the engine gives for token rows [R,77], by name; as many at once as it takes."""
        axes = engine.artefact.axes
        check_vectors(self._concepts, engine.artefact)
        limits = axes.get("R", AxisRange(1, 1, MOST_ROWS))
        most = min(limits.maximum, MOST_ROWS)
        parts = []
        for start in range(0, len(tokens), most):
            rows = tokens[start : start + most]
            power_of_two = 1 << max(1, (len(rows) - 1).bit_length())
            size = max(limits.minimum, min(power_of_two, most) if self._round_up else len(rows))
            padded = np.pad(rows, ((0, size - len(rows)), (0, 0)), mode="edge")
            outputs = engine.run({"tokens": padded, "concepts": self._concepts})
            parts.append({name: array[: len(rows)] for name, array in outputs.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def check_vectors(concepts: Array, text: Artefact) -> None:
    """RequestError where there are more vectors [E,D] of textual inversions than a text engine takes."""
    if "E" in text.axes and len(concepts) > (most := text.axes["E"].maximum):
        message = f"the embeddings have {len(concepts)} vectors; the engines take {most}"
        raise RequestError(message, field="embeddings", hint="open fewer of them")


def emphasise(context: Floats, weights: Floats, mode: str = "Original", counts: Sequence[int] | None = None) -> Floats:
    """Weight the vectors of one chunk position, as AUTOMATIC1111's `Emphasis` setting does.

    `context` is float32 [V, 77, D]: the same chunk position of all V schedule variants of one prompt, after the
    depth's LayerNorm; `weights` is [V, 77]; `counts` says how often the prompt's schedule names each variant (once, if
    not given). "Original" multiplies each token's vector by its weight and then scales
    the whole array so that its mean is what it was; "No norm" only multiplies; "Ignore" and "None" change nothing.
    Weights of 1 change no bit in any mode. Where the weighted mean is 0, A1111 divides by it; here it is not scaled.
    """
    if mode in ("Ignore", "None") or np.all(weights == 1):
        return context
    weighted = context * np.asarray(weights, np.float32)[..., None]
    if mode == "No norm":
        return weighted
    before, after = _mean(context, counts), _mean(weighted, counts)
    return weighted * np.float32(before / after) if after else weighted


def _mean(context: Floats, counts: Sequence[int] | None) -> float:
    return float(np.average(context.mean(axis=(1, 2), dtype=np.float64), weights=counts))
