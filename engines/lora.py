"""LoRA files: which parameters of a network one changes, and by how much. Knows nothing of graphs and requests."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipskip.engines import tensorfile
from clipskip.engines.errors import CheckpointError, NumericalError, RequestError, UnsupportedModelError
from clipskip.engines.files import NotAFileError, open_regular
from clipskip.engines.tensorfile import Header
from clipskip.engines.weights import Origin, Shape

Floats = npt.NDArray[np.float32]
FAMILIES = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL"}  # by the width of the context that a U-Net reads
OTHERS = {  # what a layer's tensors are called in adapters of other kinds
    "LoHa": ("hada_",), "LoKr": ("lokr_",), "DoRA": ("dora_scale", "lora_magnitude_vector"), "OFT": ("oft_",),
    "GLoRA": ("a1.", "a2.", "b1.", "b2."), "(IA)3": ("on_input",),
}  # fmt: skip
EXPORTED = ("LoHa", "LoKr", "DoRA")  # those that an export can merge
MOST = 10.0  # a weight that anybody uses is far below
_WEIGHTS = r"(?:[+-]?(?:\d+\.?\d*|\.\d+)(?::|\Z)){1,2}\Z"
_PARTS = {"up": "up", "B": "up", "down": "down", "A": "down", "mid": "mid"}
_TENSOR = re.compile(
    r"(?P<layer>.+?)[._](?:lora(?:_linear_layer)?[._](?P<part>up|down|mid|A|B)(?:\.(?!weight)\w+)?\.weight"
    r"|(?P<other>alpha|dora_scale|lora_magnitude_vector|hada_\w+|lokr_\w+|oft_\w+|on_input|[ab][12]\.weight)(?:\.\w+)?)"
)
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
    """A LoRA file, read once and whole. `layers`: by the parameter that is changed; `unknown`: names of no use here."""

    name: str
    sha256: str
    layers: Mapping[str, Layer]
    unknown: tuple[str, ...]
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
    matches = [re.match(rf"{network}\.encoder\.layers\.(\d+)\.", parameter) for parameter in lora.layers]
    layers = [int(match[1]) for match in matches if match]
    return sum(layer >= kept for layer in layers), len(layers)


def read(path: str | os.PathLike[str], parameters: Mapping[str, Shape], also: Sequence[str] = ()) -> Lora:
    """The LoRA in a .safetensors file, for the network with these parameters ("text.…", "unet.…": shape).

    Layouts of kohya (`lora_unet_*`, `lora_te_*`), diffusers and PEFT; linear layers and convolutions. `also`: kinds of
    `OTHERS` that the caller merges itself. CheckpointError where the file is broken or none of it belongs to the
    network, UnsafeFileError for a pickle, UnsupportedModelError for another model's or kind's.
    """
    path, lora = Path(path), opened(path, also)
    header = lora.header
    _check_family(path, header, parameters)
    tensors, unknown = _layers(header, _names(parameters))
    if not tensors:
        first = ", ".join(name[:80] for name in list(header.tensors)[:3])
        message = f"none of the {len(header.tensors)} tensors of {path} belongs to a layer of this model: {first}, ..."
        raise CheckpointError(message, path=path, hint="is it a LoRA, and for this kind of model?")
    told = _told(path, header)
    layers = {name: _layer(lora, name, parameters[name], parts, told) for name, parts in tensors.items()}
    return replace(lora, layers=layers, unknown=tuple(unknown))


def opened(path: str | os.PathLike[str], also: Sequence[str] = ()) -> Lora:
    """The LoRA in a file, for no network yet. CheckpointError, UnsafeFileError, UnsupportedModelError."""
    path = Path(path)
    try:
        with open_regular(Path(os.path.realpath(path))) as file:
            data = file.read()
        header = tensorfile.read_header(BytesIO(data), len(data))
    except NotAFileError as error:
        raise CheckpointError(f"{path} {error}", path=path) from error
    except CheckpointError as error:
        raise error.about(path) from error
    parts = {match["other"] or "" for name in header.tensors if (match := _TENSOR.fullmatch(name))}
    for kind, marks in OTHERS.items():
        if kind not in also and any(part.startswith(marks) for part in parts):
            hint = "merge it at export: --lora" if kind in EXPORTED else "LoRA and LoCon are supported"
            raise UnsupportedModelError(f"{path} is a {kind}, which is no plain LoRA", path=path, hint=hint)
    return Lora(path.stem, hashlib.sha256(data).hexdigest(), {}, (), header, data)


def _names(parameters: Iterable[str]) -> dict[str, str]:
    """What files call the layers, dots made underscores, behind the name of the network: the parameters."""
    names: dict[str, str] = {}
    for parameter in parameters:
        flat = parameter.removesuffix(".weight").replace(".", "_")
        names |= {re.sub(new, old, flat): parameter for new, old in _OLD.items()} | {flat: parameter}
    return names


def _parameter(layer: str, names: Mapping[str, str]) -> str | None:
    flat = layer.replace(".", "_")
    start, network = next((pair for pair in _NETWORKS if flat.startswith(pair[0])), ("", ""))
    rest = flat.removeprefix(start).removeprefix("base_model_model_").removeprefix("text_model_")
    rest = rest.replace("_processor_", "_")
    networks = (network,) if network else ("unet", "text")
    return next((names[key] for each in networks if (key := f"{each}_{rest}") in names), None)


def _layers(header: Header, names: Mapping[str, str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """For each parameter its tensors by what they are, and the tensors that are for none."""
    layers: dict[str, dict[str, str]] = {}
    unknown = []
    for name in header.tensors:
        match = _TENSOR.fullmatch(name)
        if match is None or (parameter := _parameter(match["layer"], names)) is None:
            unknown.append(name)
        else:
            layers.setdefault(parameter, {})[_PARTS.get(match["part"], match["other"])] = name
    return layers, unknown


def _layer(lora: Lora, parameter: str, shape: Shape, tensors: Mapping[str, str], told: Mapping[str, Any]) -> Layer:
    """The layer, whose tensors must fit the parameter."""
    shapes = {part: lora.header.tensors[name].shape for part, name in tensors.items()}
    alpha = float(lora.tensor(tensors["alpha"]).reshape(-1)[0]) if "alpha" in tensors else None
    if "up" in shapes or "down" in shapes:
        if not {"up", "down"} <= shapes.keys():
            raise CheckpointError(f"{lora.name} is broken: {min(tensors.values())} has no counterpart")
        up, down, mid = shapes["up"], shapes["down"], shapes.get("mid")
        rank = down[0] if down else 0
        inputs = math.prod(shape[1:] if mid is None else shape[1:2])
        fits = up[:1] == shape[:1] and math.prod(up) == shape[0] * rank and math.prod(down) == rank * inputs
        if not rank or not fits or mid not in (None, (rank, rank, *shape[2:])):
            message = f"{tensors['up']} {list(up)} and its counterpart {list(down)} fit no layer of {list(shape)}"
            raise UnsupportedModelError(f"{lora.name} is for another model: {message}")
        alpha = _told_alpha(parameter, rank, told) if alpha is None else alpha
    return Layer(shape, tensors, alpha)


def _told(path: Path, header: Header) -> dict[str, Any]:
    """The settings that PEFT writes into the metadata, or into a file beside a LoRA of one network."""
    beside = path.with_name("adapter_config.json")
    text = header.metadata.get("lora_adapter_metadata", "{}")
    if path.stem == "adapter_model" and beside.is_file():
        text = beside.read_text(encoding="utf-8", errors="replace")
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError):
        tree = None
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: the settings of PEFT that belong to it are damaged", path=path)
    return tree


def _told_alpha(parameter: str, rank: int, told: Mapping[str, Any]) -> float | None:
    network, _, layer = parameter.removesuffix(".weight").partition(".")
    prefix = {"text": "text_encoder.", "text2": "text_encoder_2."}.get(network, "unet.")
    own = {**told, **{key.removeprefix(prefix): value for key, value in told.items() if key.startswith(prefix)}}
    patterns = own.get("alpha_pattern") or {}
    alpha = next((patterns[end] for end in patterns if layer.endswith(end)), own.get("lora_alpha"))
    if not isinstance(alpha, (int, float)):
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
        family = FAMILIES.get(width or 0, "another model")
        message = f"{path} is a LoRA for {family}: its layers read a context {width} wide"
        raise UnsupportedModelError(f"{message}, this model's {own}", path=path)
    if two and not second:
        message = f"{path} is a LoRA for SDXL: it changes two text encoders, this model has one"
        raise UnsupportedModelError(message, path=path)
