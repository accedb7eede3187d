"""What becomes of the settings in a picture's text: each is honoured, or noted, and what it lacks is filled in.

Knows the names of settings, A1111's and those that other programs write like it; knows nothing of files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from clipskip.engines import strict
from clipskip.engines.manifest import ModelFacts

from .errors import CheckpointError, ManifestError, RequestError
from .fields import WHOLE, parse, shown, written
from .infotext import DIGEST, Infotext, bare, key
from .loras import a1111_hash
from .prompt import composition, networks
from .prompt.parts import without_comments
from .request import EMPHASES, FIELDS, PICTURES, UPSCALERS, Request, canonical
from .resolve import OF_IMAGE, OF_MASK, refusals
from .samplers import split_schedule

if TYPE_CHECKING:
    from clipskip.engines.lora import Lora

    from .inversions import Inversions

SCHEMA = 1

_PLAIN = {
    key(name): field.name
    for field in FIELDS.values()
    if field.infotext
    for name in (field.infotext, field.name, *field.aliases)
} | {"width": "width", "height": "height", "cfg rescale φ": "cfg_rescale"}
DECODERS = {"vae": "Full", "tiny": "TAESD"}  # in A1111's words
_RNGS = {"nv": "nv", "gpu": "nv", "cuda": "nv"}  # all others: "cpu"
_HERE = {"sampler": "sampler", "schedule type": "schedule", "scheduler": "schedule", "rng": "rng"}
_HERE |= {"hypernet": "prompt", "hypernet strength": "prompt", "lora hashes": "loras"}
_COMPARED = {"model", "model hash", "ti hashes"}  # with what is open
_HARMLESS = {"version", "app", "backend", "pipeline", "operations", "batch size", "batch pos", "hashes", "time taken"}
_HARMLESS |= {"civitai metadata", "created date"}
_OFF = {"", "false", "none", "null"}
_OFF_AT = dict.fromkeys(("ngms", "token merging ratio", "token merging ratio hr", "skip early cfg"), 0.0)
_OFF_AT |= {"beta schedule alpha": 0.6, "beta schedule beta": 0.6, "unipc order": 3}
_WITH_IMAGE = ("strength", *OF_IMAGE, *OF_MASK)  # fields
_WHY = {key(FIELDS[name].infotext): " (it counts where image is given)" for name in _WITH_IMAGE}
_WHY |= {"hires upscaler": " (Lanczos takes its place)"}
_FILLED = {"sampler": FIELDS["sampler"].default, "cfg": written(FIELDS["cfg"].default), "seed": "a random one"}
_FILLED |= {"width": "the model's", "height": "the model's"}
_SIGNS = {
    "SwarmUI": '"sui_image_params"',
    "ComfyUI": '"class_type"|"last_node_id"',
    "InvokeAI": "(?m)^(invokeai_metadata|invokeai_graph|sd-metadata|dream|Dream): ",
    "Fooocus": '(?m)^fooocus_scheme: |"metadata_scheme" *: *"fooocus"',
    "NovelAI": "(?m)^(Software|Title): NovelAI",
    "Draw Things": 'Draw Things|[{,] *"uc" *:',
}
_WITHOUT = {"loras": "weights of LoRAs"}
FIRST_PASS = 512 * 512  # pixels, of A1111's choice before 2023


@dataclass(frozen=True)
class Ledger:
    """The request in a picture's text, and the account of how it was found."""

    request: Request
    program: str  # that wrote the text, as far as it says
    honoured: Mapping[str, str]  # settings that are in the request, by the names in the text
    ignored: Mapping[str, str] = field(default_factory=dict)  # those that change the picture and are not
    filled: Mapping[str, str] = field(default_factory=dict)  # field of Request -> what is used, for the text has none
    model: str = ""
    model_hash: str = ""  # of SHA-256, the first digits or all
    inversions: Mapping[str, str] | None = None  # name -> the same; None where the text does not say
    loras: Mapping[str, str] | None = None  # likewise, or A1111's hash of it
    other_prompts: bool = False  # a prompt is no longer the picture's
    pictures: Mapping[str, str] = field(default_factory=dict)  # field -> digest of what it was made from
    waiting: Mapping[str, str] = field(default_factory=dict)  # fields that count as soon as there is an image

    @property
    def batch(self) -> int:
        return self.request.batch

    def given(self, fields: Mapping[str, str]) -> Ledger:
        """The ledger after a user has typed some fields over it, as in `Request.from_text`."""
        return self._with(Request.from_text(fields, self.request), canonical(fields))

    def over(self, fields: Mapping[str, Any]) -> Ledger:
        """The ledger with other values for some fields of its request, as in `Request.over`."""
        return self._with(self.request.over(fields), canonical(fields))

    def _with(self, request: Request, names: Collection[str]) -> Ledger:
        """Fields that were replaced are filled in no more; inversions of a prompt that is gone do not count."""
        if request.image is not None and self.waiting:
            late = {name: value for name, value in self.waiting.items() if name not in names}
            said = {name: value for name, value in self.ignored.items() if _PLAIN.get(key(name)) in self.waiting}
            ignored = {name: value for name, value in self.ignored.items() if name not in said}
            heard = replace(self, ignored=ignored, honoured={**self.honoured, **said}, waiting={})
            return heard._with(Request.from_text(late, request), names)
        if "loras" in self.filled and "prompt" in names and "loras" not in names:  # they were the old prompt's
            return self._with(replace(request, loras=None), {*names, "loras"})
        filled = {name: value for name, value in self.filled.items() if name not in names}
        changed, inversions = bool({"prompt", "negative_prompt", "loras"} & set(names)), self.inversions
        if changed and inversions is not None:
            prompts = bare(f"{request.prompt}\n{request.negative_prompt}")
            inversions = {name: digest for name, digest in inversions.items() if bare(name) in prompts}
        other = self.other_prompts or changed
        return replace(self, request=request, filled=filled, inversions=inversions, other_prompts=other)

    def checked(self) -> tuple[dict[str, str], dict[str, RequestError]]:
        """The settings that are honoured and refused by no model, and what every model refuses, by field of Request."""
        refused = refusals(self.request)
        sides = set() if refused.keys().isdisjoint(("width", "height")) else {"size"}
        meant = {name: (_PLAIN | _HERE).get(key(name), name) for name in self.honoured if key(name) not in sides}
        return {name: self.honoured[name] for name, field in meant.items() if field not in refused}, refused

    def notes(
        self,
        model: ModelFacts | None = None,
        inversions: Inversions | None = None,
        used: Collection[str] = (),
        loras: Mapping[str, Lora] | None = None,
    ) -> list[str]:
        """What a user must know who repeats the picture with this model, these textual inversions and LoRAs.

        One note per setting that is not honoured (those of one kind share one), per value filled in, and per model,
        VAE, inversion and LoRA that is not the picture's; `used` are the inversions that the prompts use now.
        """
        digests = [model.model_sha256, *model.sources.values()] if model else []
        said = {key(name): value for name, value in self.ignored.items()}
        families: dict[str, list[str]] = {}
        for name, value in self.ignored.items():
            if not (key(name).startswith("vae") and _is_one_of(said.get("vae hash", ""), digests)):
                family = re.split(r"[ \d-]", key(name), maxsplit=1)[0]
                families.setdefault(family, []).append(f"{name}: {_short(value)}{_WHY.get(key(name), '')}")
        notes = [f"not honoured from the picture: {', '.join(family)}" for family in families.values()]
        for name, value in self.filled.items():
            what = _WITHOUT.get(name, FIELDS[name].infotext or name)
            notes.append(f"the picture's settings have no {what}: {value} is used")
        named = len(self.model_hash) <= 8  # A1111's old hashes, of a part of the file, say nothing here
        same = key(self.model) in ("", key(model.name)) if named and model else _is_one_of(self.model_hash, digests)
        if model and not same:
            made, here = f"{_short(self.model)} [{self.model_hash[:10]}]", f"{model.name} [{digests[0][:10]}]"
            notes.append(f"the picture was made with the model {made}; {here} is open")
        return notes + (self._about_inversions(inversions, used) if inversions else []) + self._about_loras(loras or {})

    def _about_loras(self, loras: Mapping[str, Lora]) -> list[str]:
        notes, there = [], {bare(name): one for name, one in loras.items()}
        for name, digest in (self.loras or {}).items():
            if (one := there.get(bare(name))) is not None:
                digests = [one.sha256, a1111_hash(one)]
                if len(digest) > 8 and not _is_one_of(digest, digests):
                    files = f"[{digests[1][:DIGEST]}] is open than the picture's [{digest[:DIGEST]}]"
                    notes.append(f"another LoRA {shown(name)} {files}")
            elif not self.other_prompts:
                notes.append(f"the picture was made with the LoRA {shown(name)}, which has no weight now")
        return notes

    def about_pictures(self, given: Mapping[str, str]) -> list[str]:
        """What a user must know who repeats the picture with these pictures: field -> digest."""
        others = [name for name, digest in self.pictures.items() if given.get(name) != digest]
        return [f"another picture is given as {name} than the one that this was made from" for name in others]

    def _about_inversions(self, inversions: Inversions, used: Collection[str]) -> list[str]:
        if self.inversions is None:
            return []
        notes, there = [], {bare(name): digest for name, digest in inversions.digests.items()}
        made_with = {bare(name): digest for name, digest in self.inversions.items()}
        for name, digest in made_with.items():
            if name not in there:
                notes.append(f"the picture's textual inversion {shown(name)} is not open: its name counts as words")
            elif len(digest) > 8 and not _is_one_of(digest, [there[name]]):
                files = f"[{there[name][:DIGEST]}] is open than the picture's [{digest[:DIGEST]}]"
                notes.append(f"another textual inversion {shown(name)} {files}")
        new = [] if self.other_prompts else sorted(set(map(bare, used)) - made_with.keys())
        return notes + [f"{shown(name)} is a textual inversion here, and was none in the picture" for name in new]


def _is_one_of(digest: str, known: Iterable[str]) -> bool:
    """Whether the first digits of a SHA-256, or all, are those of a known one."""
    return len(digest) > 8 and any(each.startswith(digest.lower()) for each in known)


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def of_text(info: Infotext) -> Ledger:
    """The ledger of A1111's text. RequestError for values of a wrong type.

    A missing `Clip skip` is 1, a missing `RNG` a GPU's in A1111 and its kin, the CPU's elsewhere. A DPM sampler without
    a schedule is from before A1111 1.9 and ran on the uniform one. Where A1111 read a weight at the end of a prompt
    without AND, `compat` says so.
    """
    said = {key(name): value for name, value in info.settings.items() if value}
    fields = {**_fields(said), **_size(said)}
    if unknown_upscaler := fields.get("hires_upscaler", UPSCALERS[0]).lower() not in map(str.lower, UPSCALERS):
        fields["hires_upscaler"] = "Lanczos"
    with suppress(RequestError):
        a1111 = info.program.startswith(("AUTOMATIC1111", "Forge"))
        prompt = networks(without_comments(info.prompt))[0].rstrip()
        if a1111 and composition(prompt) != composition(prompt, "a1111"):
            fields["compat"] = "a1111"
    hires = {"hires_scale", "hires_size"} & fields.keys()
    waiting = {name: fields.pop(name) for name in _WITH_IMAGE[bool(hires) :] if name in fields}
    filled = {name: value for name, value in _FILLED.items() if name not in fields}
    if "rng" not in said and not info.program.startswith(("AUTOMATIC1111", "Forge", "SD.Next")):
        filled["rng"] = fields["rng"] = "cpu"
    size = [fields.get("width"), fields.get("height")]
    honoured, ignored = {}, {}
    for name, value in info.settings.items():
        meant = _PLAIN.get(key(name))
        if meant in fields or key(name) in _HERE or (key(name) == "size" and _side_by_side(value) == size):
            honoured[name] = value
        elif meant not in filled and _changes(key(name), value):
            ignored[name] = value
    tag, loras = _untagged(info.prompt, said)
    if loras:
        fields["loras"], filled["loras"] = ",".join(loras), "1"
    if unknown_upscaler:
        ignored |= {name: honoured.pop(name) for name in list(honoured) if key(name) == "hires upscaler"}
    fields |= {"prompt": info.prompt + tag, "negative_prompt": info.negative_prompt}
    model = said.get("model", ""), said.get("model hash", "")
    digests = _hashes(said, "ti", "embed") or None, _hashes(said, "lora", "lora") or None
    request = Request.from_text(fields)
    return Ledger(request, info.program, honoured, ignored, filled, *model, *digests, waiting=waiting)


def _fields(said: Mapping[str, str]) -> dict[str, str]:
    """Every field of a request that the settings have, but for the size."""
    fields = {"rng": _RNGS.get(said.get("rng", "gpu").lower(), "cpu")}
    for name, value in said.items():
        if (meant := _PLAIN.get(name)) is not None:
            fields.setdefault(meant, value.removesuffix(".0") if FIELDS[meant].kind is WHOLE else value)
    if (mode := fields.pop("mask_invert", None)) is not None:
        fields["mask_invert"] = str("not" in mode.lower())
    if fields.get("seed") == "-1":
        del fields["seed"]
    if fields.get("emphasis", "none").lower() not in map(str.lower, EMPHASES):
        del fields["emphasis"]
    decoders = {key(theirs): ours for ours, theirs in DECODERS.items()}
    if (decoder := decoders.get(key(fields.pop("decoder", "")))) is not None:
        fields["decoder"] = decoder
    skip = parse(fields.setdefault("clip_skip", "1"))
    if isinstance(skip, int) and skip <= 0:  # diffusers' 0, and ComfyUI's numbering
        fields["clip_skip"] = str(-skip or 1)
    if (sampler := said.get("sampler")) is not None:
        schedule = said.get("schedule type", said.get("scheduler"))
        if schedule is None:  # as before 1.9
            sampler, suffix = split_schedule(sampler)
            schedule = suffix or ("uniform" if "dpm" in sampler.lower() else "automatic")
        fields |= {"sampler": sampler, "schedule": "_".join(schedule.lower().split())}
    return fields


def _size(said: Mapping[str, str]) -> dict[str, str]:
    """Width and height. Before 2023 a picture had the size to which it was enlarged, and "First pass size" its own."""
    if (size := said.get("size")) is None:
        return {}
    sides = _side_by_side(size)
    first = _side_by_side(said.get("first pass size", ""))
    whole = [int(side) if side.isascii() and side.isdecimal() and len(side) < 9 else 0 for side in (*sides, *first)]
    if len(whole) == 4 and all(whole):
        sides = first
    elif len(whole) == 4 and whole[0] * whole[1] > FIRST_PASS:
        sides = [str(math.ceil(side * math.sqrt(FIRST_PASS / (whole[0] * whole[1])) / 64) * 64) for side in whole[:2]]
    return dict(zip(("width", "height"), [*sides, ""], strict=False))


def _side_by_side(size: str) -> list[str]:
    return [side.strip() for side in size.lower().split("x", 1)]


def _untagged(prompt: str, said: Mapping[str, str]) -> tuple[str, list[str]]:
    """The networks that only the settings name: a hypernetwork's tag, and LoRAs, whose weights are not said."""
    name, tag = re.sub(r"\([0-9a-fA-F]*\)$", "", said.get("hypernet", "")).rstrip(), ""
    if name.lower() not in _OFF and "<hypernet:" not in prompt:
        tag = f" <hypernet:{name}:{said.get('hypernet strength', '1')}>"
    tagged = re.search("<(lora|lyco):", prompt, re.IGNORECASE)
    return tag, [f"{each}:1" for each in _hashes(said, "lora", "lora") if not tagged and "," not in each]


def _hashes(said: Mapping[str, str], kind: str, short: str) -> dict[str, str]:
    """Names and digests in a list such as "a: 0123456789ab, b: ba9876543210", and in the JSON that Civitai writes."""
    pairs = (item.rpartition(":") for item in said.get(f"{kind} hashes", "").split(","))
    listed = {name.strip(): digest.strip() for name, colon, digest in pairs if colon and name.strip()}
    return {**listed, **dict(re.findall(rf'"{short}:([^"]+)" *: *"([0-9a-fA-F]*)', said.get("hashes", "")))}


def _changes(name: str, value: str) -> bool:
    """Whether a setting that is not honoured changes the picture; an unknown one may."""
    if name == "civitai resources":
        return re.search('"type" *: *"(?!checkpoint)', value, re.IGNORECASE) is not None
    off = value.lower() in _OFF or (name in _OFF_AT and parse(value) == _OFF_AT[name])
    return not off and name not in _COMPARED | _HARMLESS


def of_truth(text: str) -> Ledger:
    """The ledger of clipskip's own text. CheckpointError for a broken one, or one of another schema."""
    try:
        truth: Any = strict.parse(text.encode("utf-8", "replace"))
    except ManifestError as error:
        raise CheckpointError(f"the text `clipskip` is broken: {error.message[:200]}") from error
    if not isinstance(truth, dict) or type(truth.get("schema")) is not int:
        raise CheckpointError("the text `clipskip` is broken: it is no object with a schema")
    if truth["schema"] != SCHEMA:
        hint = "a newer clipskip may have written it: upgrade"
        raise CheckpointError(f"the text `clipskip` has schema {truth['schema']}; {SCHEMA} is known", hint=hint)
    if not isinstance(truth.get("request"), dict):
        raise CheckpointError("the text `clipskip` is broken: its request is missing")
    request = Request.from_json(truth["request"])
    known = asdict(request).items()
    honoured = {name: written(value) for name, value in known if value is not None and "prompt" not in name}
    model, inversions, loras = (truth.get(name, {}) for name in ("model", "inversions", "loras"))
    for value in (model, inversions, loras):
        if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
            raise CheckpointError("the text `clipskip` is broken: its model, inversions or LoRAs are no texts by name")
    name, digest = model.get("name", ""), model.get("sha256", "")
    pictures = {name: value for name in PICTURES if (value := getattr(request, name)) is not None}
    known_inversions = inversions if "inversions" in truth else None
    return Ledger(request, "clipskip", honoured, {}, {}, name, digest, known_inversions, loras, pictures=pictures)


def foreign(texts: Mapping[str, str]) -> str | None:
    """The program whose own kind of texts these are, if it is a known one."""
    everything = "\n".join(f"{name}: {text}" for name, text in texts.items())
    return next((program for program, sign in _SIGNS.items() if re.search(sign, everything)), None)
