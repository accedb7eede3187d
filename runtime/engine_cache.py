"""The opened engines of one model, each verified and opened when first used. Knows nothing of what they compute."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from clipskip.engines import variants
from clipskip.engines.manifest import STEP, Artefact, Identity, Role
from clipskip.engines.store import ANY_LORA, Store, build_command, export_command, stamped
from clipskip.engines.variants import PLAIN, Active, Mix
from clipskip.engines.weights import Shape

from .backends import Array, Backend, Engine, Replacing
from .errors import Closed, EngineIncompatible, EngineMissing, StoreError
from .first_use import prove


@dataclass
class _Entry:
    engine: Engine
    users: int = 0


class EngineCache:
    """Text engines come and go within `text_budget` bytes, the one used last is always kept; other engines stay open.

    Thread-safe. An engine is opened once for all threads, and never closed while somebody uses it. Engines are of the
    precision that the backend prefers, or of the other one where only that has a step engine.

    With LoRAs an engine is another one, by the key of its mix. Beside the plain step `lora_engines` are open; who uses
    more at once must not ask for them.
    """

    def __init__(self, store: Store, backend: Backend, text_budget: int, lora_engines: int = 1) -> None:
        self._store, self._backend, self._text_budget, self.lora_engines = store, backend, text_budget, lora_engines
        self._entries: OrderedDict[tuple[Role, str], _Entry] = OrderedDict()  # the least recently used first
        self._changed: weakref.WeakValueDictionary[str, Array] = weakref.WeakValueDictionary()  # weights in use
        self._parameters: dict[Role, frozenset[str]] = {}
        self._changeable: Mapping[str, Shape] = {}
        self._lock, self._opening = threading.RLock(), threading.RLock()
        self._closed = False
        self._artefacts: dict[Role, Artefact] = {}
        here = {each.precision for each in store.manifest().artefacts if each.identity[:2] == (STEP, backend.target)}
        self._precision = backend.precision if backend.precision in here else min(here, default=backend.precision)

    def artefact(self, role: Role, mix: Mix = PLAIN) -> Artefact:
        """The artefact that a role is opened from, of the best form there is. EngineMissing with the command for it."""
        if mix.key and not isinstance(self._backend, Replacing):
            return self._built_with(role, mix)
        if role not in self._artefacts:
            target, there = self._backend.target, {each.identity for each in self._store.manifest().artefacts}
            forms = (form for form in self._backend.variants if Identity(role, target, self._precision, form) in there)
            self._artefacts[role] = self._store.find(role, target, self._precision, next(forms, ""))
        return self._artefacts[role]

    def _built_with(self, role: Role, mix: Mix) -> Artefact:
        """The engine that was built with these LoRAs, where a backend cannot change the weights of one."""
        if self._backend.target == "onnx":
            own = Path(f"{self._store.root.absolute()}-{mix.variant}")
            hint = f"merge it into a store of its own: {export_command(own, self._precision)} {mix.options}"
            raise EngineIncompatible(f"{self._backend.name} cannot change weights for a LoRA", hint=hint)
        try:
            return self._store.find(role, self._backend.target, self._precision, mix.variant)
        except EngineMissing as error:
            names = ", ".join(f"{lora.name} at {weight:g}" for lora, weight in mix.parts)
            message = f"{self._store.root} has no {role} for {self._backend.target} with {names}"
            hint = str(error.hint).replace(ANY_LORA, mix.options)
            raise EngineMissing(message, path=self._store.root, hint=hint) from error

    def changeable(self) -> Mapping[str, Shape]:
        """All parameters of the model that LoRAs may change. EngineIncompatible where the store does not say."""
        if not self._changeable:
            self._changeable = variants.changeable(self._store, self._precision)
        return self._changeable

    def mix(self, role: Role, loras: Sequence[Active]) -> Mix:
        """What LoRAs make of a role's engine."""
        if not loras:
            return PLAIN
        if role not in self._parameters:
            graph = self._store.find(role, "onnx", self._precision)
            self._parameters[role] = frozenset(variants.parameters(variants.table(self._store, graph)))
        return variants.mix(role, self._parameters[role], loras)

    @contextmanager
    def use(self, role: Role, mix: Mix = PLAIN) -> Iterator[Engine]:
        """The engine of a role, opened if need be, and kept open while it is in use."""
        key = role, mix.key
        if (entry := self._taken(key)) is None:
            with self._opening:  # seconds, in which nobody waits who uses or gives back another engine
                entry = self._taken(key)
                if entry is None:
                    entry = _Entry(self._opened(role, mix), 1)
                    with self._lock:
                        self._entries[key] = entry
        try:
            with self._lock:
                self._evict()
            yield entry.engine
        finally:
            with self._lock:
                entry.users -= 1
                self._evict()

    def _taken(self, key: tuple[Role, str]) -> _Entry | None:
        """An open engine, with one user more; None where it is to be opened. Closed."""
        with self._lock:
            if self._closed:
                raise Closed("this pipeline is closed", hint="open it again with clipskip.open(...)")
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            self._entries[key].users += 1
            return self._entries[key]

    @property
    def notes(self) -> list[str]:
        """What is missing for this backend to do its best, and what it does otherwise than others."""
        step, preferred = self.artefact(STEP), self._backend.variants[0]
        bf16 = self._backend.describe().get("bf16")
        notes = [f"computed in bfloat16 ({bf16}): the picture differs from one in single precision"] if bf16 else []
        if preferred and self._backend.proof and not step.variant:
            command = build_command(self._store.root, step.target, step.precision, preferred)
            notes.append(f"the graphs are computed as they were exported, not in the form for this GPU: {command}")
        return notes

    def roles(self) -> list[Role]:
        """What is open, the least recently used first."""
        with self._lock:
            return [role for role, _ in self._entries]

    def close(self) -> None:
        """Close every engine, those in use when their last user is done; none is opened any more."""
        with self._lock:
            self._closed = True
            self._evict()

    def _opened(self, role: Role, mix: Mix) -> Engine:
        artefact = self.artefact(role, mix)
        try:
            if mix.key and artefact.variant != mix.variant:
                return self._opened_with(artefact, self._store.verify(artefact, stamped), mix)
            engine = self._store.opened(artefact, self._backend.open)
        except StoreError as error:
            error.hint = error.hint and error.hint.replace(ANY_LORA, mix.options)
            raise
        try:
            if self._backend.proof and artefact.variant:
                prove(engine, self._store, self._backend)
        except BaseException:
            engine.close()
            raise
        return engine

    def _opened_with(self, artefact: Artefact, path: Path, mix: Mix) -> Engine:
        """The engine with other weights, once the plain form was proved; another mix of the step makes room before."""
        if self._backend.proof:
            with self.use(artefact.role):
                pass
        if artefact.role == STEP:
            with self._lock:
                self._close_steps(self.lora_engines - 1)
        changed = variants.changed(self._store, artefact, mix, self._changed)
        assert isinstance(self._backend, Replacing)
        return self._backend.open_changed(artefact, path, changed)

    def _close_steps(self, kept: int) -> None:
        """Close step engines with LoRAs that nobody uses, the least recently used first, until so many are left."""
        steps = [key for key in self._entries if key[0] == STEP and key[1]]
        idle = [key for key in steps if not self._entries[key].users]
        for key in idle[: max(0, len(steps) - kept)]:
            self._entries.pop(key).engine.close()

    def _evict(self) -> None:
        """Close what nobody uses: everything once the cache is closed, before that text engines beyond the budget."""
        texts = [key for key in self._entries if key[0].part == "text"]
        excess = sum(self._entries[key].engine.nbytes for key in texts) - self._text_budget
        for key in list(self._entries) if self._closed else texts[:-1]:
            if (self._closed or excess > 0) and not self._entries[key].users:
                engine = self._entries.pop(key).engine
                excess -= engine.nbytes
                engine.close()
        self._close_steps(self.lora_engines)
