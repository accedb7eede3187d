"""LoRAs that requests call by the names of their files: tags and settings read, files found, and what to say of them.

Knows nothing of layouts (see `clipskip.engines.lora`) and of what becomes of an engine.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from clipskip.engines import identify, lora
from clipskip.engines.lora import MOST, Lora
from clipskip.engines.variants import Active

from .errors import CheckpointError, ClipskipError, RequestError, UnsafeFileError
from .fields import did_you_mean, shown
from .inversions import PICKLES, SUFFIX
from .prompt import networks
from .prompt.parts import KNOWN
from .recent import Recent
from .request import Request

if TYPE_CHECKING:
    from .resolve import Resolved

BUDGET = 2**30  # bytes of files that are kept in memory
LONGEST = 1 << 12  # characters of what a file says, to be told
_HASHES: dict[str, str] = {}  # SHA-256 of a file -> A1111's hash of it
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Called:
    """A LoRA by its name in a request, with its weight in the text encoders and in the U-Net."""

    name: str
    text: float
    unet: float
    field: str  # of the request, that says so


def called(request: Request) -> list[Called]:
    """The LoRAs that a request names, in its prompt and in `loras`, each as often as it does. RequestError."""
    tags = [arguments for kind, arguments in networks(request.prompt)[1] if kind.lower() in KNOWN]
    return [_called(each, "prompt") for each in tags] + [_called(each, "loras") for each in request.loras or ()]


def _called(arguments: str, field: str) -> Called:
    """What stands in a tag, by A1111's rules: `name:text:unet`, where the U-Net's weight is the text encoder's if none
    is given, that is 1; `te=` and `unet=` overrule both, at any place."""
    values = [item.partition("=") for item in arguments.split(":")]
    name, *places = [item for item, equals, _ in values if not equals] or [""]
    named = {item: value for item, equals, value in values if equals}
    if len(places) > 2 or "dyn" in named:
        message = f"{shown(arguments)}: dyn, a LoRA of fewer ranks than its file has, is not supported"
        raise RequestError(message, field=field, hint="leave it out")
    if not name or (strange := named.keys() - {"te", "unet"}):
        what = f"{next(iter(strange))}= is not known" if name else "there is no name"
        hint = "name:weight, name:text:unet, or name:te=0.5:unet=1"
        raise RequestError(f"a LoRA {shown(arguments)}: {what}", field=field, hint=hint)
    text = _weight(named.get("te", places[0] if places else "1"), arguments, field)
    unet = _weight(named["unet"], arguments, field) if "unet" in named else None
    if unet is None:
        unet = _weight(places[1], arguments, field) if len(places) > 1 else text
    return Called(name, text, unet, field)


def _weight(typed: str, arguments: str, field: str) -> float:
    with suppress(ValueError):
        if abs(weight := float(typed)) <= MOST:
            return weight
    message = f"a LoRA's weight must be a number from -{MOST:g} to {MOST:g}, not {shown(typed)}"
    raise RequestError(f"{message} in {shown(arguments)}", field=field, hint="0.5 to 1 is usual")


class Loras:
    """The LoRA files in some places, by their stems. Files are read when they are first used. Thread-safe."""

    def __init__(self, locations: Sequence[str]) -> None:
        self.locations = tuple(locations)
        self._lock = threading.Lock()
        self._read: Recent[Lora] = Recent(BUDGET)  # by the state of the file
        self._paths, self.notes = _listed(locations)

    def active(self, request: Request, parameters: Shapes) -> tuple[Active, ...]:
        """The LoRAs of a request that have a weight, for networks with these parameters. RequestError, CheckpointError.

        One that is named twice counts twice.
        """
        found: dict[str, Active] = {}
        for each in called(request):
            path = self._find(each)
            if each.text or each.unet:
                one = self._open(path, parameters)
                before = found.get(one.sha256, Active(one, path, 0.0, 0.0))
                found[one.sha256] = Active(one, path, before.text + each.text, before.unet + each.unet)
        return tuple(found.values())

    def paths(self) -> dict[str, Path]:
        """The files by name, with what came into the folders meanwhile."""
        with self._lock:
            self._paths, self.notes = _listed(self.locations)
            return self._paths

    def told(self) -> dict[str, Mapping[str, str]]:
        """By name, what each file says of itself but at length; nothing where it is broken."""
        return {name: _metadata(path, os.path.getmtime(path)) for name, path in sorted(self.paths().items())}

    def _find(self, each: Called) -> Path:
        """The file of this name, or of one that differs in case; folders are looked through anew for an unknown one."""
        for again in (False, True):
            paths = self.paths() if again else self._paths
            alike = [name for name in paths if name.lower() == each.name.lower()]
            if each.name in paths or len(alike) == 1:
                return paths[each.name if each.name in paths else alike[0]]
        if alike:
            message = f"the LoRA {shown(each.name)} is one of {', '.join(map(shown, sorted(alike)))}"
            raise RequestError(message, field=each.field, hint="write it as its file is called")
        if not self.locations:
            hint = "name their folder: clipskip.open(..., loras=FOLDER), or the option --loras FOLDER of a command"
            raise RequestError(f"there is no LoRA {shown(each.name)}: none are open", field=each.field, hint=hint)
        places = ", ".join(self.locations[:3]) + (", ..." if self.locations[3:] else "")
        close = did_you_mean(each.name, {name: name for name in self._paths}, 0.5)
        there = ", ".join(sorted(self._paths)[:10]) or "no LoRA"
        message = f"there is no LoRA {shown(each.name)} in {places}"
        raise RequestError(message, field=each.field, hint=close or f"there is: {there}")

    def _open(self, path: Path, parameters: Shapes) -> Lora:
        with self._lock:
            try:
                now = path.stat()
            except OSError as error:
                raise CheckpointError(f"cannot read {path}: {error.strerror}", path=path) from error
            state = now.st_size, now.st_dev, now.st_ino, now.st_mtime_ns, now.st_ctime_ns
            if (one := self._read.get(state)) is None:
                one = lora.read(path, parameters)
                self._read.put(state, one, len(one.data))
            return one


def _listed(locations: Sequence[str]) -> tuple[dict[str, Path], tuple[str, ...]]:
    """The files by stem, and notes about those in folders that cannot be used. CheckpointError for one named itself."""
    named = {os.path.abspath(each): Path(each) for each in locations if not os.path.isdir(each)}
    found: dict[str, Path] = {}
    said = []
    below = [path for each in locations if os.path.isdir(each) for path in sorted(Path(each).rglob("*"))]
    for path in (*named.values(), *below):
        alone, kind = os.path.abspath(path) in named, path.suffix.lower()
        if not alone and (kind not in {SUFFIX, *PICKLES} or path.name[0] == "."):
            continue
        error: CheckpointError | None = None
        if kind in PICKLES:
            error = UnsafeFileError("it is a pickle, which can run code when it is read")
        elif not path.is_file() or kind != SUFFIX:
            error = CheckpointError(f"no LoRA, which is a {SUFFIX} file")
        elif (other := found.setdefault(path.stem, path)) is not path and not os.path.samefile(other, path):
            error = CheckpointError(f"{other} has the same name", hint="rename or remove one of them")
        if error is not None and alone:
            raise error.about(path)
        said += [f"the LoRA {path} is not used: {error.message}"] if error else []
    return found, tuple(os.fsencode(note).decode("utf-8", "backslashreplace") for note in said)


@lru_cache(maxsize=1 << 12)
def _metadata(path: Path, changed: float) -> Mapping[str, str]:
    """As of a time; a list of all captions may have megabytes."""
    try:
        return {name: text for name, text in lora.metadata(path).items() if len(text) <= LONGEST}
    except ClipskipError:  # said where somebody calls it
        return {}


def a1111_hash(one: Lora) -> str:
    """What A1111 knows a LoRA by: the hash that the file tells of itself, or SHA-256 of all behind its header."""
    if one.sha256 not in _HASHES:
        told = one.metadata.get("sshs_model_hash")
        _HASHES[one.sha256] = told or hashlib.sha256(memoryview(one.data)[one.header.data :]).hexdigest()
    return _HASHES[one.sha256]


def notes(loras: Iterable[Active], resolved: Resolved, kept: Sequence[int]) -> list[str]:
    """What a result says of the LoRAs in it: what of them does not act at its depths, and what they were made for."""
    said = []
    for one, text in ((each.lora, each.text) for each in loras):
        if unknown := sorted({*one.unknown} - one.deeper.keys()):
            some = ", ".join(shown(each) for each in unknown[:3]) + (", ..." if unknown[3:] else "")
            said.append(f"{len(unknown)} tensors of the LoRA {one.name} are unknown here and not used: {some}")
        for layers in sorted(resolved.depths, reverse=True) if text else ():
            beyond, tensors = lora.beyond(one, layers)
            if beyond:
                which = f"{beyond} of {tensors} text-encoder tensors of {one.name}"
                said.append(f"{which} lie beyond clip skip {kept.index(layers) + 1}")
        trained = identify.clip_skip_of(one.metadata.get("ss_clip_skip", ""))
        if trained and trained <= len(kept) and kept[trained - 1] not in resolved.depths:
            used = "/".join(str(kept.index(layers) + 1) for layers in sorted(resolved.depths, reverse=True))
            said.append(f"the LoRA {one.name} was trained at clip skip {trained}; this picture has {used}")
    return said
