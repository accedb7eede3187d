"""The opened engines of one model, each verified and opened when first used. Knows nothing of what they compute."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from clipskip.engines.manifest import STEP, Artefact, Identity, Role
from clipskip.engines.store import Store, build_command

from .backends import Backend, Engine
from .errors import Closed
from .first_use import prove


@dataclass
class _Entry:
    engine: Engine
    users: int = 0


class EngineCache:
    """Text engines come and go within `text_budget` bytes, the one used last is always kept; other engines stay open.

    Thread-safe. An engine is opened once for all threads, and never closed while somebody uses it. Engines are of the
    precision that the backend prefers, or of the other one where only that has a step engine.
    """

    def __init__(self, store: Store, backend: Backend, text_budget: int) -> None:
        self._store, self._backend, self._text_budget = store, backend, text_budget
        self._entries: OrderedDict[Role, _Entry] = OrderedDict()  # the least recently used first
        self._lock = threading.RLock()
        self._closed = False
        self._artefacts: dict[Role, Artefact] = {}
        here = {each.precision for each in store.manifest().artefacts if each.identity[:2] == (STEP, backend.target)}
        self._precision = backend.precision if backend.precision in here else min(here, default=backend.precision)

    def artefact(self, role: Role) -> Artefact:
        """The artefact that a role is opened from, of the best form there is. EngineMissing with the command for it."""
        if role not in self._artefacts:
            target, there = self._backend.target, {each.identity for each in self._store.manifest().artefacts}
            forms = (form for form in self._backend.variants if Identity(role, target, self._precision, form) in there)
            self._artefacts[role] = self._store.find(role, target, self._precision, next(forms, ""))
        return self._artefacts[role]

    @contextmanager
    def use(self, role: Role) -> Iterator[Engine]:
        """The engine of a role, opened if need be, and kept open while it is in use."""
        with self._lock:
            if self._closed:
                raise Closed("this pipeline is closed", hint="open it again with clipskip.open(...)")
            if role not in self._entries:
                self._entries[role] = _Entry(self._opened(self.artefact(role)))
            entry = self._entries[role]
            entry.users += 1
        try:
            with self._lock:
                self._entries.move_to_end(role)
                self._evict()
            yield entry.engine
        finally:
            with self._lock:
                entry.users -= 1
                self._evict()

    @property
    def notes(self) -> list[str]:
        """What is missing for this backend to do its best."""
        step, preferred = self.artefact(STEP), self._backend.variants[0]
        if not (preferred and self._backend.proof) or step.variant:
            return []
        command = build_command(self._store.root, step.target, step.precision, preferred)
        return [f"the graphs are computed as they were exported, not in the form for this GPU: {command}"]

    def roles(self) -> list[Role]:
        """What is open, the least recently used first."""
        with self._lock:
            return list(self._entries)

    def close(self) -> None:
        """Close every engine, those in use when their last user is done; none is opened any more."""
        with self._lock:
            self._closed = True
            self._evict()

    def _opened(self, artefact: Artefact) -> Engine:
        engine = self._backend.open(artefact, self._store.verify(artefact))
        try:
            if self._backend.proof and artefact.variant:
                prove(engine, self._store, self._backend)
        except BaseException:
            engine.close()
            raise
        return engine

    def _evict(self) -> None:
        """Close what nobody uses: everything once the cache is closed, before that text engines beyond the budget."""
        texts = [role for role in self._entries if role.part == "text"]
        excess = sum(self._entries[role].engine.nbytes for role in texts) - self._text_budget
        for role in list(self._entries) if self._closed else texts[:-1]:
            if (self._closed or excess > 0) and not self._entries[role].users:
                engine = self._entries.pop(role).engine
                excess -= engine.nbytes
                engine.close()
