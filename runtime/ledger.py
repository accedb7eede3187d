"""What becomes of the settings in a picture's text: each is honoured, or noted, and what it lacks is filled in.

Knows the names of settings, A1111's and those that other programs write like it; knows nothing of files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from clipskip.engines import strict
from clipskip.engines.manifest import ModelFacts

from .errors import CheckpointError, ManifestError, RequestError
from .fields import WHOLE, parse, shown, written
from .infotext import DIGEST, Infotext, bare, key
from .prompt import composition
from .request import EMPHASES, FIELDS, Request
from .resolve import split_schedule

if TYPE_CHECKING:
    from .inversions import Inversions

SCHEMA = 1

_PLAIN = {
    key(name): field.name
    for field in FIELDS.values()
    if field.infotext
    for name in (field.infotext, field.name, *field.aliases)
} | {"width": "width", "height": "height"}
_RNGS = {"nv": "nv", "gpu": "nv", "cuda": "nv"}  # all others: "cpu"
_HERE = {"sampler", "schedule type", "scheduler", "rng", "hypernet", "hypernet strength", "lora hashes"}
_COMPARED = {"model", "model hash", "ti hashes"}  # with what is open
_HARMLESS = {"version", "app", "backend", "pipeline", "operations", "batch size", "batch pos", "hashes", "time taken"}
_HARMLESS |= {"civitai metadata", "created date"}
_OFF = {"", "false", "none", "null"}
_OFF_AT_ZERO = {"ngms", "token merging ratio", "token merging ratio hr", "skip early cfg"}
_WHY = {"denoising strength": "it counts where a picture was made from another, or enlarged"}
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

    @property
    def batch(self) -> int:
        return self.request.batch

    def given(self, fields: Mapping[str, str]) -> Ledger:
        """The ledger after a user has typed some fields over it, as in `Request.from_text`."""
        return self.over(Request.from_text(fields, self.request), fields)

    def over(self, request: Request, names: Collection[str]) -> Ledger:
        """The ledger for a request in which these fields were replaced: they were not filled in any more."""
        filled = {name: value for name, value in self.filled.items() if name not in names}
        inversions = None if {"prompt", "negative_prompt"} & set(names) else self.inversions
        return replace(self, request=request, filled=filled, inversions=inversions)

    def notes(
        self, model: ModelFacts | None = None, inversions: Inversions | None = None, used: Collection[str] = ()
    ) -> list[str]:
        """What a user must know who repeats the picture with this model and these textual inversions.

        One note per setting that is not honoured (those of one kind share one), per value filled in, and per model,
        VAE and inversion that is not the picture's; `used` are the inversions that the prompts use now.
        """
        families: dict[str, list[str]] = {}
        for name, value in self.ignored.items():
            if not (model and key(name) in ("vae", "vae hash") and self._has_vae(model)):
                why = f" ({_WHY[key(name)]})" if key(name) in _WHY else ""
                family = re.split(r"[ \d-]", key(name), maxsplit=1)[0]
                families.setdefault(family, []).append(f"{name}: {_short(value)}{why}")
        notes = [f"not honoured from the picture: {', '.join(family)}" for family in families.values()]
        for name, value in self.filled.items():
            notes.append(f"the picture's settings have no {FIELDS[name].infotext or name}: {value} is used")
        if model and (self.model or self.model_hash):
            notes += self._about_model(model)
        if inversions:
            notes += self._about_inversions(inversions, used)
        return notes

    def _has_vae(self, model: ModelFacts) -> bool:
        digest = next((value.lower() for name, value in self.ignored.items() if key(name) == "vae hash"), "")
        return len(digest) >= 8 and any(known.startswith(digest) for known in model.sources.values())

    def _about_model(self, model: ModelFacts) -> list[str]:
        """A note where another model made the picture. Hashes of 8 digits are A1111's old ones, of a part of a file."""
        hashes = [model.model_sha256, *model.sources.values()]
        if len(self.model_hash) > 8:
            same = any(digest.startswith(self.model_hash.lower()) for digest in hashes)
        else:
            same = key(self.model) in ("", key(model.name))
        made, here = (
            f"{name} [{digest[:10]}]" for name, digest in ((self.model, self.model_hash), (model.name, hashes[0]))
        )
        return [] if same else [f"the picture was made with the model {_short(made)}; {here} is open"]

    def _about_inversions(self, inversions: Inversions, used: Collection[str]) -> list[str]:
        notes, there = [], {bare(name): digest for name, digest in inversions.digests.items()}
        for name, digest in (self.inversions or {}).items():
            if bare(name) not in there:
                notes.append(f"the picture's textual inversion {shown(name)} is not open: its name counts as words")
            elif not there[bare(name)].startswith(digest.lower()):
                found = there[bare(name)][:DIGEST]
                notes.append(
                    f"another textual inversion {shown(name)} [{found}] is open than the picture's [{digest[:12]}]"
                )
        if self.inversions is not None:
            unknown = set(used) - {bare(name) for name in self.inversions}
            notes += [
                f"{shown(name)} is a textual inversion here; the picture's was made without it"
                for name in sorted(unknown)
            ]
        return notes


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def of_text(info: Infotext) -> Ledger:
    """The ledger of A1111's text. RequestError for values of a wrong type.

    A missing `Clip skip` is 1, a missing `RNG` a GPU's. A DPM sampler without a schedule is from before A1111 1.9 and
    ran on the uniform one. Where A1111 read a weight at the end of a prompt without AND, `compat` says so.
    """
    said = {key(name): value for name, value in info.settings.items() if value}
    program = _program(said)
    fields = {**_plain(said), **_sampler(said), **_size(said), "rng": _RNGS.get(said.get("rng", "gpu").lower(), "cpu")}
    with suppress(RequestError):
        a1111 = program.startswith(("AUTOMATIC1111", "Forge"))
        if a1111 and composition(info.prompt) != composition(info.prompt, "a1111"):
            fields["compat"] = "a1111"
    filled = {name: value for name, value in _FILLED.items() if name not in fields}
    size = [fields.get("width"), fields.get("height")]
    honoured, ignored = {}, {}
    for name, value in info.settings.items():
        meant = _PLAIN.get(key(name))
        if meant in fields or key(name) in _HERE or (key(name) == "size" and _side_by_side(value) == size):
            honoured[name] = value
        elif meant not in filled and _changes(key(name), value):
            ignored[name] = value
    prompts = {"prompt": info.prompt + _tags(info.prompt, said), "negative_prompt": info.negative_prompt}
    return Ledger(
        request=Request.from_text({**prompts, **fields}),
        program=program,
        honoured=honoured,
        ignored=ignored,
        filled=filled,
        model=said.get("model", ""),
        model_hash=said.get("model hash", "") if said.get("model hash", "").lower() not in _OFF else "",
        inversions=_hashes(said["ti hashes"]) if "ti hashes" in said else None,
    )


def _plain(said: Mapping[str, str]) -> dict[str, str]:
    """The fields whose values stand in the text as they are typed."""
    fields: dict[str, str] = {}
    for name, value in said.items():
        if (meant := _PLAIN.get(name)) is not None:
            fields.setdefault(meant, value.removesuffix(".0") if FIELDS[meant].kind is WHOLE else value)
    if fields.get("seed") == "-1":
        del fields["seed"]
    if fields.get("emphasis", "none").lower() not in map(str.lower, EMPHASES):
        del fields["emphasis"]
    skip = parse(fields.get("clip_skip", "1"))
    if isinstance(skip, int) and skip <= 0:  # diffusers' 0, and ComfyUI's numbering
        fields["clip_skip"] = str(-skip or 1)
    return {"clip_skip": "1", **fields}


def _sampler(said: Mapping[str, str]) -> dict[str, str]:
    if (sampler := said.get("sampler")) is None:
        return {}
    schedule = said.get("schedule type", said.get("scheduler"))
    if schedule is None:  # as before 1.9
        sampler, suffix = split_schedule(sampler)
        schedule = suffix or ("uniform" if "dpm" in sampler.lower() else "automatic")
    return {"sampler": sampler, "schedule": "_".join(schedule.lower().split())}


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


def _tags(prompt: str, said: Mapping[str, str]) -> str:
    """The networks that only the settings name, as the tags that ask for them."""
    name, tags = re.sub(r" *\([0-9a-fA-F]*\)$", "", said.get("hypernet", "")), []
    if name.lower() not in _OFF and "<hypernet:" not in prompt:
        tags.append(f" <hypernet:{name}:{said.get('hypernet strength', '1')}>")
    if not re.search("<(lora|lyco):", prompt, re.IGNORECASE):
        tags += [f" <lora:{each}:1>" for each in _hashes(said.get("lora hashes", ""))]
    return "".join(tags)


def _hashes(text: str) -> dict[str, str]:
    """Names and digests in a list such as "a: 0123456789ab, b: ba9876543210"."""
    pairs = (item.rpartition(":") for item in text.split(","))
    return {name.strip(): digest.strip() for name, colon, digest in pairs if colon and name.strip()}


def _changes(name: str, value: str) -> bool:
    """Whether a setting that is not honoured changes the picture; an unknown one may."""
    if name == "civitai resources":
        return re.search('"type" *: *"(?!checkpoint)', value, re.IGNORECASE) is not None
    off = value.lower() in _OFF or (name in _OFF_AT_ZERO and parse(value) == 0)
    return not off and name not in _COMPARED | _HARMLESS


def _program(said: Mapping[str, str]) -> str:
    app, version = said.get("app", ""), said.get("version", "")
    if not app and re.match(r"v?\d|$", version):
        app = "AUTOMATIC1111"
    return f"{app or ('Forge' if re.match(r'f[0-9]', version) else '')} {version}".strip()[:60]


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
    model, inversions = ({} if truth.get(name) is None else truth[name] for name in ("model", "inversions"))
    for name, value in (("model", model), ("inversions", inversions)):
        if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
            raise CheckpointError(f"the text `clipskip` is broken: its {name} are no texts by name")
    digest = model.get("sha256", "")
    learnt = inversions if "inversions" in truth else None
    return Ledger(request, "clipskip", honoured, model=model.get("name", ""), model_hash=digest, inversions=learnt)


def foreign(texts: Mapping[str, str]) -> str | None:
    """The program whose own kind of texts these are, if it is a known one."""
    everything = "\n".join(f"{name}: {text}" for name, text in texts.items())
    return next((program for program, sign in _SIGNS.items() if re.search(sign, everything)), None)
