"""A checkpoint's tokenizer, as libraries of different years write it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipskip.errors import CheckpointError
from clipskip.export.checkpoint import open_checkpoint
from clipskip.export.family import facts


def pack(folder: Path, pairs: bool = True, **changes: Any) -> None:
    """Put tokenizer.json in the place of vocab.json and merges.txt, as transformers 5 does."""
    vocabulary = json.loads((folder / "vocab.json").read_text())
    merges = (folder / "merges.txt").read_text().splitlines()[1:]
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    special = [{"id": vocabulary[word], "content": word} for word in ("<|startoftext|>", "<|endoftext|>")]
    model = {"type": "BPE", "vocab": vocabulary, "merges": [merge.split(" ") for merge in merges] if pairs else merges}
    tree = {"version": "1.0", "added_tokens": special, "model": model | changes}
    (folder / "tokenizer.json").write_text(json.dumps(tree))


@pytest.mark.parametrize("pairs", [True, False])
def test_a_tokenizer_in_one_file_is_the_tokenizer_in_two(tiny: Path, checkpoint: Path, pairs: bool) -> None:
    pack(checkpoint / "tokenizer", pairs)
    found, same = open_checkpoint(checkpoint), open_checkpoint(tiny)
    assert found.vocabulary == same.vocabulary
    assert found.tokenizer["merges.txt"] == same.tokenizer["merges.txt"]
    assert "tokenizer/tokenizer.json" in found.sources
    assert "tokenizer/vocab.json" not in found.sources


def test_where_both_layouts_are_the_two_files_count(tiny: Path, checkpoint: Path) -> None:
    (checkpoint / "tokenizer" / "tokenizer.json").write_text("no JSON")
    assert open_checkpoint(checkpoint).tokenizer == open_checkpoint(tiny).tokenizer


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "WordPiece"}, "holds a WordPiece tokenizer; CLIP's is BPE"),
        ({"merges": None}, "no tokenizer that transformers wrote"),
        ({"merges": [[1, 2]]}, "no tokenizer that transformers wrote"),
        ({"vocab": 3}, "no tokenizer that transformers wrote"),
        ({"vocab": {"a": "b"}}, "an id is no whole number"),
    ],
)
def test_another_kind_of_tokenizer_is_refused(checkpoint: Path, changes: dict[str, Any], message: str) -> None:
    pack(checkpoint / "tokenizer", **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(checkpoint)
    assert "tokenizer" in str(caught.value.path)


def test_added_words_are_counted_as_part_of_the_vocabulary(checkpoint: Path, edit: Callable[..., None]) -> None:
    (checkpoint / "tokenizer" / "added_tokens.json").write_text(json.dumps({"<ring>": 56}))
    found = open_checkpoint(checkpoint)
    assert found.vocabulary["<ring>"] == 56
    assert len(found.vocabulary) == 57
    with pytest.raises(CheckpointError, match="the tokenizer has 57 tokens, more than the text encoder"):
        facts(found)
    edit(checkpoint / "text_encoder" / "config.json", vocab_size=57)
    assert facts(open_checkpoint(checkpoint)).vocabulary == 57
    (checkpoint / "tokenizer" / "added_tokens.json").unlink()
    with pytest.raises(CheckpointError, match="the tokenizer has 56 tokens, fewer than the text encoder's 57"):
        facts(open_checkpoint(checkpoint))


def test_an_added_word_whose_number_leaves_a_hole_is_refused(checkpoint: Path) -> None:
    (checkpoint / "tokenizer" / "added_tokens.json").write_text(json.dumps({"<ring>": 99}))
    with pytest.raises(CheckpointError, match="the ids are not 0 to 56"):
        open_checkpoint(checkpoint)
