"""Whatever files a checkpoint's tokenizer is in, the runtime reads the ids that transformers gives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

import clipskip
from clipskip.errors import CheckpointError
from clipskip.export import export
from clipskip.export.checkpoint import open_checkpoint
from clipskip.tokenizer import Tokenizer

TEXTS = ["a large red circle on a green background", "two (white) rings, 1cross!", "don't stop <|endoftext|> résumé 12"]


def split_merges(tree: dict[str, Any]) -> None:
    tree["model"]["merges"] = [pair.split(" ") if isinstance(pair, str) else pair for pair in tree["model"]["merges"]]


def join_merges(tree: dict[str, Any]) -> None:
    tree["model"]["merges"] = [pair if isinstance(pair, str) else " ".join(pair) for pair in tree["model"]["merges"]]


def saved_today(root: Path, change: Callable[[dict[str, Any]], None] = lambda tree: None) -> Path:
    """Replace the tokenizer in the checkpoint `root` by the tokenizer.json that transformers makes of it."""
    folder = root / "tokenizer"
    saved = CLIPTokenizer.from_pretrained(folder)
    shutil.rmtree(folder)
    saved.save_pretrained(folder)
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink(missing_ok=True)
    tree = json.loads((folder / "tokenizer.json").read_text())
    change(tree)
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    return root


def tokenizer_of(root: Path, folder: Path) -> Tokenizer:
    """What the runtime opens, of the checkpoint's tokenizer."""
    folder.mkdir()
    for name, content in open_checkpoint(root).tokenizer.items():
        (folder / name).write_bytes(content)
    return Tokenizer.open(folder)


def add_two_rows(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Two more embeddings, as a model has whose vocabulary was enlarged."""
    name = "text_model.embeddings.token_embedding.weight"
    return weights | {name: torch.cat([weights[name], weights[name][-2:]])}


@pytest.fixture
def sample(checkpoint: Path, sample_checkpoint: Path) -> Path:
    """The tiny model with the sample model's tokenizer."""
    shutil.rmtree(checkpoint / "tokenizer")
    shutil.copytree(sample_checkpoint / "tokenizer", checkpoint / "tokenizer")
    return checkpoint


@pytest.mark.parametrize("layout", [split_merges, join_merges])
def test_a_tokenizer_json_gives_the_ids_of_transformers_a21(
    sample: Path, tmp_path: Path, layout: Callable[[dict[str, Any]], None]
) -> None:
    theirs = CLIPTokenizer.from_pretrained(sample / "tokenizer")
    ours = tokenizer_of(saved_today(sample, layout), tmp_path / "read")
    assert [ours.ids(text) for text in TEXTS] == [theirs(text, add_special_tokens=False).input_ids for text in TEXTS]
    assert ours.vocabulary == len(theirs)
    sources = open_checkpoint(sample).sources
    assert "tokenizer/tokenizer.json" in sources
    assert "tokenizer/vocab.json" not in sources


@pytest.mark.parametrize("json_alone", [False, True])
def test_an_added_token_counts_wherever_it_is_written(checkpoint: Path, tmp_path: Path, json_alone: bool) -> None:
    if json_alone:
        saved_today(checkpoint, lambda tree: tree["added_tokens"].append({"id": 56, "content": "<thing>"}))
    else:
        (checkpoint / "tokenizer" / "added_tokens.json").write_text('{"<thing>": 56}')
    assert open_checkpoint(checkpoint).vocabulary["<thing>"] == 56
    assert tokenizer_of(checkpoint, tmp_path / "read").vocabulary == 57


def test_a_model_with_an_added_token_and_an_embedding_without_one_makes_a_picture(
    checkpoint: Path, tmp_path: Path, edit: Callable[..., None], edit_weights: Callable[..., None]
) -> None:
    edit(checkpoint / "text_encoder" / "config.json", vocab_size=58)
    edit_weights(checkpoint / "text_encoder" / "model.safetensors", add_two_rows)
    saved_today(checkpoint, lambda tree: tree["added_tokens"].append({"id": 56, "content": "<thing>"}))
    export(checkpoint, tmp_path / "store", skips=[1])
    with clipskip.open(tmp_path / "store") as pipeline:
        image = pipeline(clipskip.Request(prompt="cat", steps=1, width=64, height=64)).images[0]
    assert np.asarray(image).shape == (64, 64, 3)


def test_a_token_beyond_the_text_encoder_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "tokenizer" / "added_tokens.json").write_text('{"<thing>": 56}')
    with pytest.raises(CheckpointError, match="57 tokens, more than the text encoder"):
        export(checkpoint, tmp_path / "store")


def test_a_tokenizer_of_a_smaller_model_is_refused_at_once(
    checkpoint: Path, tmp_path: Path, edit: Callable[..., None]
) -> None:
    edit(checkpoint / "text_encoder" / "config.json", vocab_size=113)
    with pytest.raises(CheckpointError, match="has 56 tokens, the text encoder 113: it is another model's"):
        export(checkpoint, tmp_path / "store")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tree: tree.update(model={"type": "Unigram", "vocab": []}), "type 'Unigram'"),
        (lambda tree: tree["model"].update(end_of_word_suffix=None), "end_of_word_suffix None"),
        (lambda tree: tree.update(model=[]), "not CLIP's 'BPE'"),
        (lambda tree: tree["model"].pop("merges"), "is damaged"),
        (lambda tree: tree["model"].update(merges=[1]), "is damaged"),
        (lambda tree: tree["model"].update(vocab=7), "is damaged"),
        (lambda tree: tree.update(added_tokens=[{}]), "is damaged"),
        (lambda tree: tree["model"]["vocab"].update(a=None), "the ids are not 0 to"),
        (lambda tree: tree["model"]["vocab"].update(a=[]), "the ids are not 0 to"),
        (lambda tree: tree["model"]["merges"].append(["ca", "t</w>", "c"]), "makes 'cat</w>c'"),
        (lambda tree: tree["model"]["merges"].append("ca"), "which are not two tokens"),
        (lambda tree: tree["model"]["merges"].pop(), "nothing in it makes 'cat</w>'"),
    ],
)
def test_a_tokenizer_json_that_is_broken_or_another_models_is_refused_with_what_to_do(
    checkpoint: Path, damage: Callable[[dict[str, Any]], None], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(saved_today(checkpoint, damage))
    assert "tokenizer.json" in str(caught.value)
    assert caught.value.exit_status == 3
