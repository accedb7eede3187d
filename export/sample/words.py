"""Makes the sample's tokenizer, in CLIP's file format, from captions and common words. Knows nothing of networks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from captions import Writer
from grammar import JUNK, QUALITY
from scenes import random_scene
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

MERGES = 476
CAPTIONS = 20_000
POSITIONS = 77
START, END = "<|startoftext|>", "<|endoftext|>"
WORD = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
COMMON = (
    "the of and a to in is it you that he was for on are with as his they be at one have this from or had by not but "
    "what all were we when your can said there use each which she do how their if will up other about out many then "
    "them these so some her would make like him into time has look two more go see no way could people my than first "
    "been call who its now find long down day did get come made may part pink brown gray grey golden cyan gradient"
)


class Words:
    """Turns captions into rows of 77 token ids: start, words, end, and the end token again as padding."""

    def __init__(self, folder: Path) -> None:
        vocabulary = json.loads((folder / "vocab.json").read_text())
        lines = (folder / "merges.txt").read_text().splitlines()[1:]
        merges = [(left, right) for left, right in (line.split() for line in lines)]
        self.tokenizer = _tokenizer(models.BPE(vocabulary, merges, end_of_word_suffix="</w>", unk_token=END))
        self.start, self.end = vocabulary[START], vocabulary[END]

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Token ids, int64 of shape [texts, 77]; what does not fit is cut off."""
        rows = np.full((len(texts), POSITIONS), self.end)
        rows[:, 0] = self.start
        for row, encoding in zip(rows, self.tokenizer.encode_batch(list(texts)), strict=True):
            ids = encoding.ids[: POSITIONS - 2]
            row[1 : len(ids) + 1] = ids
        return rows


def write_tokenizer(folder: Path, seed: int) -> None:
    """Train the merges and write vocab.json, merges.txt and the two configuration files."""
    folder.mkdir(parents=True, exist_ok=True)
    merges = _train_merges(seed)
    symbols = _byte_symbols()
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *("".join(pair) for pair in merges), START, END]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": POSITIONS, **special}
    settings |= {"do_lower_case": True, "add_prefix_space": False, "errors": "replace"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=1) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")


def _train_merges(seed: int) -> list[list[str]]:
    rng = np.random.default_rng(seed)
    writer = Writer(rng)
    texts = [writer.caption(random_scene(rng)).text for _ in range(CAPTIONS)]
    texts += [" ".join([COMMON, *JUNK, *QUALITY])] * 40
    tokenizer = _tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trainer = trainers.BpeTrainer(vocab_size=2000, end_of_word_suffix="</w>", show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [list(pair) for pair in merges[:MERGES]]


def _tokenizer(model: models.BPE) -> Tokenizer:
    """CLIP's steps around a byte-pair model."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    split = pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _byte_symbols() -> list[str]:
    """One printable character per byte, in CLIP's order: the printable bytes first, then the rest moved up to 256."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
