"""CLIP's byte-pair tokenizer: text goes in, vocabulary ids come out. Knows nothing of prompt syntax or chunks."""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from heapq import heappop, heappush
from html.entities import html5
from pathlib import Path

from .errors import CheckpointError

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
FILES = ("vocab.json", "merges.txt")
REMEMBERED, LONGEST_REMEMBERED = 2**14, 64  # words, and the letters of one
NESTED_ENTITIES = 8  # "&#38;lt;" is "&lt;", which is "<"

_SPECIAL = re.compile(r"(<\|startoftext\|>|<\|endoftext\|>)")
_SPACES = re.compile("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")  # Unicode's White_Space
# Contractions, runs of letters, single digits, runs of anything else; in a text whose other letters are "z".
_WORD = re.compile(r"<\|(?:start|end)oftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^ a-z0-9]+")
_SHOWN = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves in the vocabulary
_BYTES = dict(zip(sorted({*range(256)}.difference(_SHOWN)), map(chr, range(256, 512)), strict=False))

# What the tokenizers package knows (0.23, Unicode 16 and later) and Python 3.11's unicodedata (14) does not.
_NEWER = {
    "z": "1c89-1c8a a7cb-a7cd a7da-a7dc 105c0-105f3 10d4a-10d65 10d6f-10d85 10ec2-10ec4 1123f-11240 11380-11389 1138b "
    "1138e 11390-113b5 113b7 113d1 113d3 11bc0-11be0 11f02 11f04-11f10 11f12-11f33 1342f 13441-13446 13460-143fa "
    "16100-1611d 16d40-16d6c 18cff 1b132 1b155 1df25-1df2a 1e030-1e06d 1e4d0-1e4eb 1e5d0-1e5ed 1e5f0 2b739 2ebf0-2ee5d "
    "31350-323af",
    "0": "10d40-10d49 116d0-116e3 11bf0-11bf9 11f50-11f59 16130-16139 16d70-16d79 1ccf0-1ccf9 1d2c0-1d2d3 1e4f0-1e4f9 "
    "1e5f1-1e5fa",
}
_SMALL = {0xA7CB: 0x264, 0xA7DC: 0x19B, **{code: code + 1 for code in (0x1C89, *range(0xA7CC, 0xA7DB, 2))}}
_SMALL |= {
    **{code: code + 32 for code in range(0x10D50, 0x10D66)},
    **{code: code + 27 for code in range(0x16EA0, 0x16EB9)},
}

_ENTITY = re.compile(r"&(?:amp;|AMP;)*(#?[0-9A-Za-z]{1,24});")
_LIGATURES = [*range(0x132, 0x134), 0x149, *range(0x1C4, 0x1CD), *range(0x1F1, 0x1F4), *range(0xFB00, 0xFB07)]
_PLAIN = {code: bytes([code]).decode("cp1252", "ignore") or chr(code) for code in range(0x80, 0xA0)}
_PLAIN |= {code: unicodedata.normalize("NFKC", chr(code)) for code in [*_LIGATURES, *range(0xFF01, 0xFFF0), 0x3000]}
_PLAIN[0xFB05] = "ſt"
_PLAIN |= {**dict.fromkeys([0x2BC, *range(0x2018, 0x201C)], "'"), **dict.fromkeys(range(0x201C, 0x2020), '"')}
_CONTROLS = [*range(9), 0xB, *range(0xE, 0x20), 0x7F, *range(0x206A, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFD)]
_PLAIN = {code: plain.translate(_PLAIN) for code, plain in _PLAIN.items()} | dict.fromkeys(_CONTROLS, "")


def clean(text: str) -> str:
    """Typography undone as AUTOMATIC1111 does it before it tokenises a fragment, through CLIPTokenizer and ftfy.

    Curly quotes become straight ones, full-width characters and ligatures plain ones, C1 controls the characters of
    Windows-1252; control characters go; HTML entities that end in a semicolon are spelled out, up to the first line
    with a "<". What else ftfy 6.3 does is left out: text that was decoded wrongly (mojibake) stays as it is.
    """
    if text.isascii() and text.isprintable() and "&" not in text:
        return text
    less = text.find("<")
    end = len(text) if less < 0 else text.rfind("\n", 0, less) + 1
    head, rest = text[:end], text[end:].translate(_PLAIN)
    for _ in range(NESTED_ENTITIES):
        before, head = head, unicodedata.normalize("NFC", _ENTITY.sub(_character, head).translate(_PLAIN))
        if head == before:
            break
    return head + unicodedata.normalize("NFC", rest)


def _character(entity: re.Match[str]) -> str:
    """What an entity stands for, also in capitals (`&EACUTE;`); itself if that is nothing."""
    name, plain = entity[1] + ";", html.unescape(f"&{entity[1]};")
    if name.startswith("#"):
        return f"&{name}" if ";" in plain else plain
    if name.isupper() and plain == f"&{name}":
        return html5.get(name.lower(), plain).upper()
    return html5.get(name, f"&{name}")


class _Shape(dict[int, str]):
    """For str.translate: letters beyond ASCII become "z", digits "0", all else "!", so that `_WORD` can read them."""

    def __missing__(self, code: int) -> str:
        kind = {"L": "z", "N": "0"}.get(unicodedata.category(chr(code))[0], "!")
        if len(self) < 2 * REMEMBERED:
            self[code] = kind
        return kind


_SHAPE = _Shape({code: chr(code) for code in range(128)})
for _kind, _ranges in _NEWER.items():
    for _low, _, _high in (part.partition("-") for part in _ranges.split()):
        _SHAPE |= dict.fromkeys(range(int(_low, 16), int(_high or _low, 16) + 1), _kind)


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """Equal to transformers' CLIPTokenizer (5.x) on every text; compared by identity, safe to share between threads.

    What is a letter Python's `unicodedata` says, and of characters newer than Python 3.11's the table above (3.10 takes
    the few of Unicode 14 for punctuation). Tokens added to CLIP's are those of vocab.json that no merge makes; a text
    may write them in any case.
    """

    bos: int
    eos: int
    comma: int | None  # id of the word ",", where a full chunk may be cut
    vocabulary: int  # ids from here on are rows of textual inversions
    _whole: Mapping[str, int] = field(repr=False)  # ids of BOS, EOS and the added tokens, as normalised text has them
    _added: re.Pattern[str] = field(repr=False)
    _word: Callable[[str], tuple[int, ...]] = field(repr=False)
    _remembered: Callable[[str], tuple[int, ...]] = field(repr=False)

    @classmethod
    def open(cls, folder: str | Path) -> Tokenizer:
        """Read vocab.json and merges.txt in `folder`. Raises CheckpointError when they are missing or do not fit."""
        folder, again = Path(folder), "export the model again"
        vocab, merges = (folder / name for name in FILES)
        for path in (vocab, merges):
            if not path.is_file():
                raise CheckpointError(f"{path.name} is missing in {folder}", path=path, hint=again)
        try:
            ids, pairs = _read(vocab, merges)
        except (ValueError, RecursionError) as error:
            what = "cannot be read: vocab.json and merges.txt are damaged or not from one model"
            raise CheckpointError(f"the tokenizer in {folder} {what}", path=folder, hint=again) from error
        for name in (BOS, EOS):
            if name not in ids:
                raise CheckpointError(f"the tokenizer in {folder} has no {name}", path=vocab, hint="is it CLIP's?")
        made = {*map("".join, pairs), *map(chr, _SHOWN), *_BYTES.values()}
        made |= {f"{symbol}</w>" for symbol in made if len(symbol) == 1}
        added = {_normal(token): ids[token] for token in ids.keys() - made if not token.startswith("<|unused-")}
        whole = {**added, BOS: ids[BOS], EOS: ids[EOS]}
        longest_first = sorted(map(re.escape, added.keys() - {BOS, EOS}), key=len, reverse=True)
        pattern = re.compile(f"({'|'.join(longest_first) or '(?!)'})")
        word = partial(_byte_pairs, ids, {pair: rank for rank, pair in enumerate(pairs)})
        remembered = lru_cache(REMEMBERED)(word)
        return cls(ids[BOS], ids[EOS], ids.get(",</w>"), len(ids), whole, pattern, word, remembered)

    def ids(self, text: str) -> list[int]:
        """The ids of `text`, of any length, without bos and eos unless the text spells them out."""
        found: list[int] = []
        for segment in _SPECIAL.split(text):
            for part in [segment] if segment in (BOS, EOS) else self._added.split(_normal(segment)):
                if part in self._whole and (part == segment or part not in (BOS, EOS)):
                    found.append(self._whole[part])
                    continue
                for match in _WORD.finditer(part.translate(_SHAPE)):
                    word = part[match.start() : match.end()]
                    for piece in ("<|", word[2:-2], "|>") if word in (BOS, EOS) else (word,):
                        found += (self._remembered if len(piece) <= LONGEST_REMEMBERED else self._word)(piece)
        return found


def _normal(text: str) -> str:
    """Composed, with single spaces, in small letters: each by itself, so that no sigma is a final one."""
    small = _SPACES.sub(" ", unicodedata.normalize("NFC", text)).replace("Σ", "σ").lower()
    return small if small.isascii() else small.translate(_SMALL)


def _read(vocab: Path, merges: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The ids by token, and the pairs to merge, first those that come first. ValueError where they do not fit."""
    ids = json.loads(vocab.read_bytes())
    if not isinstance(ids, dict) or "" in ids or not all(type(value) is int and value >= 0 for value in ids.values()):
        raise ValueError("not ids by token")
    lines = merges.read_text("utf-8").removesuffix("\n").split("\n")
    pairs = [(first, second) for first, second in (line.split(" ") for line in lines if line[:8] != "#version")]
    if not all(first in ids and second in ids and first + second in ids for first, second in pairs):
        raise ValueError("pairs of other tokens")
    return ids, pairs


def _byte_pairs(ids: Mapping[str, int], ranks: Mapping[tuple[str, str], int], word: str) -> tuple[int, ...]:
    """The ids of one word: of all pairs of neighbours the first in rank is merged, as long as there is one.

    The pairs are in a heap, so that the time is n log n in the letters.
    """
    symbols = [*word.encode("utf-8", "surrogatepass").decode("latin-1").translate(_BYTES)]
    symbols[-1] += "</w>"
    count, heap = len(symbols), list[tuple[int, int]]()
    before, after = [*range(-1, count - 1)], [*range(1, count + 1)]  # places of the neighbours that are left

    def offer(left: int) -> None:
        if left >= 0 and after[left] < count:
            rank = ranks.get((symbols[left], symbols[after[left]]))
            if rank is not None:
                heappush(heap, (rank, left))

    for place in range(count):
        offer(place)
    while heap:
        rank, left = heappop(heap)
        right = after[left]
        if right < count and ranks.get((symbols[left], symbols[right])) == rank:  # else it was merged already
            symbols[left], symbols[right] = symbols[left] + symbols[right], ""
            after[left] = after[right]
            if after[left] < count:
                before[after[left]] = left
            offer(before[left])
            offer(left)
    return tuple(ids.get(symbol, ids[EOS]) for symbol in symbols if symbol)
