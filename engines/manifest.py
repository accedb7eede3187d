"""What an engine store holds, as immutable values and as strict, versioned JSON.

Knows nothing of the files themselves: whether they are there and intact is the store's business.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated

from clipskip.engines import strict
from clipskip.engines.errors import ManifestError

SCHEMA = 1
Identity = tuple[str, str, str]  # role, target, precision: a store has one artefact of each

Name = Annotated[str, r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}"]
Sha256 = Annotated[str, r"[0-9a-f]{64}"]
Count = Annotated[int, range(1, 1 << 31)]


class NewerManifestError(ManifestError):
    """A manifest that a later clipskip wrote: not to be replaced by this one."""


@dataclass(frozen=True)
class ModelFacts:
    """What the planner must know about the model; the networks themselves are in the engines."""

    name: Name
    family: Annotated[str, "sd1"]
    layers: Count  # of the text encoder
    width: Count  # D, of the context
    vocabulary: Count  # token ids from here on are rows of `concepts`
    prediction: Annotated[str, "epsilon|v_prediction"]
    beta_start: float
    beta_end: float
    train_steps: Count
    scaling_factor: float
    default_size: Count  # pixels
    size_step: Count  # pixels: what the U-Net's strides divide
    recommended_clip_skip: Count
    model_sha256: Sha256  # over all source weights
    sources: Mapping[str, Sha256]  # file -> SHA-256


@dataclass(frozen=True)
class Port:
    """One input or output. A string in `shape` is a dynamic axis ("B", "h") or, on outputs, a multiple ("8*h")."""

    name: Name
    dtype: Annotated[str, "int64|int32|float32|float16|uint8|bool"]  # numpy's name
    shape: tuple[Count | Annotated[str, r"(\d{1,3}\*)?[A-Za-z][A-Za-z0-9_]{0,39}"], ...]


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

    `files[0]` is the one to open, the rest is read along with it. `ingredients` is everything that may change the
    bytes ("precision", "onnx runtime", ...); its "model" is the `model_sha256` of the weights. A builder leaves both
    empty: publish.Draft fills them in.
    """

    role: Annotated[str, r"text-\d\d|step|decode|encode"]
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

    @property
    def identity(self) -> Identity:
        """Role, target and precision."""
        return self.role, self.target, self.precision

    @property
    def key(self) -> str:
        """SHA-256 over the ingredients and what was made of them: the artefact's name in results and reports."""
        return key_of({"artefact": " ".join(self.identity), **self.ingredients})

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

    def find(self, role: str, target: str, precision: str) -> Artefact | None:
        """The one artefact with this identity."""
        return next((each for each in self.artefacts if each.identity == (role, target, precision)), None)

    def folders(self) -> set[str]:
        """Names of the folders that this manifest refers to."""
        records = [*self.tokenizer, *(record for artefact in self.artefacts for record in artefact.files)]
        return {record.path.partition("/")[0] for record in records}


def key_of(ingredients: Mapping[str, str]) -> str:
    """SHA-256 hex over names and values, whatever their order."""
    return hashlib.sha256(json.dumps(dict(ingredients), sort_keys=True).encode()).hexdigest()


def dumps(manifest: Manifest) -> str:
    """The manifest as JSON that `loads` accepts; a manifest that it would refuse is a ManifestError here already."""
    text = json.dumps(asdict(manifest), indent=1) + "\n"
    loads(text.encode())
    return text


def loads(data: bytes) -> Manifest:
    """The manifest in `data`; ManifestError names the first field that does not fit."""
    tree = strict.parse(data)
    _check_schema(tree)
    manifest = strict.decode(Manifest, tree, "manifest")
    for artefact in manifest.artefacts:
        _check_artefact(artefact)
    for identity, count in Counter(each.identity for each in manifest.artefacts).items():
        if count > 1:
            raise ManifestError(f"{' '.join(identity)} is there {count} times", field="manifest.artefacts")
    if len({record.path.partition("/")[0] for record in manifest.tokenizer}) > 1:
        raise ManifestError("the tokenizer's files are in several folders", field="manifest.tokenizer")
    return manifest


def _check_schema(tree: object) -> None:
    found = tree.get("schema") if isinstance(tree, dict) else None
    if type(found) is not int or found < 1:
        raise ManifestError("not the manifest of an engine store", field="manifest.schema")
    if found > SCHEMA:
        raise NewerManifestError(
            f"made by a newer clipskip (schema {found}, this one reads {SCHEMA})",
            field="manifest.schema", hint="upgrade clipskip",
        )  # fmt: skip
    if found < SCHEMA:
        raise ManifestError(f"made by an older clipskip (schema {found})", field="manifest.schema")


def validate(artefact: Artefact) -> None:
    """Raise the ManifestError now that reading it back would raise."""
    _check_artefact(strict.decode(Artefact, json.loads(json.dumps(asdict(artefact))), "artefact"))


def _check_artefact(artefact: Artefact) -> None:
    where = "manifest.artefacts." + " ".join(artefact.identity)
    if not artefact.files:
        raise ManifestError(f"{where}: has no files", field=f"{where}.files")
    if "model" not in artefact.ingredients:
        raise ManifestError(f"{where}: the ingredients do not name the model", field=f"{where}.ingredients.model")
    for name, axis in artefact.axes.items():
        if not axis.minimum <= axis.optimum <= axis.maximum:
            raise ManifestError(f"{where}: axis {name} must grow", field=f"{where}.axes.{name}")
    for ports in (artefact.inputs, artefact.outputs):
        if len({port.name for port in ports}) < len(ports):
            raise ManifestError(f"{where}: two ports have one name", field=f"{where}.inputs")
