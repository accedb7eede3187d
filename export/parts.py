"""What an export reads, as immutable values: three networks' configurations and weights, the tokenizer, the hashes.

Knows nothing of how these lie on the disk, and what the configurations mean.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipskip.engines import files
from clipskip.engines.errors import CheckpointError, ExportError
from clipskip.engines.tensorfile import Entry

State = tuple[int, int, int, int]


@dataclass(frozen=True)
class Part:
    """One network: its configuration, and the file that its weights are in."""

    name: str
    config: Mapping[str, Any]
    weights: Path
    tensors: Mapping[str, Entry]  # those of the file's header that belong to it
    modern: Callable[[str], str]  # the name that transformers or diffusers use for a tensor


@dataclass(frozen=True)
class Checkpoint:
    """All that an export reads. `sources` holds the SHA-256 of each file, `states` what tells when one is replaced."""

    root: Path
    text: Part
    unet: Part
    vae: Part
    index: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    tokenizer: Mapping[str, bytes]  # vocab.json and merges.txt
    sources: Mapping[str, str]
    states: Mapping[Path, State]

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Token -> id."""
        return dict(json.loads(self.tokenizer["vocab.json"]))

    def check_unchanged(self) -> None:
        """ExportError where a file is not the one that was hashed."""
        for path, state in self.states.items():
            if state_of(path) != state:
                raise ExportError(f"{path} changed while it was being read", path=path, hint="export again")


def state_of(path: Path) -> State:
    """What changes when a file is written or replaced."""
    state = path.stat()
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def hashes(paths: Iterable[Path], root: Path) -> dict[str, str]:
    """SHA-256 of each file by its name below `root`."""
    found = {}
    for path in paths:
        with path.open("rb", buffering=0) as file:
            found[path.relative_to(root).as_posix()] = files.sha256_of(file)
    return found


def unpack_tokenizer(tree: Mapping[str, Any], path: Path) -> tuple[dict[str, bytes], dict[str, int]]:
    """vocab.json and merges.txt out of transformers' tokenizer.json, and the words that were added. CheckpointError."""
    try:
        model = tree["model"]
        if model["type"] != "BPE":
            raise CheckpointError(f"{path} holds a {model['type']} tokenizer; CLIP's is BPE", path=path)
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        added = {word["content"]: word["id"] for word in tree.get("added_tokens", ())}
        vocabulary = json.dumps(dict(model["vocab"])).encode()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        message = f"{path} is no tokenizer that transformers wrote ({error!r})"
        raise CheckpointError(message, path=path) from error
    return {"vocab.json": vocabulary, "merges.txt": "\n".join(["#version: 0.2", *merges, ""]).encode()}, added


def check_tokenizer(tokenizer: dict[str, bytes], added: Mapping[str, Any], where: Path) -> dict[str, bytes]:
    """The tokenizer with the words that were added to it, which nothing merges.

    CheckpointError where vocabulary and merges do not make one tokenizer, as after a download that broke off.
    """
    own = parse_json(tokenizer["vocab.json"], where / "vocab.json")
    tokens = {**own, **added}
    if not all(type(number) is int for number in tokens.values()):
        raise CheckpointError(f"{where / 'vocab.json'}: an id is no whole number", path=where)
    lines = tokenizer["merges.txt"].decode("utf-8", errors="replace").replace("\r", "").split("\n")
    made = {line.replace(" ", "", 1) for line in lines if line and not line.startswith("#version")}
    words = {
        each for each in own.keys() - added.keys() if len(each.removesuffix("</w>")) > 1 and not each.startswith("<|")
    }
    if missing := {"<|startoftext|>", "<|endoftext|>"} - tokens.keys():
        raise CheckpointError(f"{where / 'vocab.json'} has no {' and no '.join(sorted(missing))}", path=where)
    if set(tokens.values()) != set(range(len(tokens))):
        raise CheckpointError(f"{where / 'vocab.json'}: the ids are not 0 to {len(tokens) - 1}", path=where)
    if absent := made - tokens.keys():
        raise CheckpointError(f"{where / 'merges.txt'} makes {min(absent)!r}, which vocab.json has not", path=where)
    if lost := words - made:
        raise CheckpointError(f"{where / 'merges.txt'} is incomplete: nothing in it makes {min(lost)!r}", path=where)
    return tokenizer | {"vocab.json": json.dumps(tokens).encode()} if tokens != own else tokenizer


def parse_json(text: bytes, path: Path) -> Mapping[str, Any]:
    """The JSON object in a configuration file."""
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error})", path=path) from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path} holds no JSON object", path=path)
    return tree
