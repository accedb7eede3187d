"""LoRA files: which parameters of a network one changes, and by how much. Knows nothing of graphs and requests."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from clipskip.engines import strict, tensorfile
from clipskip.engines.errors import (
    CheckpointError,
    ManifestError,
    NumericalError,
    RequestError,
    UnsupportedModelError,
)
from clipskip.engines.files import NotAFileError, open_regular, readable_size, state_of
from clipskip.engines.identify import WIDTHS
from clipskip.engines.tensorfile import Header
from clipskip.engines.weights import Origin, Shape

Floats = npt.NDArray[np.float32]
OTHERS = {  # what a layer's tensors are called in adapters of other kinds
    "LoHa": ("hada_",), "LoKr": ("lokr_",), "DoRA": ("dora_scale", "lora_magnitude_vector"), "OFT": ("oft_",),
    "GLoRA": ("a1.", "a2.", "b1.", "b2."), "(IA)3": ("on_input",),
}  # fmt: skip
EXPORTED = ("LoHa", "LoKr", "DoRA")  # those that an export can merge
MOST = 10.0  # a weight that anybody uses is far below
LARGEST, LONGEST_HEADER = 4 << 30, 16 << 20  # bytes of a file and of its header: rank 256 of SDXL has 1.5 GB in fp16
LONGEST_NAME = 1000  # of a tensor that can be of use
_WEIGHTS = r"(?:[+-]?(?:\d+\.?\d*|\.\d+)(?::|\Z)){1,2}\Z"
_PARTS = {"up": "up", "B": "up", "down": "down", "A": "down", "mid": "mid"}
_TENSOR = re.compile(
    r"(?P<layer>.+?)[._](?:lora(?:_linear_layer)?[._](?P<part>up|down|mid|A|B)(?:\.(?!weight)\w+)?\.weight"
    r"|(?P<other>alpha|dora_scale|lora_magnitude_vector|hada_\w+|lokr_\w+|oft_\w+|on_input|[ab][12]\.weight)(?:\.\w+)?)"
)
_SETTINGS = {"lora_alpha": float, "alpha_pattern": Mapping[str, float], "use_rslora": bool}  # of PEFT, where not null
_DEEP = re.compile(r"text_encoder_layers_(\d{1,3})_(\w+)", re.ASCII)
_READS_CONTEXT = re.compile(r"attn2.*to_k[._].*(down|A)\b.*weight$")
_NETWORKS = (  # how a layer's name begins, dots made underscores -> the network that it is in
    ("lora_unet_", "unet"), ("lora_te2_", "text2"), ("lora_te1_", "text"), ("lora_te_", "text"), ("unet_", "unet"),
    ("text_encoder_2_", "text2"), ("text_encoder_", "text"),
)  # fmt: skip
_OLD = {  # what early files call the layers of an attention
    r"to_out_0$": "to_out", r"self_attn_([qkv])_proj$": r"self_attn_to_\1", r"self_attn_out_proj$": "self_attn_to_out",
}  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """The tensors that change one parameter, by what they are ("up", "down", "mid"), and alpha if one is said."""

    shape: Shape
    tensors: Mapping[str, str]
    alpha: float | None


@dataclass(frozen=True)
class Lora:
    """A LoRA file, read once and whole. `layers`: by the parameter that is changed; `unknown`: names of no use here.

    `deeper`: of names of no use those for layers of the text encoder above the last one here, and which layers.
    """

    name: str
    sha256: str
    layers: Mapping[str, Layer]
    unknown: tuple[str, ...]
    deeper: Mapping[str, str]
    header: Header
    data: bytes

    @property
    def metadata(self) -> Mapping[str, str]:
        """What the file says of itself."""
        return self.header.metadata

    def changes(self, network: str) -> bool:
        """Whether it has anything for "text", "text2" or "unet"."""
        return any(parameter.startswith(f"{network}.") for parameter in self.layers)

    def tensor(self, name: str) -> Floats:
        """One of its tensors in float32."""
        return tensorfile.floats(memoryview(self.data), self.header, name)

    def delta(self, parameter: str) -> Floats:
        """What is added to this parameter at weight 1, in its shape: up x down x alpha / rank (Hu et al. 2021)."""
        layer = self.layers[parameter]
        up, down, *mid = (self.tensor(layer.tensors[part]) for part in ("up", "down", "mid") if part in layer.tensors)
        rank = len(down)
        change = product(up.reshape(-1, rank), down, *mid).reshape(layer.shape)
        change *= np.float32(1 if layer.alpha is None else layer.alpha / rank)
        return change


@dataclass(frozen=True)
class _Plan:
    """What is known of a file from its header: per parameter its tensors by what they are, and what PEFT says."""

    header: Header
    tensors: Mapping[str, Mapping[str, str]]
    alphas: Mapping[str, float | None]
    unknown: tuple[str, ...]
    deeper: Mapping[str, str]


Weighted = Iterable["tuple[Lora, float]"]


@dataclass(frozen=True)
class Choice:
    """A LoRA file and its weights for the U-Net and for text encoders."""

    path: Path
    unet: float = 1.0
    text: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Choice:
        """FILE, FILE:weight or FILE:weight:text weight; a colon before anything but a number is FILE's own.

        RequestError for a weight beyond -10 to 10.
        """
        if os.path.exists(text):
            return cls(Path(text))
        path, *numbers = re.split(rf":(?={_WEIGHTS})", text, maxsplit=1)
        weights = [float(number) for number in ":".join(numbers).split(":") if number]
        unet, own = (*weights, *weights)[:2] if weights else (1.0, 1.0)
        if max(abs(unet), abs(own)) > MOST:
            message = f"the weights of {path} must be from -{MOST:g} to {MOST:g}, not {unet:g} and {own:g}"
            raise RequestError(message, field="loras")
        return cls(Path(path), unet, own)

    def __str__(self) -> str:
        weights = f"{self.unet!r}" if self.text == self.unet else f"{self.unet!r}:{self.text!r}"
        return f"{self.path.name}:{weights}"


def product(up: Floats, down: Floats, mid: Floats | None = None) -> Floats:
    """What a layer of low rank multiplies by; `mid` is the kernel of a convolution that was decomposed (CP)."""
    if mid is None:
        return up @ down.reshape(len(down), -1)
    core = np.tensordot(up, mid, (1, 0))  # [out, rank, h, w]
    return np.ascontiguousarray(np.tensordot(core, down.reshape(len(down), -1), (1, 0)).transpose(0, 3, 1, 2))


def merged(base: npt.NDArray[Any], parameter: str, loras: Weighted) -> Floats:
    """The parameter with all that the LoRAs add to it, in float32, in whatever order they come. CheckpointError."""
    total = base.astype(np.float32)
    for lora, weight in sorted(loras, key=lambda entry: (entry[0].sha256, entry[1])):
        if weight and parameter in lora.layers:
            delta = lora.delta(parameter)
            if broken := int(np.count_nonzero(~np.isfinite(delta))):
                message = f"{broken} numbers for {parameter} are NaN or infinite: the file is broken"
                raise CheckpointError(f"{lora.name}: {message}")
            total += np.float32(weight) * delta
    return total


def merged_stored(stored: npt.NDArray[Any], origin: Origin, loras: Sequence[tuple[Lora, float]]) -> npt.NDArray[Any]:
    """The same for a weight as a graph keeps it: a new array of its type and shape. NumericalError if it overflows."""
    changed = np.array(stored)
    for piece, (parameter, axes) in zip(np.split(changed, len(origin.pieces), origin.axis), origin.pieces, strict=True):
        if any(weight and parameter in lora.layers for lora, weight in loras):
            own = merged(piece.transpose(np.argsort(axes)), parameter, loras)
            with np.errstate(over="ignore"):
                piece[...] = own.transpose(axes)
            if not np.isfinite(piece).all():
                names = ", ".join(lora.name for lora, _ in loras)
                raise NumericalError(f"{parameter} with {names} is beyond {stored.dtype}: use a smaller weight")
    return changed


def beyond(lora: Lora, kept: int, network: str = "text") -> tuple[int, int]:
    """How many tensors of a text encoder the LoRA changes in layers beyond the first `kept`, and how many in all."""
    changed = {*lora.layers, *lora.deeper.values()}
    matches = [re.match(rf"{network}\.encoder\.layers\.(\d+)\.", parameter) for parameter in changed]
    layers = [int(match[1]) for match in matches if match]
    return sum(layer >= kept for layer in layers), len(layers)


def read(path: str | os.PathLike[str], parameters: Mapping[str, Shape], also: Sequence[str] = ()) -> Lora:
    """The LoRA in a .safetensors file, for the network with these parameters ("text.…", "unet.…": shape).

    Layouts of kohya (`lora_unet_*`, `lora_te_*`), diffusers and PEFT; linear layers and convolutions. `also`: kinds of
    `OTHERS` that the caller merges itself. CheckpointError where the file is broken or none of it belongs to the
    network, UnsafeFileError for a pickle, UnsupportedModelError for another model's or kind's: all from the header,
    before any tensor is read.
    """
    path = Path(path)
    with _reading(path) as (file, size):
        plan = _planned(path, tensorfile.read_header(file, size, LONGEST_HEADER), parameters, also)
        file.seek(0)
        data = file.read(size)
    lora = Lora(path.stem, hashlib.sha256(data).hexdigest(), {}, plan.unknown, plan.deeper, plan.header, data)
    layers = {}
    for parameter, parts in plan.tensors.items():
        alpha = plan.alphas[parameter]
        if "alpha" in parts:
            alpha = float(lora.tensor(parts["alpha"]).reshape(()))
        layers[parameter] = Layer(parameters[parameter], parts, alpha)
    return replace(lora, layers=layers)


def metadata(path: Path) -> Mapping[str, str]:
    """What a file says of itself, by its header alone. CheckpointError where that is broken."""
    with _reading(path) as (file, size):
        return tensorfile.read_header(file, size, LONGEST_HEADER).metadata


def check(path: str | os.PathLike[str], parameters: Mapping[str, Shape], also: Sequence[str] = ()) -> None:
    """Refuse what `read` refuses, without reading a tensor."""
    path = Path(path)
    with _reading(path) as (file, size):
        _planned(path, tensorfile.read_header(file, size, LONGEST_HEADER), parameters, also)


@contextmanager
def _reading(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """The file and its size; what is wrong with it is said with its name."""
    try:
        with open_regular(Path(os.path.realpath(path))) as raw, BufferedReader(raw) as file:
            before = state_of(raw)
            if (size := before[0]) > LARGEST:
                message = f"it has {readable_size(size)}, and LoRAs are read up to {readable_size(LARGEST)}"
                raise CheckpointError(message, hint="is it a LoRA?")
            yield file, size
            if state_of(raw) != before:
                raise CheckpointError("it changed while it was read", hint="try again")
    except NotAFileError as error:
        raise CheckpointError(f"{path} {error}", path=path) from error
    except CheckpointError as error:
        if error.path:
            raise
        raise error.about(path) from error


def _planned(path: Path, header: Header, parameters: Mapping[str, Shape], also: Sequence[str]) -> _Plan:
    """What a file with this header changes of the network."""
    names = [name for name in header.tensors if len(name) <= LONGEST_NAME]
    parts = {match["other"] or "" for name in names if (match := _TENSOR.fullmatch(name))}
    for kind, marks in OTHERS.items():
        if kind not in also and any(part.startswith(marks) for part in parts):
            hint = "merge it at export: --lora" if kind in EXPORTED else "LoRA and LoCon are supported"
            raise UnsupportedModelError(f"{path} is a {kind}, which is no plain LoRA", path=path, hint=hint)
    _check_family(path, header, parameters)
    layers, unknown, deeper = _layers(header, _names(parameters))
    if not layers and not deeper:
        first = ", ".join(name[:80] for name in list(header.tensors)[:3])
        message = f"none of the {len(header.tensors)} tensors of {path} belongs to a layer of this model: {first}, ..."
        raise CheckpointError(message, path=path, hint="is it a LoRA, and for this kind of model?")
    told = _told(path, header)
    alphas = {name: _alpha(header, name, parameters[name], tensors, told) for name, tensors in layers.items()}
    return _Plan(header, layers, alphas, (*deeper, *unknown), deeper)


def _names(parameters: Iterable[str]) -> dict[str, str]:
    """What files call the layers, dots made underscores, behind the name of the network: the parameters."""
    names: dict[str, str] = {}
    for parameter in parameters:
        flat = parameter.removesuffix(".weight").replace(".", "_")
        names |= {re.sub(new, old, flat): parameter for new, old in _OLD.items()} | {flat: parameter}
    return names


def _layers(
    header: Header, names: Mapping[str, str]
) -> tuple[dict[str, dict[str, str]], tuple[str, ...], dict[str, str]]:
    """For each parameter its tensors by what they are, the tensors that are for none, and those for deeper layers."""
    layers: dict[str, dict[str, str]] = {}
    unknown, deeper = [], {}
    depth = max((int(match[1]) + 1 for name in names if (match := _DEEP.fullmatch(name))), default=0)
    for name in header.tensors:
        match = _TENSOR.fullmatch(name) if len(name) <= LONGEST_NAME else None
        flat = match["layer"].replace(".", "_") if match else ""
        start, network = next((pair for pair in _NETWORKS if flat.startswith(pair[0])), ("", ""))
        rest = flat.removeprefix(start).removeprefix("base_model_model_").removeprefix("text_model_")
        rest = rest.replace("_processor_", "_")
        keys = [f"{each}_{rest}" for each in ([network] if network else ["unet", "text"])]
        parameter = next((names[key] for key in keys if key in names), None)
        if match and parameter:
            layers.setdefault(parameter, {})[_PARTS.get(match["part"], match["other"])] = name
        elif (deep := _DEEP.fullmatch(keys[-1])) and int(deep[1]) >= depth:
            deeper[name] = f"text.encoder.layers.{deep[1]}.{deep[2]}"
        else:
            unknown.append(name)
    return layers, tuple(unknown), deeper


def _alpha(
    header: Header, parameter: str, shape: Shape, tensors: Mapping[str, str], told: Mapping[str, Any]
) -> float | None:
    """What PEFT says of the layer's alpha. The tensors must fit the parameter, and be of a type that can be read."""
    for name in tensors.values():
        if (dtype := header.tensors[name].dtype) not in tensorfile.READABLE:
            message = f"{name} holds {dtype} numbers; F16, BF16, F32 and F64 are supported"
            raise UnsupportedModelError(message, hint="get the LoRA in fp16, bf16 or fp32")
    shapes = {part: header.tensors[name].shape for part, name in tensors.items()}
    if math.prod(shapes.get("alpha", ())) != 1:
        raise CheckpointError(f"it is broken: {tensors['alpha']} {list(shapes['alpha'])} is not one number")
    if not shapes.keys() & {"up", "down"}:
        return None
    if not {"up", "down"} <= shapes.keys():
        raise CheckpointError(f"it is broken: {min(tensors.values())} has no counterpart")
    up, down, mid = shapes["up"], shapes["down"], shapes.get("mid")
    rank = down[0] if down else 0
    inputs = math.prod(shape[1:] if mid is None else shape[1:2])
    fits = up[:1] == shape[:1] and math.prod(up) == shape[0] * rank and math.prod(down) == rank * inputs
    if not rank or not fits or mid not in (None, (rank, rank, *shape[2:])):
        message = f"{tensors['up']} {list(up)} and its counterpart {list(down)} fit no layer of {list(shape)}"
        raise UnsupportedModelError(f"it is for another model: {message}")
    return _told_alpha(parameter, rank, told)


def _told(path: Path, header: Header) -> dict[str, Any]:
    """The settings that PEFT writes into the metadata, or into a file beside a LoRA of one network."""
    beside = path.with_name("adapter_config.json")
    text = header.metadata.get("lora_adapter_metadata", "{}").encode("utf-8", "replace")
    if path.stem == "adapter_model" and beside.is_file():
        with open_regular(Path(os.path.realpath(beside))) as file:
            text = file.read(strict.LARGEST + 1)
    try:
        tree = strict.parse(text)
        for name, value in strict.decode(dict, tree, "the settings").items():
            if value is not None and (kind := _SETTINGS.get(name.rpartition(".")[2])):
                strict.decode(kind, value, name)
    except ManifestError as error:
        message = f"{path}: the settings of PEFT that belong to it are damaged: {error.message}"
        raise CheckpointError(message, path=path) from error
    return dict(tree)


def _told_alpha(parameter: str, rank: int, told: Mapping[str, Any]) -> float | None:
    network, _, layer = parameter.removesuffix(".weight").partition(".")
    prefix = {"text": "text_encoder.", "text2": "text_encoder_2."}.get(network, "unet.")
    own = {**told, **{key.removeprefix(prefix): value for key, value in told.items() if key.startswith(prefix)}}
    patterns = own.get("alpha_pattern") or {}
    alpha = next((patterns[end] for end in patterns if layer.endswith(end)), own.get("lora_alpha"))
    if alpha is None:
        return None
    return alpha * math.sqrt(rank) if own.get("use_rslora") else float(alpha)  # Kalajdzievski 2023


def _check_family(path: Path, header: Header, parameters: Mapping[str, Shape]) -> None:
    """UnsupportedModelError where it was made for a model that reads another context, or has more text encoders."""
    own = next((shape[1] for name, shape in parameters.items() if name.endswith("attn2.to_k.weight")), None)
    downs = (entry.shape for name, entry in header.tensors.items() if _READS_CONTEXT.search(name))
    width = next((shape[1] for shape in downs if len(shape) > 1), None)
    two = any(name.startswith(("lora_te2_", "text_encoder_2.")) for name in header.tensors)
    second = any(name.startswith("text2.") for name in parameters)
    if None not in (own, width) and own != width:
        family = WIDTHS.get(width or 0, "another model")
        message = f"{path} is a LoRA for {family}: its layers read a context {width} wide"
        raise UnsupportedModelError(f"{message}, this model's {own}", path=path)
    if two and not second:
        message = f"{path} is a LoRA for SDXL: it changes two text encoders, this model has one"
        raise UnsupportedModelError(message, path=path)
