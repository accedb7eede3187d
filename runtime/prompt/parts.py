"""The one way into the grammar: the two prompts of a request checked, and parsed whole into texts made of chunks."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from math import lcm

from clipskip.engines.shapes import no_clip_skip

from ..errors import RequestError
from ..fields import parse as number
from ..fields import shown, whole_clip_skip
from ..request import LINE, Request
from ..tokenizer import Tokenizer
from .chunks import MARKS, Chunk, Spans, chunks, empty_chunk
from .editing import editing
from .weights import composition

Chunks = tuple[Chunk, ...]
Depths = tuple[tuple[int, int], ...]  # the clip skip up to and including an evaluation of the model, in order
Variants = tuple[tuple[int, ...], tuple[int, ...], tuple[Chunks, ...]]  # ends, which and variants of a Text
MAX_BYTES = 64 * 1024
LARGEST_REMEMBERED = 100_000  # characters times evaluations: a few megabytes of chunks at worst
MOST_PARTS = 100  # between AND
MOST_CONTEXTS = 1024  # chunks to encode for a request: 242 MB of contexts 768 wide
KNOWN = ("lora", "lyco")  # kinds of tags that act
TAGS = {"clip": "clip skip is a setting, clip_skip", "inversion": "a textual inversion is called by its bare name"}
TAGS |= {"locon": "a LoRA of any kind is called <lora:name:weight>"}

_UNUSABLE = re.compile(rf"[\x00\ud800-\udfff{''.join(MARKS)}]")
_NETWORK = re.compile(r"<(\w+):([^>]+)>")
_CLIP_SKIP = re.compile(r"<clip_?skip:([^>]*)>", re.IGNORECASE)
_CHOICE = re.compile(r"(?<![\d.\s])\s*\[([^\[\]]*)\]\s*(?![\d.\s])")  # one that no digits stand beside
_STEP = re.compile(r"\s*([0-9]+(\.[0-9]*)?|\.[0-9]+)\s*")
_COMMENT = re.compile(r"^#.*\n|#.*", re.MULTILINE)


@dataclass(frozen=True)
class Guidance:
    """How the answers to the texts are put together, and of which the `reference` is: "prompt", "negative" or ""."""

    cfg: float
    reference: str


@dataclass(frozen=True)
class Text:
    """One text of a request: a part of the prompt, or the negative prompt."""

    weight: float  # in the guidance mix
    ends: tuple[int, ...]  # variants[which[i]] is what it says up to and including model evaluation ends[i]
    which: tuple[int, ...]
    variants: tuple[Chunks, ...]  # each once, all of `length` chunks
    layers: tuple[int, ...]  # for each variant, how many encode the chunks that have no number of their own
    reference: float = 0.0  # its weight in the reference

    @property
    def length(self) -> int:
        return len(self.variants[0])

    def encoded(self) -> list[list[tuple[int, Chunk]]]:
        """Each variant's chunks, with how many layers encode them."""
        return [
            [(layers if chunk.layers is None else chunk.layers, chunk) for chunk in variant]
            for layers, variant in zip(self.layers, self.variants, strict=True)
        ]


def check_text(text: object, field: str) -> str:
    """`text` if it is a string without NUL and lone surrogates, of at most 64 KiB in UTF-8. RequestError(field)."""
    if not isinstance(text, str):
        raise RequestError(f"{field} must be a string, not {type(text).__name__}", field=field)
    if len(text) > MAX_BYTES or len(text.encode("utf-8", "replace")) > MAX_BYTES:
        raise RequestError(f"{field} is longer than {MAX_BYTES // 1024} KiB", field=field, hint="shorten it")
    if found := _UNUSABLE.search(text):
        kind = "a character that no text has" if found[0] in MARKS else "a lone surrogate"
        what = "NUL" if found[0] == "\0" else f"{kind} (U+{ord(found[0]):04X})"
        raise RequestError(f"{field} has {what} at character {found.start()}", field=field, hint="remove it")
    return text


def networks(text: str) -> tuple[str, list[tuple[str, str]]]:
    """`text` without its `<kind:arguments>` tags, and the tags as (kind, arguments): `<lora:name:0.8>` and the like."""
    end = text.rfind(">") + 1  # a tag needs one after it: else each "<a:" would search to the end of the text
    return _NETWORK.sub("", text[:end]) + text[end:], _NETWORK.findall(text[:end])


def without_comments(text: str) -> str:
    """`text` without comments: from a `#` to the end of its line, and the whole line where it starts with one.

    As in AUTOMATIC1111 since 1.8, they go before anything else is read, also inside of brackets and tags, whatever
    the emphasis, and are not in the metadata either. A `#` that is meant is written `＃` or `&num;` (see `clean`).
    """
    return _COMMENT.sub("", text)


def notes(typed: Request, request: Request) -> list[str]:
    """What the result says of a prompt: of its unknown tags, and of comments, which `request` has no more."""
    said = []
    if (typed.prompt, typed.negative_prompt) != (request.prompt, request.negative_prompt):
        said.append("comments were left out of the prompts, from # to the end of the line (a # that is meant: ＃)")
    tags_left = dict.fromkeys(networks(_CLIP_SKIP.sub("", request.prompt))[1])
    if found := [tag for tag in tags_left if tag[0].lower() not in KNOWN]:
        tags = ", ".join(repr(f"<{kind}:{arguments}>"[:60])[1:-1] for kind, arguments in found[:5])
        tags += ", ..." if found[5:] else ""
        hints = {f"; {TAGS[kind.lower()]}" for kind, _ in found if kind.lower() in TAGS}
        said.append(f"tags that are unknown here were left out of the prompt: {tags}{''.join(sorted(hints))}")
    if LINE.match(request.prompt):
        said.append("the prompt is taken as words, though it begins as a /render line: clipskip.parse_render reads one")
    if networks(request.negative_prompt)[1]:
        said.append(
            "tags in the negative prompt are read as words, as in AUTOMATIC1111 (its depth: negative_clip_skip)"
        )
    return said


def depths(field: str, value: float | str, evaluations: int, layers: int) -> Depths:
    """The clip skip that a field's value is up to and including each of some evaluations; a string is A1111's editing.

    RequestError for what is none of a text encoder with `layers` layers; `numbers` sees also what is never reached.
    """
    edited = editing(value, evaluations) if isinstance(value, str) else [(evaluations, value)]
    skips = [(end, _skip(field, said, layers)) for end, said in edited]
    return tuple(one for one, after in pairwise([*skips, (0, 0)]) if one[1] != after[1])  # 0 is no clip skip


def numbers(field: str, value: float | str, layers: int) -> list[float]:
    """Every number that a field's value names. RequestError where one is no clip skip, or where the string is odd."""
    found, rest = list[float](), value
    while isinstance(rest, str) and (choice := _CHOICE.search(rest)):
        options = choice[1].split("|" if "|" in choice[1] else ":")
        if "|" not in choice[1] and (len(options) != 3 or not _STEP.fullmatch(options.pop())):
            break
        found += [_number(field, option, layers, f" in {shown(value)}") for option in options]
        rest = f"{rest[: choice.start()]}{options[0]}{rest[choice.end() :]}"
    if isinstance(rest, str) and "[" in rest:
        message = f"{field} must be a number, or such as [9:1:0.4], [9:1:8] or [2|9], not {shown(value)}"
        hint = "9 for the first 40 % of the steps, then 1; 9 up to step 8, then 1; 2 and 9 in turn"
        raise RequestError(message, field=field, hint=hint)
    return found or [_number(field, rest, layers)]


def last(skip: float | str | None, steps: int) -> float | str | None:
    """The clip skip at the last of the steps."""
    return number(editing(skip, steps)[-1][1].strip()) if isinstance(skip, str) else skip


def tagged(prompt: str, layers: int) -> dict[str, int]:
    """The clip skip that each `<clipskip:5>` of the prompt says, by its text. RequestError for what is none."""
    said = {}
    for value in _CLIP_SKIP.findall(prompt):
        try:
            said[value] = _skip("clip_skip", value, layers)
        except RequestError as error:
            raise RequestError(f"<clipskip:{value[:40]}> in the prompt: {error.message}", field="prompt") from error
    return said


def _number(field: str, said: float | str, layers: int, within: str = "") -> float:
    value = number(said.strip()) if isinstance(said, str) else said
    if isinstance(value, str) or (within and not 1 <= value < layers + 2):
        raise no_clip_skip(field, shown(value) + within, layers)
    return value


def _skip(field: str, said: float | str, layers: int) -> int:
    return whole_clip_skip(field, _number(field, said, layers), layers)


def parse(
    request: Request,
    guidance: Guidance,
    skips: tuple[Depths, Depths],
    kept: Sequence[int],
    evaluations: int,
    words: tuple[Tokenizer, Spans],
) -> tuple[Text, ...]:
    """The texts that weigh something: parts of the prompt, the negative prompt; `skips` are the one's and the other's.

    `kept`: how many layers of the text encoder clip skip 1, 2, ... leaves. `<word:...>` tags are no text of the prompt;
    in the negative they are. RequestError for a weight within a text beyond 10, too many parts or variants.
    """
    said = tagged(request.prompt, len(kept) - 1)
    marked = _CLIP_SKIP.sub(lambda tag: f"{MARKS[0]}{kept[said[tag[1]] - 1]}{MARKS[1]}", request.prompt)
    *parts, negative = mix(replace(request, prompt=marked), guidance)
    if len(parts) > MOST_PARTS:
        message = f"the prompt has {len(parts)} parts; {MOST_PARTS} is the limit"
        raise RequestError(message, field="prompt", hint="use fewer AND")
    weighted = [one for one in (*((part, skips[0]) for part in parts), (negative, skips[1])) if any(one[0][1:])]
    how = evaluations, request.emphasis, request.comma_backtrack, *words
    longest = max(len(text) for (text, *_), _ in weighted)
    variants = _variants if longest * evaluations <= LARGEST_REMEMBERED else _variants.__wrapped__
    return tuple(_at_depths(weights, variants(text, *how), own, kept) for (text, *weights), own in weighted)


def _at_depths(weights: Sequence[float], text: Variants, skips: Depths, kept: Sequence[int]) -> Text:
    """The text whose variants differ in what they say, in the depth that they are encoded at, or in both."""
    (ends, which, variants), changes = text, [end for end, _ in skips]
    both = sorted({*ends, *changes})
    pairs = [(which[bisect_left(ends, end)], kept[skips[bisect_left(changes, end)][1] - 1]) for end in both]
    places = {pair: place for place, pair in enumerate(dict.fromkeys(pairs))}
    said, layers = tuple(variants[place] for place, _ in places), tuple(depth for _, depth in places)
    return Text(weights[0], tuple(both), tuple(places[pair] for pair in pairs), said, layers, weights[1])


def mix(request: Request, guidance: Guidance) -> list[tuple[str, float, float]]:
    """The parts of the prompt, then the negative prompt, with their weights in the guidance and in the reference.

    guided = u + sum of weight * cfg * (c - u), so u weighs 1 - cfg * (sum of the weights). The reference of the prompt
    is the mean of the c by those weights that are above 0.
    """
    parts, cfg = composition(networks(request.prompt)[0], request.compat), guidance.cfg
    rest = 1 - cfg * sum(weight for _, weight in parts)
    above = sum(max(weight, 0) for _, weight in parts) if guidance.reference == "prompt" else 0
    weighted = [(text, cfg * weight, max(weight, 0) / above if above else 0.0) for text, weight in parts]
    rest = rest if abs(rest) > 1e-9 else 0.0
    return [*weighted, (request.negative_prompt, rest, float(guidance.reference == "negative"))]


def unused(request: Request, guidance: Guidance) -> list[str]:
    """A note for each prompt that was given and weighs nothing."""
    *parts, negative = mix(request, guidance)
    idle = ["prompt"] if request.prompt and not any(weight for _, weight, _ in parts) else []
    idle += ["negative prompt"] if request.negative_prompt and not any(negative[1:]) else []
    return [f"the {name} is not used at cfg {request.cfg:g}: it weighs 0 in the guidance" for name in idle]


def joined(texts: tuple[Text, ...], most: int, tokenizer: Tokenizer) -> tuple[tuple[Text, ...], list[str]]:
    """The texts as one call can take them, and notes: as they are, to be repeated up to their least common multiple.

    Where that is above `most` chunks or twice the longest text, they are padded instead.
    """
    lengths, said = sorted({text.length for text in texts}), []
    bound = min(2 * lengths[-1], most)
    if lcm(*lengths) > bound:
        note = f"texts of {' and '.join(map(str, lengths))} chunks have no common multiple up to {bound}: "
        said.append(note + "the shorter ones are filled up with empty chunks, as pad_cond_uncond does")
        texts = padded(texts, tokenizer)
    _check_contexts(sum(len(text.variants) for text in texts), sum(len(text.variants) * text.length for text in texts))
    return texts, said


def padded(texts: tuple[Text, ...], tokenizer: Tokenizer) -> tuple[Text, ...]:
    """The texts, all made as long as the longest with chunks of an empty prompt."""
    longest = max(text.length for text in texts)
    return tuple(replace(text, variants=_padded(text.variants, longest, tokenizer)) for text in texts)


@lru_cache(maxsize=32)
def _variants(
    text: str, evaluations: int, emphasis: str, comma_backtrack: int, tokenizer: Tokenizer, spans: Spans
) -> Variants:
    """The ends, the variant of each, and the variants of one text. Sheets and repeats ask for the same ones again."""
    ends, texts = zip(*editing(text, evaluations), strict=True)
    cut: dict[str, Chunks] = dict.fromkeys(texts, ())
    longest = 1
    for variant in cut:
        if len(cut) > 1:
            _check_contexts(len(cut), len(cut) * longest)
        pieces = chunks(variant, tokenizer, emphasis=emphasis, comma_backtrack=comma_backtrack, spans=spans)
        cut[variant] = tuple(pieces)
        longest = max(longest, len(cut[variant]))
    places: dict[Chunks, int] = {}
    padded = zip(cut, _padded(cut.values(), longest, tokenizer), strict=True)
    of_text = {variant: places.setdefault(cut_up, len(places)) for variant, cut_up in padded}
    return ends, tuple(of_text[variant] for variant in texts), tuple(places)


def _check_contexts(texts: int, contexts: int) -> None:
    if contexts > MOST_CONTEXTS:
        message = f"the prompts stand for {texts} texts, of {contexts} chunks in all; {MOST_CONTEXTS} is the limit"
        hint = "alternate less, or between 2, 4 or 8 options everywhere"
        raise RequestError(message, field="prompt", hint=hint)


def _padded(variants: Iterable[Chunks], length: int, tokenizer: Tokenizer) -> tuple[Chunks, ...]:
    empty = empty_chunk(tokenizer)
    return tuple((*variant, *[empty] * (length - len(variant))) for variant in variants)
