"""Textual inversions: learned vectors that a prompt calls by the name of their file. Knows nothing of chunks."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from clipskip.engines.identify import VECTORS, suggested_clip_skip
from clipskip.engines.manifest import ModelFacts
from clipskip.engines.tensorfile import Header, floats

from . import files
from .errors import CheckpointError, ClipskipError, UnsafeFileError, UnsupportedModelError
from .tokenizer import Tokenizer, clean

if TYPE_CHECKING:
    from .prompt.parts import Text

Location = str | os.PathLike[str]
Floats = npt.NDArray[np.float32]

SUFFIX = ".safetensors"
PICKLES = {".pt", ".pth", ".bin", ".ckpt"}
MOST_VECTORS = 75  # they stay together in one chunk of the prompt
LAYOUTS = ("emb_params", "clip_l")  # A1111 and kohya, ComfyUI; any name will do when the file holds one tensor
CONVERT = (  # of A1111's files and diffusers', in one line for a shell
    "import torch; from safetensors.torch import save_file; "
    'held = torch.load({old}, map_location="cpu", weights_only=True); '
    '(vectors,) = held.get("string_to_param", held).values(); '
    'save_file({{"emb_params": vectors.detach().contiguous()}}, {new})'
)


@dataclass(frozen=True)
class Inversions:
    """The vectors of all textual inversions, for the text engines' input `concepts`."""

    vectors: Floats  # float32 [E,D]; a row of zeros when there are none
    spans: Mapping[str, range] = field(default_factory=dict)  # lower-cased name -> rows
    notes: tuple[str, ...] = ()  # which files were left out and why
    digests: Mapping[str, str] = field(default_factory=dict)  # name -> SHA-256 of the file
    in_folders: frozenset[str] = frozenset()  # the names of files that nobody named
    clip_skips: Mapping[str, int] = field(default_factory=dict)  # name -> what its file says that it is for

    def used(self, texts: Iterable[Text], vocabulary: int) -> dict[str, str]:
        """Name and SHA-256 of those that the texts' tokens call; the first vector of all has the id `vocabulary`."""
        variants = {id(variant): variant for text in texts for variant in text.variants}
        ids = {token for variant in variants.values() for chunk in variant for token in chunk.tokens}
        return {name: digest for name, digest in self.digests.items() if vocabulary + self.spans[name][0] in ids}

    def about_depths(self, texts: Iterable[Text], model: ModelFacts) -> list[str]:
        """A note for each that the texts call at another depth than its file says that it was trained at."""
        chunks = {place for text in texts for variant in text.encoded() for place in variant}
        notes = []
        for name, trained in self.clip_skips.items():
            first = model.vocabulary + self.spans[name][0]
            layers = {layers for layers, chunk in chunks if first in chunk.tokens} - set(model.kept[trained - 1 :][:1])
            if used := ", ".join(str(model.kept.index(each) + 1) for each in sorted(layers, reverse=True)):
                notes.append(f"the embedding {name!r} is used at clip skip {used}; its file says {trained}")
        return notes


def with_usable_names(inversions: Inversions, tokenizer: Tokenizer) -> Inversions:
    """Without those that no prompt can call, or that are ordinary words, which prompts would call without meaning to.

    Left out with a note if they lay in a folder; CheckpointError for a file that was named itself.
    """
    notes, spans = list(inversions.notes), dict(inversions.spans)
    for name in inversions.spans:
        if len(ids := tokenizer.ids(clean(name))) < 2:
            what = "is a word of the vocabulary: prompts could not use the word any more" if ids else "has no letters"
            message = f"the name of the embedding {name!r} {what}"
            if name not in inversions.in_folders:
                raise CheckpointError(message, field="embeddings", hint="rename the file")
            notes.append(f"{message}: it is not used")
            del spans[name]
    digests = {name: digest for name, digest in inversions.digests.items() if name in spans}
    clip_skips = {name: skip for name, skip in inversions.clip_skips.items() if name in spans}
    return replace(inversions, spans=spans, digests=digests, notes=tuple(notes), clip_skips=clip_skips)


def load(locations: Location | Sequence[Location], width: int) -> Inversions:
    """The textual inversions in .safetensors files and in folders of them, for a text encoder of this width.

    Subfolders are searched; what cannot be used there, pickles (.pt, .bin) and second files of one name included, is
    left out with a note. Layouts: A1111 and kohya (`emb_params`), ComfyUI (`clip_l`), diffusers (one tensor, whatever
    its name); one vector or up to 75. CheckpointError for a file that was named and cannot be used, UnsafeFileError,
    UnsupportedModelError.
    """
    given = [Path(path) for path in ([locations] if isinstance(locations, (str, os.PathLike)) else locations)]
    paths = {os.path.abspath(path): (path, False) for path in given if not os.path.isdir(path)}
    for folder in (path for path in given if os.path.isdir(path)):
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in {SUFFIX, *PICKLES} and path.name[0] != ".":
                paths.setdefault(os.path.abspath(path), (path, True))
    homes: dict[str, Path] = {}
    blocks, digests, notes, in_folders, clip_skips = [], {}, [], set(), dict[str, int]()
    for path, found in paths.values():
        name = path.stem.lower()
        try:
            if name in homes:
                message = f"{homes[name]} and {path} are both called {name!r} in prompts"
                raise CheckpointError(message, path=path, hint="rename or remove one of them")
            if _printable(path) != str(path):
                raise CheckpointError("its name is no UTF-8, and prompts are")
            if found and path.suffix.lower() in PICKLES:
                what = "it is a pickle, which can run code when it is read"
                raise UnsafeFileError(f"{what}: name it alone for the line that converts it")
            data = files.read(path, files.LARGEST + 1)
            header = files.header_of(data)
            blocks.append(vectors_of(data, header, width))
        except ClipskipError as error:
            if not found and isinstance(error, UnsafeFileError):
                line = CONVERT.format(old=json.dumps(str(path)), new=json.dumps(str(path.with_suffix(SUFFIX))))
                error.hint = f"where you trust it, convert it once: python -c {quote(line)}"
            if not found and error.path is None:
                raise error.about(path) from error
            if not found:
                raise
            notes.append(f"{_printable(path)} is not used: {error.message.removeprefix(f'{path}: ')}")
            continue
        homes[name], digests[name] = path, hashlib.sha256(data).hexdigest()
        if (trained := suggested_clip_skip(header.metadata, None)[0]) is not None:
            clip_skips[name] = trained
        in_folders |= {name} if found else set()
    ends = np.cumsum([0, *map(len, blocks)]).tolist()
    vectors = np.concatenate(blocks) if blocks else np.zeros((1, width), np.float32)
    spans = {name: range(*ends[i : i + 2]) for i, name in enumerate(homes)}
    return Inversions(vectors, spans, tuple(notes), digests, frozenset(in_folders), clip_skips)


def _printable(path: Path) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def vectors_of(data: bytes, header: Header, width: int) -> Floats:
    """The rows [n,D] of a file's one tensor, or of the one whose name is known."""
    tensors, own = header.tensors, f"this model's are {width}{VECTORS.get(width, '') and f', {VECTORS[width]}'}"
    if "clip_g" in tensors:
        raise UnsupportedModelError(f"it has vectors for SDXL's two text encoders (clip_l, clip_g); {own}")
    names = [name for name in LAYOUTS if name in tensors] or list(tensors)
    if len(names) != 1:
        what = "this looks like a LoRA" if any("lora" in name.lower() for name in names) else "no textual inversion"
        first = ", ".join(repr(name[:60]) for name in names[:3]) + (" ..." if len(names) > 3 else "")
        raise CheckpointError(f"{what}: it holds {len(names)} tensors ({first}), not one")
    shape = tensors[names[0]].shape
    *leading, size = shape or (0,)
    count = leading[0] if len(leading) == 1 else 1
    if len(leading) > 1 or not count or not size:
        raise CheckpointError(f"its vectors have the shape {list(shape)}; [D] or [n,D] is a textual inversion's")
    if size != width:
        made = f", as for {VECTORS[size]}" if size in VECTORS else ""
        raise UnsupportedModelError(f"its vectors are {size} wide{made}; {own}")
    if count > MOST_VECTORS:
        raise CheckpointError(f"it has {count} vectors; a prompt's chunk has room for {MOST_VECTORS}")
    vectors = floats(data, header, names[0]).reshape(count, width)
    if broken := int(np.count_nonzero(~np.isfinite(vectors))):
        raise CheckpointError(f"{broken} of its numbers are NaN or infinite: the file is broken")
    return vectors
