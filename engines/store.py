"""One look at an engine store: find artefacts and prove that their bytes are those that were published.

Writes nothing, so a store may be read-only. Knows nothing of how engines are made (see publish) or run.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from shlex import quote
from threading import Lock
from typing import Protocol, TypeVar

from clipskip.engines import files, hints, locks, manifest, stamps
from clipskip.engines.errors import EngineCorrupt, EngineIncompatible, EngineMissing, ManifestError
from clipskip.engines.manifest import DECODE_TINY, LORA, Artefact, FileRecord, Identity, Manifest, Role
from clipskip.engines.strict import LARGEST

MANIFEST = "manifest.json"
ANY_LORA = "--lora FILE:WEIGHT"  # in a command, for who knows which ones to put in its place
FORM_TARGETS = {"cpu": "onnxruntime", "cuda": "onnxruntime-cuda"}  # variant -> what it is built for
_verified: dict[tuple[int, ...], str] = {}  # state of a file -> its SHA-256, for the life of the process
_hashing = Lock()  # two threads do not hash one file
Digest = Callable[[FileIO], str]  # the SHA-256 of an open file


def hashed(file: FileIO) -> str:
    """Of its bytes, read by this process."""
    state = files.state_of(file)
    with _hashing:
        if state not in _verified:
            digest = stamps.sha256_of(file, state)
            if files.state_of(file) != state:
                return "changed while it was read"
            _verified[state] = digest
        return _verified[state]


def stamped(file: FileIO) -> str:
    """Of its bytes, read by any process of this user since they changed."""
    return stamps.proved(files.state_of(file)) or hashed(file)


class Closing(Protocol):
    """What can be closed."""

    def close(self) -> None: ...


Opened = TypeVar("Opened", bound=Closing)


class Store:
    """The store in the folder `root`, as its manifest was at first use. Safe to call from several threads.

    What others publish later does not show: a pipeline never mixes two models. Open a new Store to see it.
    While a Store lives, `publish.gc` leaves the folders of its manifest alone.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._manifest: Manifest | None = None
        self._once = Lock()

    def manifest(self) -> Manifest:
        """The manifest. EngineMissing where there is none, ManifestError where it cannot be trusted."""
        with self._once:
            if self._manifest is None:
                self._manifest = self._held_manifest()
            return self._manifest

    def _held_manifest(self) -> Manifest:
        """The manifest, with its folders marked as in use; read again in case gc came between."""
        manifest = read_manifest(self.root)
        for name in manifest.folders():
            if (descriptor := locks.hold(self.root / name)) is not None:
                weakref.finalize(self, os.close, descriptor)
        return manifest if read_manifest(self.root) == manifest else self._held_manifest()

    def find(self, role: Role, target: str, precision: str, variant: str = "") -> Artefact:
        """The artefact with this identity; EngineMissing or EngineIncompatible, with the command that builds it."""
        model, artefact = self.manifest().model, self.manifest().find(Identity(role, target, precision, variant))
        hint = self.command(target, precision, role, variant)
        if artefact is None:
            message = f"{self.root} has no {role} for {target} at {precision}{variant and f', {variant}'}"
            raise EngineMissing(message, path=self.root, hint=hint)
        if artefact.model != model.model_sha256:
            message = f"{role} ({target}, {precision}) was made from another model than {model.name}"
            raise EngineIncompatible(message, path=self.root / artefact.files[0].path, hint=hint)
        return artefact

    def verify(self, artefact: Artefact, digest: Digest = hashed) -> Path:
        """Check every byte of the artefact, then the path of the file to open. EngineCorrupt, StorageError.

        Sizes come first, for they are free. A file that has not changed since is not read again in this process, and
        with `stamped` as digest no file of which another process noted that.
        """
        self._check(artefact.files, self._remedy(artefact), digest)
        return self.root / artefact.files[0].path

    def opened(self, artefact: Artefact, opener: Callable[[Artefact, Path], Opened]) -> Opened:
        """What `opener` makes of the verified artefact. As `verify`.

        The weights of a graph are data: a stamp is enough for them, and where there is none they are hashed while
        `opener` works on the graph, which was hashed before. An engine is a program, and hashed before in any case.
        """
        if artefact.target != "onnx":
            return opener(artefact, self.verify(artefact))
        hint, weights = self._remedy(artefact), [each for each in artefact.files[1:] if each.size >= stamps.LEAST]
        self._check(artefact.files, hint, None)
        self._check([each for each in artefact.files if each not in weights], hint, hashed)
        with ThreadPoolExecutor(1) as pool:
            proof = pool.submit(self._check, weights, hint, stamped)
            try:
                engine = opener(artefact, self.root / artefact.files[0].path)
            except Exception:
                proof.result()  # damage explains more
                raise
        try:
            proof.result()
        except BaseException:
            engine.close()
            raise
        return engine

    def verify_tokenizer(self) -> Path:
        """Check the tokenizer's files, then the folder that they are in. EngineMissing, EngineCorrupt, StorageError."""
        records, hint = self.manifest().tokenizer, self.command("onnx", "fp32")
        if not records:
            raise EngineMissing(f"{self.root} has no tokenizer", path=self.root, hint=hint)
        self._check(records, hint, hashed)
        return (self.root / records[0].path).parent

    def command(self, target: str, precision: str, role: Role | None = None, variant: str = "") -> str:
        """The command that makes what is missing or damaged, `role` above all, for the clip skips that are there."""
        content = self.manifest()
        texts = {artefact.role for artefact in content.artefacts if artefact.target == "onnx"} | {role or Role("step")}
        kept, there = content.model.kept, {text.layers for text in texts}
        skips = [skip for skip, layers in enumerate(kept, 1) if layers in there]
        if role == DECODE_TINY and role not in {artefact.role for artefact in content.artefacts}:
            return f"{self.command('onnx', precision)} --tiny-vae FILE"  # what is built, is built from a graph
        command = build_command(self.root, target, precision, variant)
        subset = (target, variant) == ("onnx", "") and 0 < len(skips) < len(kept)
        return f"{command} --skips {','.join(map(str, skips))}" if subset else command

    def exposed(self) -> list[str]:
        """A warning where others than the owner may change what is run."""
        content = self.manifest()
        records = {record.path for artefact in content.artefacts for record in artefact.files}
        names = ["", MANIFEST, *content.folders(), *records, *(record.path for record in content.tokenizer)]
        open_to = [self.root / name for name in sorted(names) if files.others_may_write(self.root / name)]
        more = f" and {len(open_to) - 1} more" if len(open_to) > 1 else ""
        what = f"others may write to {open_to[0]}{more}, and engines are programs" if open_to else ""
        return [f"{what}: chmod -R go-w {quote(str(self.root))}"] if open_to else []

    def _remedy(self, artefact: Artefact) -> str:
        return self.command(artefact.target, artefact.precision, variant=artefact.variant)

    def _check(self, records: Sequence[FileRecord], hint: str, digest: Digest | None) -> None:
        for how in dict.fromkeys((None, digest)):
            for record in records:
                if problem := problem_of(self.root, record, how):
                    raise EngineCorrupt(problem, path=self.root / record.path, hint=hint)


def read_manifest(root: Path) -> Manifest:
    """The manifest on the disk now."""
    path = root / MANIFEST
    try:
        with files.open_regular(path) as file:
            return manifest.loads(file.read(LARGEST + 1))
    except files.NotAFileError as error:
        message = f"no engine store in {root}: {path} {error}"
        raise EngineMissing(message, path=root, hint=export_command(root)) from error
    except ManifestError as error:
        hint = error.hint or f"rebuild it: {export_command(root)}"
        raise type(error)(f"{path}: {error.message}", path=path, field=error.field, hint=hint) from error


def problem_of(root: Path, record: FileRecord, digest: Digest | None) -> str | None:
    """What is wrong with a published file, if anything. Without a digest only its presence and size are looked at."""
    path = root / record.path
    if path.parent.is_symlink():
        return f"{path.parent} is a symbolic link"
    try:
        with files.open_regular(path) as file:
            if (size := files.state_of(file)[0]) != record.size:
                return f"{path} has {size} bytes instead of {record.size}"
            if digest and digest(file) != record.sha256:
                return f"{path} is not what was published: its SHA-256 differs"
    except files.NotAFileError as error:
        return f"{path} {error}"
    return None


def export_command(root: Path, precision: str = "fp32") -> str:
    """The command that makes the graphs of a store."""
    return f"{hints.clipskip()} export CHECKPOINT --out {quote(str(root))} --precision {precision}"


def build_command(root: Path, target: str, precision: str, variant: str = "") -> str:
    """The command that makes a missing artefact; of the LoRAs in one only the name of their mix is known here."""
    if (target, variant) == ("onnx", ""):
        return export_command(root, precision)
    command = f"{hints.clipskip()} build {quote(str(root))} --target {FORM_TARGETS.get(variant, target)}"
    return f"{command} {ANY_LORA}" if variant.startswith(LORA) else command
