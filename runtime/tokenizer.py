"""CLIP's byte-pair tokenizer: text goes in, vocabulary ids come out. Knows nothing of prompt syntax or chunks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers
from tokenizers.models import BPE

from .errors import CheckpointError

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
FILES = ("vocab.json", "merges.txt")
# Contractions, runs of letters, single digits, runs of anything else; whitespace only separates.
WORD = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """Equal to transformers' CLIPTokenizer (5.x) on every text; compared by identity, safe to share between threads."""

    bos: int
    eos: int
    pad: int  # what fills a chunk after its first eos; SD 1.x uses eos itself
    comma: int | None  # id of the word ",", where a full chunk may be cut
    vocabulary: int  # ids from here on are rows of textual inversions
    _model: tokenizers.Tokenizer = field(repr=False)

    @classmethod
    def open(cls, folder: str | Path) -> Tokenizer:
        """Read vocab.json and merges.txt in `folder`. Raises CheckpointError when they are missing or do not fit."""
        folder, again = Path(folder), "export the model again"
        vocab, merges = (folder / name for name in FILES)
        for path in (vocab, merges):
            if not path.is_file():
                raise CheckpointError(f"{path.name} is missing in {folder}", path=path, hint=again)
        try:
            pairs = BPE.from_file(str(vocab), str(merges), unk_token=EOS, end_of_word_suffix="</w>", fuse_unk=False)
        except Exception as error:  # the library raises bare Exception
            what = "cannot be read: vocab.json and merges.txt are damaged or not from one model"
            raise CheckpointError(f"the tokenizer in {folder} {what}", path=folder, hint=again) from error
        model = tokenizers.Tokenizer(pairs)
        bos, eos = (model.token_to_id(name) for name in (BOS, EOS))
        if bos is None or eos is None:
            message = f"the tokenizer in {folder} has no {BOS if bos is None else EOS}"
            raise CheckpointError(message, path=vocab, hint="is it CLIP's?")
        spaces = normalizers.Replace(Regex(r"\s+"), " ")
        model.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
        words = pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)
        model.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        model.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in (BOS, EOS)])
        return cls(bos, eos, eos, model.token_to_id(",</w>"), model.get_vocab_size(), model)

    def ids(self, text: str) -> list[int]:
        """The ids of `text`, of any length, without bos and eos unless the text spells them out."""
        return self._model.encode(text, add_special_tokens=False).ids
