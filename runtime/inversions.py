"""Textual inversions: learned vectors that a prompt calls by the name of their file. Knows nothing of chunks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from . import files
from .errors import CheckpointError, UnsupportedModelError
from .tokenizer import Tokenizer, clean

Location = str | os.PathLike[str]
Floats = npt.NDArray[np.float32]

SUFFIX = ".safetensors"
PICKLES = {".pt", ".pth", ".bin", ".ckpt"}
MOST_VECTORS = 75  # they stay together in one chunk of the prompt
LAYOUTS = ("emb_params", "clip_l")  # A1111 and kohya, ComfyUI; any name will do when the file holds one tensor
WIDTHS = {768: "SD 1.x", 1024: "SD 2.x", 1280: "SDXL"}


@dataclass(frozen=True)
class Inversions:
    """The vectors of all textual inversions, for the text engines' input `concepts`."""

    vectors: Floats  # float32 [E,D]; a row of zeros when there are none
    spans: Mapping[str, range] = field(default_factory=dict)  # lower-cased name -> rows
    notes: tuple[str, ...] = ()  # which files were left out and why


def check_names(inversions: Inversions, tokenizer: Tokenizer) -> None:
    """Refuse names that no prompt can call, and ordinary words, which prompts would call without meaning to."""
    for name in inversions.spans:
        if len(ids := tokenizer.ids(clean(name))) < 2:
            what = "is a word of the vocabulary: prompts could not use the word any more" if ids else "has no letters"
            message = f"the name of the embedding {name!r} {what}"
            raise CheckpointError(message, field="embeddings", hint="rename the file")


def load(locations: Location | Sequence[Location], width: int) -> Inversions:
    """The textual inversions in .safetensors files and in folders of them, for a text encoder of this width.

    Subfolders are searched, pickles in folders (.pt, .bin) are left out with a note. Layouts: A1111 and kohya
    (`emb_params`), ComfyUI (`clip_l`), diffusers (one tensor, whatever its name); one vector or up to 75.
    CheckpointError for a file or a name that cannot be used, UnsafeFileError, UnsupportedModelError.
    """
    given = [Path(path) for path in ([locations] if isinstance(locations, (str, os.PathLike)) else locations)]
    distinct: dict[str, Path] = {}  # by absolute path, each once
    for location in given:
        inside = sorted(location.rglob("*")) if os.path.isdir(location) else []
        named = [path for path in inside if path.suffix.lower() in {SUFFIX, *PICKLES} and path.name[0] != "."]
        for path in named if os.path.isdir(location) else [location]:
            distinct.setdefault(os.path.abspath(path), path)
    paths: dict[str, Path] = {}
    blocks, notes = [], []
    for path in distinct.values():
        name = path.stem.lower()
        if path.suffix.lower() in PICKLES and path not in given:
            notes.append(f"{path} is not used: it is a pickle, which can run code when it is read")
            continue
        if name in paths:
            message = f"{paths[name]} and {path} are both called {name!r} in prompts"
            raise CheckpointError(message, path=path, hint="rename or remove one of them")
        paths[name] = path
        try:
            blocks.append(read(path, width))
        except CheckpointError as error:
            if error.path is None:
                raise error.about(path) from error
            raise
    ends = np.cumsum([0, *map(len, blocks)]).tolist()
    vectors = np.concatenate(blocks) if blocks else np.zeros((1, width), np.float32)
    spans = {name: range(*ends[i : i + 2]) for i, name in enumerate(paths)}
    return Inversions(vectors, spans, tuple(notes))


def read(path: Location, width: int) -> Floats:
    """The rows [n,D] of a file's one tensor, or of the one whose name is known."""
    header = files.header_of(data := files.read(path, files.LARGEST + 1))
    tensors = header.tensors
    if "clip_g" in tensors:
        raise UnsupportedModelError("this textual inversion is for SDXL (clip_g); SD 1.x is supported")
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
        made = f", as for {WIDTHS[size]}" if size in WIDTHS else ""
        raise UnsupportedModelError(f"its vectors are {size} wide{made}; this model's are {width}")
    if count > MOST_VECTORS:
        raise CheckpointError(f"it has {count} vectors; a prompt's chunk has room for {MOST_VECTORS}")
    vectors = files.floats(data, header, names[0]).reshape(count, width)
    if broken := int(np.count_nonzero(~np.isfinite(vectors))):
        raise CheckpointError(f"{broken} of its numbers are NaN or infinite: the file is broken")
    return vectors
