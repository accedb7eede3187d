"""What `clipskip inspect` and `clipskip verify` tell about a store, as JSON-ready values and as text.

Knows nothing of the command line; reads only.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from clipskip.engines import files, manifest, publish
from clipskip.engines.errors import RequestError, StorageError, StoreError
from clipskip.engines.files import readable_size
from clipskip.engines.manifest import Artefact, FileRecord
from clipskip.engines.store import MANIFEST, Store


def inspect(root: str | Path) -> dict[str, Any]:
    """Model facts, artefacts, tokenizer, sizes in bytes, unreferenced folders and warnings. Opens no engine.

    EngineMissing and ManifestError as for `Store.manifest`.
    """
    store = Store(root)
    content = store.manifest()
    records = {record for artefact in content.artefacts for record in artefact.files} | set(content.tokenizer)
    return {
        "store": str(store.root),
        "schema": content.schema,
        "model": manifest.packed(content.model),
        "artefacts": [
            {**manifest.packed(artefact), "key": artefact.key, "size": _size(artefact.files)}
            for artefact in content.artefacts
        ],
        "tokenizer": [record.path for record in content.tokenizer],
        "size": _size(records),
        "unreferenced": publish.gc(store.root, dry_run=True),
        "warnings": store.exposed(),
    }


def verify(root: str | Path, anchor: str | None = None) -> list[tuple[str, str | None]]:
    """Every artefact and the tokenizer, each with what is wrong with it or None. All bytes are read.

    With `anchor`, the SHA-256 that `seal` gave, also the manifest. What the manifest does not name is never read.
    """
    store, rows = Store(root), []
    if anchor is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", anchor):
        message = f"manifest_sha256 {anchor!r:.80} is no SHA-256, which has 64 digits from 0-9 and a-f"
        raise RequestError(message, field="manifest_sha256", hint="export and build print it when they end")
    content = store.manifest()
    if anchor is not None:
        same = seal(store.root) == anchor.lower()
        rows.append(("manifest", None if same else f"{store.root / MANIFEST} has another SHA-256"))
    rows += [(str(artefact.identity), _problem(store, artefact)) for artefact in content.artefacts]
    return [*rows, ("tokenizer", _problem(store, None))]


def seal(root: str | Path) -> str:
    """SHA-256 of the manifest, and so of all that it names: kept elsewhere, it proves that a store is the same."""
    with files.open_regular(Path(root) / MANIFEST) as file:
        return files.sha256_of(file)


def inspection_text(facts: dict[str, Any]) -> str:
    """What `inspect` found, for people."""
    model = facts["model"]
    head = (
        f"{facts['store']}: {model['name']} ({model['family']}, {model['prediction']} prediction, "
        f"{model['layers']} text layers, clip skip {model['recommended_clip_skip']} by default"
        f"{f', {suggested} suggested by its file' if (suggested := model.get('suggested_clip_skip')) else ''})"
    )
    rows = [("role", "target", "precision", "key", "size", "shapes", "parity"), *map(_row, facts["artefacts"])]
    engines = facts["artefacts"]
    notes = [f"{engine['role']} ({engine['target']}): {note}" for engine in engines for note in engine["notes"]]
    fits = defaultdict[str, list[str]](list)
    for engine in engines:
        if capability := engine["provenance"].get("compute capability"):
            fits[f"{engine['target']} for compute capability {capability}"].append(engine["role"])
    suited = [f"{what}: {', '.join(roles)}" for what, roles in fits.items()]
    stray = [f"{name}: {readable_size(size)} unreferenced" for name, size in facts["unreferenced"].items()]
    warnings = [f"warning: {warning}" for warning in facts["warnings"]]
    total = f"{readable_size(facts['size'])} in all; weights that artefacts share are counted once"
    because = [f"measured: {model['evidence']}"] if "evidence" in model else []
    merged = [f"merged: {source}" for source in model["sources"] if ". LoRA " in source]
    return "\n".join([head, *because, *merged, "", table(rows), "", total, *suited, *notes, *stray, *warnings])


def verification_text(results: Iterable[tuple[str, str | None]]) -> str:
    """What `verify` found, for people."""
    return table([(name, problem or "ok") for name, problem in results])


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _row(artefact: dict[str, Any]) -> tuple[str, ...]:
    axes = (
        f"{name} {axis['minimum']}" + (f"-{axis['maximum']}" if axis["maximum"] > axis["minimum"] else "")
        for name, axis in artefact["axes"].items()
    )
    parity = (f"{name} {value:.2g}" for name, value in artefact["parity"].items())
    target = f"{artefact['target']} {artefact.get('variant', '')}".rstrip()
    names = (artefact["role"], target, artefact["precision"], artefact["key"][:12])
    return (*names, readable_size(artefact["size"]), ", ".join(axes), ", ".join(parity))


def _size(records: Iterable[FileRecord]) -> int:
    return sum(record.size for record in records)


def _problem(store: Store, artefact: Artefact | None) -> str | None:
    try:
        if artefact is None:
            store.verify_tokenizer()
        else:
            store.verify(store.find(*artefact.identity))
    except (StoreError, StorageError) as error:
        return error.message
    return None
