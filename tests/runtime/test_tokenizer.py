"""The tokenizer against transformers' CLIPTokenizer: recorded under CLIP's vocabulary, live under the sample's."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
import time
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from odd_strings import odd_strings

from clipskip.errors import CheckpointError
from clipskip.tokenizer import Tokenizer, clean

GOLDEN: list[tuple[str, list[int]]] = json.loads((Path(__file__).parent / "data" / "tokenizer.json").read_text())
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@pytest.fixture(scope="module")
def sample(sample_checkpoint: Path) -> Path:
    return sample_checkpoint / "tokenizer"


@pytest.fixture(scope="module")
def sample_tokenizer(sample: Path) -> Tokenizer:
    return Tokenizer.open(sample)


@pytest.fixture(scope="module")
def reference(sample: Path) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(str(sample), model_max_length=10**6)


def test_the_ids_are_those_of_clip(clip_tokenizer: Tokenizer) -> None:
    assert clip_tokenizer.ids("a photo of a cat") == [320, 1125, 539, 320, 2368]


def test_500_odd_strings_have_the_ids_that_transformers_gave_them_d32(clip_tokenizer: Tokenizer) -> None:
    assert len(GOLDEN) == 500
    wrong = [(text, ids, clip_tokenizer.ids(text)) for text, ids in GOLDEN if clip_tokenizer.ids(text) != ids]
    assert not wrong


def test_the_sample_vocabulary_gives_transformers_ids_too(sample_tokenizer: Tokenizer, reference: Any) -> None:
    expected = reference([text for text, _ in GOLDEN], add_special_tokens=False).input_ids
    assert [sample_tokenizer.ids(text) for text, _ in GOLDEN] == expected
    assert (sample_tokenizer.bos, sample_tokenizer.eos) == (reference.bos_token_id, reference.eos_token_id)
    assert sample_tokenizer.vocabulary == len(reference)


@given(TEXTS)
def test_any_text_has_transformers_ids(sample_tokenizer: Tokenizer, reference: Any, text: str) -> None:
    text = unicodedata.normalize("NFC", text)  # of marks newer than tokenizers' tables Python knows the order
    assert sample_tokenizer.ids(text) == reference(text, add_special_tokens=False).input_ids


def test_5000_odd_strings_have_transformers_ids_under_clips_vocabulary_a21(
    clip_vocabulary: Path, clip_tokenizer: Tokenizer
) -> None:
    from transformers import CLIPTokenizer

    texts = [clean(text) for text in odd_strings(5000, seed=7) if not re.search("[\ud800-\udfff]", text)]
    reference = CLIPTokenizer.from_pretrained(str(clip_vocabulary), model_max_length=10**6)
    expected = reference(texts, add_special_tokens=False).input_ids
    assert [row for row in zip(texts, expected, strict=True) if clip_tokenizer.ids(row[0]) != row[1]] == []


ADDED = ["<thing>", "<thing>s", "My Word", "猫", "Éa", "x1", "<|new|>"]
SPELLED = [
    *ADDED,
    "<THING>",
    "my  word",
    "a",
    "MY WORD",
    "cat",
    "猫猫",
    "e\u0301a",
    "<|endoftext|>",
    " ",
    ",",
    "<|NEW|>",
    ">",
]


def test_added_tokens_are_found_in_a_text_as_transformers_finds_them(clip_vocabulary: Path, tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    reference, draw = CLIPTokenizer.from_pretrained(str(clip_vocabulary), model_max_length=10**6), random.Random(1)
    reference.add_tokens(ADDED)
    vocabulary = json.loads((clip_vocabulary / "vocab.json").read_text())
    vocabulary |= {token: reference.convert_tokens_to_ids(token) for token in ADDED} | {"<|unused-49415|>": 49415}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    shutil.copy(clip_vocabulary / "merges.txt", tmp_path)
    tokenizer = Tokenizer.open(tmp_path)
    texts = ["".join(draw.choices(SPELLED, k=draw.randint(1, 6))) for _ in range(1000)] + ["<|unused-49415|>"]
    assert [tokenizer.ids(text) for text in texts] == reference(texts, add_special_tokens=False).input_ids


def test_the_special_ids_are_known_by_name(clip_tokenizer: Tokenizer) -> None:
    special = (clip_tokenizer.bos, clip_tokenizer.eos, clip_tokenizer.comma)
    assert special == (49406, 49407, 267)
    assert clip_tokenizer.vocabulary == 49408


def test_ids_have_any_length_and_no_special_tokens(clip_tokenizer: Tokenizer) -> None:
    assert clip_tokenizer.ids("") == []
    assert clip_tokenizer.ids("cat " * 5000) == [2368] * 5000


def test_special_tokens_that_a_text_spells_out_are_read_as_such(clip_tokenizer: Tokenizer) -> None:
    assert clip_tokenizer.ids("a<|endoftext|>b") == [320, 49407, 321]


def test_a_vocabulary_without_a_comma_has_no_comma_token(clip_vocabulary: Path, tmp_path: Path) -> None:
    words = json.loads((clip_vocabulary / "vocab.json").read_text())
    del words[",</w>"]
    (tmp_path / "vocab.json").write_text(json.dumps(words))
    merges = (line for line in (clip_vocabulary / "merges.txt").read_text().splitlines() if "," not in line)
    (tmp_path / "merges.txt").write_text("\n".join(merges))
    assert Tokenizer.open(tmp_path).comma is None


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_missing_file_is_named(sample: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(sample, tmp_path / "tokenizer")
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name) as caught:
        Tokenizer.open(folder)
    assert caught.value.path == str(folder / name)


def test_a_folder_in_place_of_a_file_counts_as_missing(sample: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sample, tmp_path / "tokenizer")
    (folder / "vocab.json").unlink()
    (folder / "vocab.json").mkdir()
    with pytest.raises(CheckpointError, match=r"vocab\.json is missing"):
        Tokenizer.open(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"a": "b"}', b'{"a": -1}', b"<html></html>"])
def test_a_damaged_vocabulary_is_a_checkpoint_error(sample: Path, tmp_path: Path, content: bytes) -> None:
    folder = shutil.copytree(sample, tmp_path / "tokenizer")
    (folder / "vocab.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="tokenizer") as caught:
        Tokenizer.open(folder)
    assert caught.value.hint


@pytest.mark.parametrize("content", ["three words here\n", "zz qq\n", "lonely\n"])
def test_merges_of_another_model_are_a_checkpoint_error(sample: Path, tmp_path: Path, content: str) -> None:
    folder = shutil.copytree(sample, tmp_path / "tokenizer")
    (folder / "merges.txt").write_text(content)
    with pytest.raises(CheckpointError, match="damaged or not from one model"):
        Tokenizer.open(folder)


def test_a_tokenizer_that_is_not_clips_is_refused(sample: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(sample, tmp_path / "tokenizer")
    vocabulary = (folder / "vocab.json").read_text()
    (folder / "vocab.json").write_text(vocabulary.replace("<|startoftext|>", "<s>"))
    with pytest.raises(CheckpointError, match=r"has no <\|startoftext\|>"):
        Tokenizer.open(folder)


def test_nothing_reaches_for_the_network(sample: Path) -> None:
    code = f"""
import socket, sys
def refuse(*args, **kwargs):
    raise AssertionError("a socket was opened")
socket.socket = socket.create_connection = socket.getaddrinfo = refuse
from clipskip.tokenizer import Tokenizer
assert Tokenizer.open({str(sample)!r}).ids("a circle")
assert not any(name in sys.modules for name in ("huggingface_hub", "tokenizers", "regex"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def test_threads_share_one_tokenizer(clip_tokenizer: Tokenizer) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(clip_tokenizer.ids, [text for text, _ in GOLDEN] * 4))
    assert found == [ids for _, ids in GOLDEN] * 4


def test_the_real_vocabulary_opens_in_a_fraction_of_a_second(clip_vocabulary: Path) -> None:
    start = time.process_time()
    Tokenizer.open(clip_vocabulary)
    assert time.process_time() - start < 1.0  # 0.07 s on a quiet core


def test_300_tokens_take_a_few_milliseconds_also_when_every_word_is_new(clip_vocabulary: Path) -> None:
    words = [word[:-4] for word in json.loads((clip_vocabulary / "vocab.json").read_text()) if word.endswith("</w>")]
    words = [word for word in words if word.isascii() and word.isalpha()]
    times = []
    for seed in range(5):
        tokenizer, text = Tokenizer.open(clip_vocabulary), " ".join(random.Random(seed).sample(words, 300))
        start = time.process_time()
        assert len(tokenizer.ids(text)) >= 300
        times.append(time.process_time() - start)
    assert min(times) < 0.015  # 1.5 to 3 ms on a quiet core


@pytest.mark.parametrize("text", ["ab", "qzx", "!?", "é", "日本", "😀"])
def test_a_word_of_any_length_takes_no_time_of_note_d25(clip_tokenizer: Tokenizer, text: str) -> None:
    start = time.process_time()
    ids = clip_tokenizer.ids(text * (100_000 // len(text)))
    assert time.process_time() - start < 2  # 0.1 to 0.4 s on a quiet core
    assert len(ids) > 5_000


def test_words_are_remembered_up_to_a_bound(clip_tokenizer: Tokenizer) -> None:
    text = " ".join(map(chr, range(0x4E00, 0x9000)))  # more words than are remembered
    assert clip_tokenizer.ids(text) == clip_tokenizer.ids(text)
    assert clip_tokenizer._remembered.cache_info().currsize <= 2**14  # type: ignore[attr-defined]
