"""Whether a form computes on this very GPU what the exported graph computes there: compared once, and recorded.

The builder compared the two on the CPU, where a form's own operators are expanded into others.
"""

from __future__ import annotations

import json
from contextlib import closing, suppress
from shlex import quote

from clipskip.engines import files, hints
from clipskip.engines.gates import DEVICE_RATIO, judge
from clipskip.engines.manifest import key_of
from clipskip.engines.store import Store
from clipskip.engines.trials import of

from .backends import Backend, Engine
from .errors import NumericalError


def prove(engine: Engine, store: Store, backend: Backend) -> None:
    """NumericalError for a form that leaves the gates on the backend's GPU."""
    form = engine.artefact
    exported = store.find(*form.identity[:3])
    name = key_of({"form": form.key, "file": form.files[0].sha256, "on": str(backend.proof)})
    record = (folder := files.own_folder()) and folder / f"{name[:32]}.proof"
    if record and record.exists():
        return
    pairs = []
    for feeds in of(form.role, store.manifest().model, form.precision == "fp16", form.inputs):
        with closing(backend.open(exported, store.verify(exported))) as other:  # one at a time: it has all its weights
            pairs.append((engine.run(feeds), other.run(feeds)))
    try:
        parity = judge(form.role, pairs, exported.parity, f"{form.identity.stem} on {backend.proof}", DEVICE_RATIO)
    except NumericalError as error:
        command = f"{hints.clipskip()} diagnose {quote(str(store.root))} {form.role}"
        hint = f"{command} --target {backend.name} --variant {form.variant} shows where they part; please report it"
        raise NumericalError(error.message, path=store.root / form.files[0].path, hint=hint) from error
    with suppress(OSError):
        if record:
            record.write_text(json.dumps({"form": form.identity.stem, "on": backend.proof, **parity}))
