"""CLIP's own tokenizer, written out and opened once."""

from __future__ import annotations

from pathlib import Path

import pytest
from vocabulary import read_merges, write_tokenizer

from clipskip.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def clip_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the vocab.json and merges.txt of CLIP's real vocabulary."""
    return write_tokenizer(tmp_path_factory.mktemp("clip"), read_merges())


@pytest.fixture(scope="session")
def clip_tokenizer(clip_vocabulary: Path) -> Tokenizer:
    return Tokenizer.open(clip_vocabulary)
