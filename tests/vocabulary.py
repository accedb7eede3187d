"""CLIP's real vocabulary for tests, written out from its list of merges in the files that a model carries."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

CLIP_MERGES = Path(__file__).parents[1] / "export" / "clip_merges.txt.gz"
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves


def read_merges() -> list[str]:
    return gzip.decompress(CLIP_MERGES.read_bytes()).decode().splitlines()


def write_tokenizer(folder: Path, merges: Sequence[str]) -> Path:
    """Write vocab.json and merges.txt into `folder`: the bytes, the bytes that end a word, the merges, bos, eos."""
    hidden = [byte for byte in range(256) if byte not in PRINTABLE]
    symbols = [*map(chr, PRINTABLE), *(chr(256 + place) for place in range(len(hidden)))]
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *(merge.replace(" ", "") for merge in merges)]
    vocabulary = {word: place for place, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    return folder
