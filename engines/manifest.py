"""What an engine store holds, as immutable values and as strict, versioned JSON.

Knows nothing of the files themselves: whether they are there and intact is the store's business.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from clipskip.engines import strict
from clipskip.engines.errors import ManifestError
from clipskip.engines.strict import Between

SCHEMA = 1

Name = Annotated[str, r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}"]
Sha256 = Annotated[str, r"[0-9a-f]{64}"]
Count = Annotated[int, range(1, 1 << 31)]
Layers = Annotated[int, range(1, 100)]  # of a text encoder: a role has two digits for them
Prediction = Annotated[str, "epsilon|v_prediction"]
Beta = Annotated[float, Between(0, 1)]
TrainSteps = Annotated[int, range(1, 1_000_001)]
Scale = Annotated[float, Between(0, 1e4)]
Pixels = Annotated[int, range(8, (1 << 16) + 1, 8)]
Kept = Annotated[int, range(100)]  # layers of a text encoder that a clip skip leaves
LATER = {
    "variant": "",
    "clip_skips": (),
    "zero_snr": False,
    "context_parts": (),
}  # fields that old manifests lack: name -> what they are


class NewerManifestError(ManifestError):
    """A manifest that a later clipskip wrote: not to be replaced by this one."""


@dataclass(frozen=True)
class ModelFacts:
    """What the planner must know about the model; the networks themselves are in the engines."""

    name: Name
    family: Annotated[str, "sd1|sd2|sdxl"]
    layers: Layers  # of the text encoder, of the first of two
    width: Count  # D, of the context
    vocabulary: Count  # token ids from here on are rows of `concepts`
    prediction: Prediction
    beta_start: Beta
    beta_end: Beta
    train_steps: TrainSteps
    scaling_factor: Scale
    default_size: Pixels
    size_step: Pixels  # 64 in old stores, whose step graph takes what the U-Net's strides divide
    recommended_clip_skip: Count  # 1 where nobody recommended another
    model_sha256: Sha256  # over all source weights
    sources: Mapping[str, Sha256]  # file -> SHA-256
    clip_skips: tuple[Kept, ...] = ()  # how many layers clip skip 1, 2, ... keeps; (): one less with each, from all on
    zero_snr: bool = False  # the betas are rescaled so that the last level is nothing but noise
    context_parts: tuple[Count, ...] = ()  # how much of D each of several text encoders gives; (): one gives all

    @property
    def kept(self) -> tuple[int, ...]:
        """How many layers of the text encoder are kept at clip skip 1, 2, ..."""
        return self.clip_skips or tuple(range(self.layers, -1, -1))


@dataclass(frozen=True, order=True)
class Role:
    """What a network does; of the text encoder also how many of its layers it keeps. In JSON "text-11", "step"."""

    part: str
    layers: int | None = None

    def __str__(self) -> str:
        return self.part if self.layers is None else f"{self.part}-{self.layers:02}"

    @classmethod
    def parse(cls, text: str) -> Role:
        """The role that is written so; ValueError where there is none."""
        if not re.fullmatch(r"text-\d\d|step|decode|encode", text, re.ASCII):
            raise ValueError(f"role {text!r}")
        part, _, layers = text.partition("-")
        return cls(part, int(layers) if layers else None)


ROLE = "clipskip.role"  # under this name a graph says, among its metadata, what it is
STEP, DECODE, ENCODE = map(Role, ("step", "decode", "encode"))


@dataclass(frozen=True)
class Dim:
    """A dynamic axis, or a multiple of one: `Dim("h", 8)` is 8 h. In JSON "h", "8*h"."""

    axis: str
    factor: int = 1

    def __str__(self) -> str:
        return self.axis if self.factor == 1 else f"{self.factor}*{self.axis}"

    @classmethod
    def parse(cls, text: str) -> Dim:
        """The dimension that is written so; ValueError where there is none."""
        if (match := re.fullmatch(r"(?:([1-9][0-9]{0,2})\*)?([A-Za-z][A-Za-z0-9_]{0,39})", text)) is None:
            raise ValueError(f"dimension {text!r}")
        return cls(match[2], int(match[1] or 1))

    def size(self, axes: Mapping[str, int]) -> int:
        """The number of elements where the axes have these sizes."""
        return self.factor * axes[self.axis]


class Identity(NamedTuple):
    """What a store has one artefact of."""

    role: Role
    target: str
    precision: str
    variant: str = ""

    def __str__(self) -> str:
        return " ".join(map(str, self if self.variant else self[:3]))

    @property
    def stem(self) -> str:
        """What its file is called, without what follows the last dot: "step", "step-cuda"."""
        return f"{self.role}-{self.variant}" if self.variant else str(self.role)


@dataclass(frozen=True)
class Port:
    """One input or output."""

    name: Name
    dtype: Annotated[str, "int64|int32|float32|float16|uint8|bool"]  # numpy's name
    shape: tuple[Count | Dim, ...]

    def sized(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape where the axes have these sizes."""
        return tuple(size if isinstance(size, int) else size.size(sizes) for size in self.shape)


@dataclass(frozen=True)
class AxisRange:
    """The sizes that one dynamic axis may take, and the one that the engine is tuned for."""

    minimum: Count
    optimum: Count
    maximum: Count


@dataclass(frozen=True)
class FileRecord:
    """One published file; `path` is "folder/name" below the store."""

    path: Annotated[str, r"[a-z0-9][a-z0-9._-]{0,119}/[A-Za-z0-9_][A-Za-z0-9._-]{0,119}"]
    size: Annotated[int, range(1 << 53)]
    sha256: Sha256


@dataclass(frozen=True)
class Artefact:
    """One network, compiled for one target at one precision.

    `files[0]` is the one to open, named after role and variant; the rest is read along. `ingredients` is what may
    change the bytes ("precision", "onnx runtime", ...); its "model" is the `model_sha256` of the weights. A builder
    leaves both empty: publish.Draft fills them in.
    """

    role: Role
    target: Annotated[str, r"[a-z][a-z0-9-]{0,39}"]  # "onnx", "tensorrt", "tensorrt-rtx"
    precision: Annotated[str, "fp32|fp16"]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    axes: Mapping[str, AxisRange]
    parity: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    ingredients: Mapping[str, str] = field(default_factory=dict)
    files: tuple[FileRecord, ...] = ()
    variant: Annotated[str, r"([a-z0-9][a-z0-9._-]{0,39})?"] = ""  # another form of the same network; "" in most stores

    @property
    def identity(self) -> Identity:
        """What tells it from the other artefacts of a store."""
        return Identity(self.role, self.target, self.precision, self.variant)

    @property
    def key(self) -> str:
        """SHA-256 over the ingredients and what was made of them: the artefact's name in results and reports."""
        return key_of({"artefact": str(self.identity), **self.ingredients})

    @property
    def model(self) -> str:
        """The `model_sha256` of the weights that this was made from."""
        return self.ingredients["model"]


@dataclass(frozen=True)
class Manifest:
    """The whole content of a store."""

    schema: int
    model: ModelFacts
    artefacts: tuple[Artefact, ...]
    tokenizer: tuple[FileRecord, ...]

    def find(self, identity: Identity) -> Artefact | None:
        """The one artefact with this identity."""
        return next((artefact for artefact in self.artefacts if artefact.identity == identity), None)

    def folders(self) -> set[str]:
        """Names of the folders that this manifest refers to."""
        records = [*self.tokenizer, *(record for artefact in self.artefacts for record in artefact.files)]
        return {record.path.partition("/")[0] for record in records}


def key_of(ingredients: Mapping[str, str]) -> str:
    """SHA-256 hex over names and values, whatever their order."""
    return hashlib.sha256(json.dumps(dict(ingredients), sort_keys=True).encode()).hexdigest()


def dumps(manifest: Manifest) -> str:
    """The manifest as JSON that `loads` accepts; a manifest that it would refuse is a ManifestError here already."""
    text = json.dumps(packed(manifest), indent=1) + "\n"
    loads(text.encode())
    return text


def packed(value: Any) -> Any:
    """A part of a manifest as JSON's own types. What came later is only there where it says something."""
    if isinstance(value, (Role, Dim)):
        return str(value)
    if is_dataclass(value):
        entries = ((entry.name, getattr(value, entry.name)) for entry in fields(value))
        return {name: packed(entry) for name, entry in entries if name not in LATER or entry != LATER[name]}
    if isinstance(value, Mapping):
        return {name: packed(entry) for name, entry in value.items()}
    return [packed(entry) for entry in value] if isinstance(value, tuple) else value


def loads(data: bytes) -> Manifest:
    """The manifest in `data`; ManifestError names the first field that does not fit."""
    tree = strict.parse(data)
    schema = tree.get("schema") if isinstance(tree, dict) else None
    if type(schema) is not int or schema < 1:
        raise ManifestError("not the manifest of an engine store", field="manifest.schema")
    if schema > SCHEMA:
        message = f"made by a newer clipskip (schema {schema}, this one reads {SCHEMA})"
        raise NewerManifestError(message, field="manifest.schema", hint="upgrade clipskip")
    if schema < SCHEMA:
        raise ManifestError(f"made by an older clipskip (schema {schema})", field="manifest.schema")
    manifest: Manifest = strict.decode(Manifest, tree, "manifest", LATER)
    if manifest.model.recommended_clip_skip > len(manifest.model.kept):
        raise ManifestError("the model has not so many layers to skip", field="manifest.model.recommended_clip_skip")
    for artefact in manifest.artefacts:
        _check_artefact(artefact)
    for identity, count in Counter(artefact.identity for artefact in manifest.artefacts).items():
        if count > 1:
            raise ManifestError(f"{identity} is there {count} times", field="manifest.artefacts")
    if len({record.path.partition("/")[0] for record in manifest.tokenizer}) > 1:
        raise ManifestError("the tokenizer's files are in several folders", field="manifest.tokenizer")
    return manifest


def validate(artefact: Artefact) -> None:
    """Raise the ManifestError now that reading it back would raise."""
    _check_artefact(strict.decode(Artefact, packed(artefact), "artefact", LATER))


def _check_artefact(artefact: Artefact) -> None:
    where = f"manifest.artefacts.{artefact.identity}"
    if not artefact.files:
        raise ManifestError(f"{where}: has no files", field=f"{where}.files")
    if Path(artefact.files[0].path).stem not in (
        str(artefact.role),
        artefact.identity.stem,
    ):  # all depths of the text encoder look alike
        raise ManifestError(f"{where}: {artefact.files[0].path} is no {artefact.role}", field=f"{where}.files")
    if "model" not in artefact.ingredients:
        raise ManifestError(f"{where}: the ingredients do not name the model", field=f"{where}.ingredients.model")
    for name, axis in artefact.axes.items():
        if not axis.minimum <= axis.optimum <= axis.maximum:
            raise ManifestError(f"{where}: axis {name} must grow", field=f"{where}.axes.{name}")
    for ports in (artefact.inputs, artefact.outputs):
        if len({port.name for port in ports}) < len(ports):
            raise ManifestError(f"{where}: two ports have one name", field=f"{where}.inputs")
