"""What has to be rebuilt, and why: recorded ingredients against wanted ones, and published bytes against their hashes.

Knows nothing of modification times.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from clipskip.engines.errors import EngineMissing, ManifestError
from clipskip.engines.manifest import FileRecord, Identity, Manifest, ModelFacts, NewerManifestError
from clipskip.engines.store import hashed, problem_of, read_manifest

Wanted = Mapping[Identity, Mapping[str, str]]  # artefact -> its ingredients
_SHA256 = re.compile(r"[0-9a-f]{64}")


def reasons(root: str | Path, wanted: Wanted, model: ModelFacts | None = None) -> dict[Identity, str]:
    """Why each artefact that is not up to date has to be built; empty when all are.

    With `model`, as an exporter calls it, the tokenizer must be intact too and a damaged manifest is a reason. Without,
    a store without a readable manifest is an EngineMissing or ManifestError.
    """
    try:
        current = read_manifest(Path(root))
    except (EngineMissing, ManifestError) as error:
        if model is None or isinstance(error, NewerManifestError):
            raise
        why = "not built yet" if isinstance(error, EngineMissing) else f"the manifest is damaged: {error.message}"
        return dict.fromkeys(wanted, why)
    tokenizer = None
    if model is not None:
        tokenizer = _damage(Path(root), current.tokenizer) if current.tokenizer else "the store has no tokenizer"
    whys = {identity: tokenizer or _reason(Path(root), current, identity, wanted, model) for identity in wanted}
    return {identity: why for identity, why in whys.items() if why}


def explain(reasons: Mapping[Identity, str]) -> list[str]:
    """A line for each reason, naming the artefacts that share it."""
    return [
        f"{', '.join(identity.stem for identity, reason in reasons.items() if reason == why)}: {why}"
        for why in dict.fromkeys(reasons.values())
    ]


def _reason(root: Path, current: Manifest, identity: Identity, wanted: Wanted, model: ModelFacts | None) -> str | None:
    artefact = current.find(identity)
    if artefact is None:
        return "not built yet"
    if changes := list(_changes(artefact.ingredients, wanted[identity], current.model, model)):
        return "; ".join(changes)
    if artefact.model != current.model.model_sha256:
        return "made from another model than the rest of the store"
    return _damage(root, artefact.files)


def _damage(root: Path, records: Sequence[FileRecord]) -> str | None:
    return next((problem for record in records if (problem := problem_of(root, record, hashed))), None)


def _changes(
    old: Mapping[str, str], new: Mapping[str, str], old_model: ModelFacts, model: ModelFacts | None
) -> Iterator[str]:
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) == new.get(name):
            continue
        if name != "model":
            yield f"{name}: {_short(old.get(name))} -> {_short(new.get(name))}"
        elif model is None:
            yield "the checkpoint changed"
        else:
            sources = sorted({source for source, _ in old_model.sources.items() ^ model.sources.items()})
            more = f" and {len(sources) - 3} more" if len(sources) > 3 else ""
            yield f"the checkpoint changed: {', '.join(sources[:3])}{more}"


def _short(value: str | None) -> str:
    if value is None:
        return "none"
    return value[:12] if _SHA256.fullmatch(value) else value
