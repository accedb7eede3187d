"""The opened engines of one model: each is verified and opened when first used. Knows nothing of what they compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from clipskip.engines.manifest import Artefact, Identity, Role
from clipskip.engines.store import Store

from .backends import Array, Backend, Engine
from .errors import RequestError
from .lru import Closed, Lru


class Residents:
    """Text engines come and go within `text_engine_budget` bytes; the step and decode engines stay open."""

    def __init__(self, store: Store, backend: Backend, concepts: Array, text_engine_budget: int) -> None:
        self._store = store
        self._concepts = concepts
        self._backend = backend
        self._text: Lru[Engine] = Lru(text_engine_budget, dispose=lambda engine: engine.close())
        self._others: Lru[Engine] = Lru(2**62, dispose=lambda engine: engine.close())
        self._precision = self._chosen()

    def artefact(self, role: Role) -> Artefact:
        """The artefact that a role is opened from. EngineMissing with the command that builds it."""
        return self._store.find(role, self._backend.target, self._precision)

    @contextmanager
    def use(self, role: Role) -> Iterator[Engine]:
        """The engine of a role, opened if need be, and kept open while it is in use."""
        cache = self._text if role.part == "text" else self._others
        try:
            with cache.lease(str(role), lambda: self._open(role)) as engine:
                yield engine
        except Closed as error:
            raise RequestError("this pipeline is closed", hint="open it again with clipskip.open(...)") from error

    def encode(self, layers: int, tokens: Array) -> Array:
        """The contexts [R,77,D] of token rows [R,77] from the text engine that keeps `layers` layers."""
        with self.use(text_role(layers)) as engine:
            limit = engine.artefact.axes.get("R")
            size = limit.maximum if limit else len(tokens)
            return np.concatenate([self._encode(engine, tokens[i : i + size]) for i in range(0, len(tokens), size)])

    def _encode(self, engine: Engine, tokens: Array) -> Array:
        rows = _round_up(tokens, engine.artefact) if self._backend.few_shapes else tokens
        return engine.run({"tokens": rows, "concepts": self._concepts})["context"][: len(tokens)]

    def close(self) -> None:
        """Close every engine; those in use end with their last user, and none is opened any more."""
        self._text.close()
        self._others.close()

    def _chosen(self) -> str:
        """The backend's preferred precision, or the other one where only that has a step engine."""
        preferred, manifest = self._backend.precision, self._store.manifest()
        other = "fp16" if preferred == "fp32" else "fp32"
        here = [
            each for each in (preferred, other) if manifest.find(Identity(Role("step"), self._backend.target, each))
        ]
        return here[0] if here else preferred

    def _open(self, role: Role) -> tuple[Engine, int]:
        artefact = self.artefact(role)
        rows = artefact.axes.get("E")
        if rows is not None and len(self._concepts) > rows.maximum:
            raise RequestError(
                f"the embeddings have {len(self._concepts)} vectors; the engines take {rows.maximum}",
                field="embeddings",
                hint="open fewer of them",
            )
        engine = self._backend.open(artefact, self._store.verify(artefact))
        return engine, engine.nbytes


def _round_up(tokens: Array, artefact: Artefact) -> Array:
    """Token rows with the last one repeated, until they are a power of two or as many as the engine takes."""
    limit = artefact.axes.get("R")
    power = 1 << max(1, (len(tokens) - 1).bit_length())
    size = min(power, limit.maximum) if limit else power
    return np.pad(tokens, ((0, size - len(tokens)), (0, 0)), mode="edge")


def text_role(layers: int) -> Role:
    """The role of the text engine that keeps `layers` layers."""
    return Role("text", layers)
