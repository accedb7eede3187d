"""Building into a store: one builder at a time, nothing visible until all of it is on the disk, nothing built twice.

Knows nothing of what a builder does in its folder. A kill at any moment, a second builder and a full disk leave the
store as it was; what they leave lying about is collected by the next build.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from clipskip.engines import files, locks, manifest, stale
from clipskip.engines.errors import EngineIncompatible, EngineMissing, ExportError, ManifestError, StorageError
from clipskip.engines.files import readable_size
from clipskip.engines.locks import Progress
from clipskip.engines.manifest import (
    LORA,
    Artefact,
    FileRecord,
    Identity,
    Manifest,
    ModelFacts,
    NewerManifestError,
    key_of,
)
from clipskip.engines.stale import Wanted
from clipskip.engines.store import MANIFEST, read_manifest

_LOCK_LIMIT = 60.0  # seconds; the store's own lock is only ever held for a few file operations
_TEMPORARY = re.compile(r"\.tmp-([a-z0-9._-]+)-[0-9a-f]{8}")
_PUBLISHED = re.compile(r"([a-z0-9][a-z0-9._-]*)-([0-9a-f]{8})([0-9a-f]{8})(-\d+)?")  # label, key, and check of both
_LABEL = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")


@dataclass
class Draft:
    """What one build is about to publish. The builder writes into `folder` and records what it wrote."""

    folder: Path
    wanted: Wanted
    _artefacts: dict[Identity, tuple[Artefact, tuple[str, ...]]] = field(default_factory=dict)
    _tokenizer: tuple[str, ...] = ()

    def add(self, artefact: Artefact, names: Sequence[str]) -> None:
        """Record an artefact and the names of its files in `folder`, the one to open first.

        Leave `artefact.ingredients` empty, and `artefact.files` but for published files that are read along. The files
        may still grow until the build ends.
        """
        complete = replace(artefact, ingredients=dict(self.wanted[artefact.identity]))
        drafted = tuple(FileRecord(f"draft/{name}", 0, "0" * 64) for name in names)
        manifest.validate(replace(complete, files=drafted + artefact.files))
        self._artefacts[artefact.identity] = complete, tuple(names)

    def tokenizer(self, names: Sequence[str]) -> None:
        """Record the tokenizer's files in `folder`."""
        self._tokenizer = tuple(names)

    def seal(self) -> dict[str, tuple[int, str]]:
        """Flush and hash what was recorded and remove the rest: name -> size and SHA-256."""
        if missing := self.wanted.keys() - self._artefacts.keys():
            raise ExportError(f"the build ended without {', '.join(map(str, sorted(missing)))}")
        names = {*self._tokenizer, *(name for _, recorded in self._artefacts.values() for name in recorded)}
        for path in self.folder.iterdir():
            if path.name not in names:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        try:
            return {name: files.flush_and_hash(self.folder / name) for name in sorted(names)}
        except files.NotAFileError as error:
            raise ExportError(f"the build recorded a file that {error}", path=self.folder) from error

    def merge(self, current: Manifest, name: str, sealed: Mapping[str, tuple[int, str]]) -> Manifest:
        """`current` with what this build made, which will be in the folder `name`."""

        def records(names: Sequence[str]) -> tuple[FileRecord, ...]:
            return tuple(FileRecord(f"{name}/{file}", *sealed[file]) for file in names)

        merged = {artefact.identity: artefact for artefact in current.artefacts}
        published = {record for artefact in current.artefacts for record in artefact.files}
        for identity, (artefact, names) in self._artefacts.items():
            same = artefact.model == current.model.model_sha256
            if not same or not published.issuperset(artefact.files):
                what = "graph" if same else "model"
                message = f"the store's {what} changed while {identity.stem} was being built"
                raise EngineIncompatible(message, path=self.folder, hint="build again")
            merged[identity] = replace(artefact, files=records(names) + artefact.files)
        artefacts = tuple(merged[identity] for identity in sorted(merged))
        return replace(current, artefacts=artefacts, tokenizer=records(self._tokenizer) or current.tokenizer)


@contextmanager
def build(
    root: str | Path, label: str, wanted: Wanted, *, progress: Progress, model: ModelFacts | None = None, needs: int = 0
) -> Iterator[Draft | None]:
    """Publish the `wanted` artefacts as one immutable folder "label-key"; gives None where all is up to date.

        step = Identity(Role("step"), "onnx", "fp32")
        wanted = {step: {"model": sha256, "precision": "fp32", "opset": "23", "torch": "2.13.0"}}
        with build(out, "onnx-fp32", wanted, model=facts, progress=log) as draft:
            if draft is not None:
                ...  # write files into draft.folder
                draft.add(Artefact(Role("step"), "onnx", "fp32", inputs, outputs, axes), ["step.onnx", "weights.bin"])

    Leaving without an exception publishes; any exception discards. So a program that wants SIGTERM to clean up must
    turn it into one. `model`: the facts to publish (an exporter knows them); artefacts made from another model, or for
    another step of sizes, leave the manifest. `needs`: bytes to be written. StorageError for a full disk, a missing
    permission, or no locks.
    """
    root, name = Path(root), folder_name(label, wanted)
    facts = model or read_manifest(root).model  # EngineMissing: engines are only built where a model is
    manifest.dumps(Manifest(manifest.SCHEMA, facts, (), ()))  # what nobody could read back is refused before any work
    with files.translated(root):
        root.mkdir(parents=True, exist_ok=True)
    with locks.locked(root / f".lock-{name}", progress):
        reasons = stale.reasons(root, wanted, model)
        for line in stale.explain(reasons):
            progress(line)
        if not reasons:
            if model is not None and read_manifest(root).model != model:  # in facts that change no byte
                with _store_lock(root):
                    _commit(root, _current(root, model))
            progress(f"{name}: up to date")
            yield None
            return
        with _temporary(root, name, needs, progress) as folder:
            draft = Draft(folder, wanted)
            yield draft
            with files.translated(root):
                sealed = draft.seal()
            with _store_lock(root):
                current = _current(root, model)
                published = _free_name(root, name, current)
                _commit(root, draft.merge(current, published, sealed), (folder, root / published))


def recommend(root: str | Path, model_sha256: str, clip_skip: int, evidence: str) -> None:
    """Write into the manifest what requests get that name no clip skip, and how that is known of this model."""
    with _store_lock(Path(root)):
        current = read_manifest(Path(root))
        if current.model.model_sha256 != model_sha256:  # measuring takes minutes
            message = f"{root} holds another model than the one that was measured: nothing was written"
            raise EngineIncompatible(message, path=root, hint="measure this one")
        model = replace(current.model, recommended_clip_skip=clip_skip, evidence=evidence)
        _commit(Path(root), replace(current, model=model))


def folder_name(label: str, wanted: Wanted) -> str:
    """The name under which a build is published: the label, what it is made of, and a check that nobody else writes."""
    if not _LABEL.fullmatch(label):
        raise ValueError(f"label {label!r}")
    key = key_of({str(identity): key_of(ingredients) for identity, ingredients in wanted.items()})
    return f"{label}-{key[:8]}{_check(label, key[:8])}"


def _check(label: str, key: str) -> str:
    return key_of({"folder": label, "key": key})[:8]


def gc(
    root: str | Path, *, dry_run: bool = False, lora_budget: int | None = None, needed: Collection[str] = ()
) -> dict[str, int]:
    """Remove folders that no manifest names and no process uses; gives their names and sizes in bytes.

    Where engines with LoRAs have more than `lora_budget` bytes, the oldest leave the manifest first, but for those in
    use and those whose stems are `needed`.
    """
    root = Path(root)
    with files.translated(root) if dry_run else _store_lock(root):
        current = read_manifest(root)
        surplus = [] if lora_budget is None else _surplus(root, current, lora_budget, needed)
        current = replace(current, artefacts=tuple(each for each in current.artefacts if each not in surplus))
        if surplus and not dry_run:
            _commit(root, current)
        keep = current.folders()
        paths = sorted(root.iterdir())
        garbage = [path for path in paths if path.name not in keep and _is_garbage(path)]
        sizes = {path.name: files.folder_size(path) for path in garbage}
        for path in () if dry_run else garbage:
            shutil.rmtree(path)
    return sizes


def _surplus(root: Path, current: Manifest, budget: int, needed: Collection[str]) -> list[Artefact]:
    """Engines with LoRAs that nobody uses, from the oldest on, until the others keep to the budget."""
    loras = [each for each in current.artefacts if each.variant.startswith(LORA)]
    homes = {each.identity: (root / each.files[0].path).parent for each in loras}
    excess = sum(each.files[0].size for each in loras) - budget
    surplus: list[Artefact] = []
    for each in sorted(loras, key=lambda each: homes[each.identity].stat().st_mtime_ns):
        if excess > 0 and each.identity.stem not in needed and not locks.in_use(homes[each.identity]):
            surplus.append(each)
            excess -= each.files[0].size
    return surplus


def _is_garbage(path: Path) -> bool:
    """Whether this is a folder of a build, by its name, that nobody uses. A user's own is never taken for one."""
    name = temporary[1] if (temporary := _TEMPORARY.fullmatch(path.name)) else path.name
    ours = (match := _PUBLISHED.fullmatch(name)) is not None and _check(match[1], match[2]) == match[3]
    return ours and path.is_dir() and not path.is_symlink() and not locks.in_use(path)


@contextmanager
def _store_lock(root: Path) -> Iterator[None]:
    with locks.locked(root / ".lock", lambda line: None, _LOCK_LIMIT), files.translated(root):
        yield


@contextmanager
def _temporary(root: Path, name: str, needs: int, progress: Progress) -> Iterator[Path]:
    """A folder of our own beside the target, gone when this ends. Collects those of builders that were killed."""
    folder, held = root / f".tmp-{name}-{secrets.token_hex(4)}", None
    try:
        with _store_lock(root):
            for path in root.iterdir():
                if path.name.startswith(".lock-"):
                    locks.remove_stale(path)
                elif path.name.startswith(".tmp-") and _is_garbage(path):
                    progress(f"removing {path.name}: its build was killed (out of memory?)")
                    shutil.rmtree(path, ignore_errors=True)  # it may be somebody else's
            folder.mkdir()
            held = locks.hold(folder)
        if needs > shutil.disk_usage(root).free:
            raise files.full(root, readable_size(needs))
        yield folder
    except Exception as error:
        if cause := files.full_disk(error):
            written = f"more than {readable_size(files.folder_size(folder))}"
            raise files.storage_error(cause, root, readable_size(needs) if needs else written) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if held is not None:
            os.close(held)


def _current(root: Path, model: ModelFacts | None) -> Manifest:
    """The manifest to merge into. An exporter can start afresh where there is none or it is damaged."""
    try:
        current = read_manifest(root)
    except (EngineMissing, ManifestError) as error:
        if model is None or isinstance(error, NewerManifestError):
            raise
        return Manifest(manifest.SCHEMA, model, (), ())
    model, old = model or current.model, current.model
    if (old.model_sha256, old.size_step) != (model.model_sha256, model.size_step):
        return Manifest(manifest.SCHEMA, model, (), ())
    return replace(current, model=model)


def _free_name(root: Path, name: str, current: Manifest) -> str:
    """`name`, or with a number where a damaged folder of that name must stay because somebody may be reading it."""
    for candidate in (name, *(f"{name}-{i}" for i in range(2, 1000))):
        path = root / candidate
        if candidate not in current.folders() and _is_garbage(path):
            shutil.rmtree(path)  # published by a builder that was killed before it could commit
        if not path.exists():
            return candidate
    raise StorageError(f"too many damaged copies of {name}; run clipskip gc", path=root)


def _commit(root: Path, new: Manifest, rename: tuple[Path, Path] | None = None) -> None:
    """Make a sealed draft part of the store. What the manifest names is on the disk before the manifest is:

    .manifest.json.new   written, flushed
    .tmp-NAME-xxxxxxxx/  --- renamed ---> NAME/            a kill here leaves a folder that no manifest names: gc's
    STORE/               flushed: the new folder's name is on the disk
    .manifest.json.new   --- renamed ---> manifest.json    the commit: readers see the old or the new one, whole
    STORE/               flushed: so is the commit
    """
    pending = root / f".{MANIFEST}.new"  # no other name is needed: we hold the store's lock
    text = manifest.dumps(new)
    try:
        pending.unlink(missing_ok=True)
        with pending.open("x", encoding="utf-8") as file:  # "x" writes through no link that somebody put there
            file.write(text)
        files.flush(pending)
        if rename is not None:
            rename[0].rename(rename[1])
            files.flush(root)
        pending.replace(root / MANIFEST)
    finally:
        pending.unlink(missing_ok=True)
    files.flush(root)
