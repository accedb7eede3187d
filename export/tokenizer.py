"""A checkpoint's tokenizer as the runtime reads it: vocab.json and merges.txt, also from a tokenizer.json."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from clipskip.engines.errors import CheckpointError

START, END = "<|startoftext|>", "<|endoftext|>"


@dataclass(frozen=True)
class Tokens:
    """Ids by token and merges such as "c a", and the files that they are from; no merge makes what is `added`."""

    vocabulary: Mapping[str, int]
    merges: tuple[str, ...]
    added: Mapping[str, int]
    vocabulary_path: Path
    merges_path: Path

    @classmethod
    def from_json(cls, tree: Mapping[str, Any], path: Path) -> Tokens:
        """What tokenizer.json holds. CheckpointError where it is of another kind than CLIP's, or damaged."""
        model: dict[str, Any] = tree["model"] if isinstance(tree.get("model"), dict) else {}
        if (kind := (model.get("type"), model.get("end_of_word_suffix"))) != ("BPE", "</w>"):
            message = f"{path}: the type {kind[0]!r} and end_of_word_suffix {kind[1]!r} are not CLIP's 'BPE' and '</w>'"
            hint = "put the vocab.json and merges.txt of the model's CLIPTokenizer beside it"
            raise CheckpointError(message, path=path, hint=hint)
        try:
            merges = tuple(pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
            added = {token["content"]: token["id"] for token in tree.get("added_tokens") or ()}
            return cls(dict(model["vocab"]), merges, added, path, path)
        except (KeyError, TypeError, ValueError) as error:
            message = f"{path} is damaged: its vocab, merges or added_tokens are not what transformers writes"
            raise CheckpointError(message, path=path, hint="download or save the tokenizer again") from error

    def files(self) -> dict[str, bytes]:
        """vocab.json and merges.txt. CheckpointError where they make no one tokenizer, as after a broken download."""
        tokens = {**self.vocabulary, **self.added}
        pairs = [pair.split(" ") for pair in self.merges]
        made = {"".join(pair) for pair in pairs}
        words = {token for token in self.vocabulary if len(token.removesuffix("</w>")) > 1 and token not in self.added}
        path, problem = self.merges_path, ""
        if missing := {START, END} - tokens.keys():
            path, problem = self.vocabulary_path, f" has no {' and no '.join(sorted(missing))}"
        elif not all(type(place) is int for place in tokens.values()) or {*tokens.values()} != {*range(len(tokens))}:
            path, problem = self.vocabulary_path, f": the ids are not 0 to {len(tokens) - 1}"
        elif absent := made - tokens.keys():
            problem = f" makes {min(absent)!r}, which {self.vocabulary_path.name} has not"
        elif strange := [pair for pair in pairs if len(pair) != 2 or not tokens.keys() >= {*pair}]:
            problem = f" joins {strange[0]}, which are not two tokens of {self.vocabulary_path.name}"
        elif lost := {word for word in words - made if not word.startswith("<|")}:
            problem = f" is incomplete: nothing in it makes {min(lost)!r}"
        if problem:
            raise CheckpointError(f"{path}{problem}", path=path)
        lines = ["#version: 0.2", *self.merges, ""]
        return {"vocab.json": json.dumps(tokens).encode(), "merges.txt": "\n".join(lines).encode()}


def filled(vocabulary: Mapping[str, int], rows: int) -> bytes:
    """vocab.json for a text encoder of `rows` embeddings: those without a token get one that no text makes."""
    unused = {f"<|unused-{place}|>": place for place in range(len(vocabulary), rows)}
    return json.dumps({**vocabulary, **unused}).encode()


def clip() -> dict[str, bytes]:
    """CLIP's own vocab.json and merges.txt: the bytes, the bytes that end a word, the merges, start and end."""
    packed = resources.files("clipskip.export").joinpath("clip_merges.txt.gz").read_bytes()
    merges = tuple(gzip.decompress(packed).decode().splitlines())
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves
    symbols = [*map(chr, shown), *(chr(256 + place) for place in range(256 - len(shown)))]
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *(pair.replace(" ", "") for pair in merges)]
    vocabulary = {word: place for place, word in enumerate([*words, START, END])}
    return Tokens(vocabulary, merges, {}, Path("vocab.json"), Path("merges.txt")).files()
