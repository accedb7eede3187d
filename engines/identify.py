"""What a file of weights is, from its header alone: kind, family, what it predicts, what its makers wrote into it.

Reads no tensor but the single numbers that a LoRA keeps beside its matrices. Guesses nothing: what is not said is None.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, NamedTuple

from clipskip.engines import files, tensorfile
from clipskip.engines.errors import CheckpointError
from clipskip.engines.tensorfile import Header


class Mark(NamedTuple):
    """A kind of file, the family of its model where that follows, and parts of its tensors' names."""

    kind: str
    family: str | None
    parts: tuple[str, ...]


WHOLE = "a whole SD 1.x model in one file"
MARKS = {  # how messages call a file -> what it is told from, the surest first
    "SDXL": Mark("checkpoint", "SDXL", ("conditioner.embedders.1",)),
    "an SDXL refiner": Mark("checkpoint", "SDXL refiner", ("conditioner.embedders.0.model",)),
    "SD 2.x": Mark("checkpoint", "SD 2.x", ("cond_stage_model.model.",)),
    "SD 3": Mark("checkpoint", "SD 3", ("joint_blocks",)),
    "Flux": Mark("checkpoint", "Flux", ("double_blocks",)),
    "a ControlNet": Mark("ControlNet", None, ("control_model", "controlnet_")),
    "a DoRA": Mark("DoRA", None, ("dora_scale",)),
    "a LyCORIS": Mark("LyCORIS", None, ("hada_w", "lokr_w")),
    "a LoRA": Mark("LoRA", None, ("lora_", ".lora")),
    "a textual inversion": Mark("textual inversion", None, ("string_to_param", "emb_params", "clip_g", "clip_l")),
    WHOLE: Mark("checkpoint", "SD 1.x", ("cond_stage_model.transformer",)),
    "the moving averages of a training run": Mark("checkpoint", None, ("model_ema.",)),
    "a U-Net in one file": Mark("checkpoint", None, ("model.diffusion_model.",)),
    "TAESD, a tiny VAE": Mark("tiny VAE", None, ("decoder.layers.", "3.conv.0.weight")),
    "a U-Net or VAE": Mark("U-Net or VAE", None, ("down_blocks.0.resnets",)),
    "a text encoder": Mark("text encoder", None, ("encoder.layers",)),
    "a VAE in one file": Mark("VAE", None, ("first_stage_model", "decoder.up")),
}
PARTS = {  # of a model, where the names say of which a tensor is
    "text encoder": ("cond_stage_model.", "conditioner.", "lora_te", "text_encoder"),
    "U-Net": ("model.diffusion_model.", "lora_unet_", "unet."),
    "VAE": ("first_stage_model.",),
    "moving averages": ("model_ema.",),
}
VECTORS = {768: "SD 1.x", 1024: "SD 2.x", 1280: "SDXL"}  # of inversions, by their width
WIDTHS = {768: "SD 1.x", 1024: "SD 2.x", 2048: "SDXL"}  # of what a U-Net's cross-attention reads
CHANNELS = {9: "an inpainting model (9 channels)", 8: "edits pictures by instruction (8 channels)"}  # of a U-Net
PARAMETERIZATION = re.compile(r"""(?m)(?:^|[{,])[ \t]*["']?parameterization["']?[ \t]*:[ \t]*["']?(\w{1,40})""")
ZERO_SNR = re.compile(
    r"""(?mi)(?:^|[{,])[ \t]*["']?(?:zero_terminal_snr|rescale_betas_zero_snr|ztsnr)["']?[ \t]*:[ \t]*["']?true\b"""
)
BESIDE = "the .yaml beside it"
PREDICTIONS = {"v": "v_prediction", "eps": "epsilon"}  # of other programs
TOLD = (  # of what trainers write, what helps to use a file
    "modelspec.title", "modelspec.architecture", "modelspec.resolution", "modelspec.prediction_type",
    "modelspec.encoder_layer", "modelspec.trigger_phrase", "modelspec.usage_hint", "ss_base_model_version",
    "ss_sd_model_name", "ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_clip_skip",
)  # fmt: skip
_DOWN = re.compile(r"lora[_.]down|lora_A|hada_w1_b")  # a matrix of [rank, width that it reads]
_READS = re.compile(r"attn2[_.].*to_k|self_attn[_.]q_proj|token_embedding")  # has the text's width on its second axis
_LATENTS = re.compile(r"(?:.*\.)?decoder\.(?:conv_in|layers\.0|1)\.weight|1\.weight")  # a decoder's first layer
_FORMATS = {"F16": "<e", "F32": "<f", "F64": "<d"}
_ADVICE = re.compile(r"clip[ _-]?skip\W{0,3}(?:of |is |at )?(\d{1,2})(?!\d)", re.IGNORECASE)
_MOST = 13  # clip skips of SD 1.x and SDXL
_BLOCK = 1 << 20


@dataclass(frozen=True)
class FileFacts:
    """What is known of a file of weights. `parameters` and `tensors` are by part of the model, or under its kind."""

    kind: str
    family: str | None
    size: int  # bytes
    parameters: Mapping[str, int]
    tensors: Mapping[str, int]
    precisions: Mapping[str, int]  # safetensors' name of a type -> how many numbers have it
    prediction: str | None
    prediction_source: str | None
    missing: tuple[str, ...]  # parts of a checkpoint that are not in it
    remarks: tuple[str, ...]
    ranks: tuple[int, ...]  # of a LoRA
    alphas: tuple[float, ...]
    training: Mapping[str, str]
    suggested_clip_skip: int | None
    suggested_because: str
    hashes: Mapping[str, str] = field(default_factory=dict)


def describe_keys(names: Iterable[str]) -> str | None:
    """A guess at what a file with tensors of these names is."""
    names = list(names)
    marked = (what for what, mark in MARKS.items() if any(part in name for part in mark.parts for name in names))
    return next(marked, None)


def examine(path: Path, hashes: bool = False) -> FileFacts:
    """The facts of a safetensors file. CheckpointError; UnsafeFileError or UnsupportedModelError for other formats."""
    try:
        with files.open_regular(path.resolve()) as raw, BufferedReader(raw) as file:
            size = files.state_of(raw)[0]
            header = tensorfile.read_header(file, size)
            yaml, beside = b"", path.with_suffix(".yaml")
            if beside.is_file():
                with files.open_regular(beside.resolve()) as text:
                    yaml = text.read(_BLOCK)
            said = yaml.decode("utf-8", "replace")
            return _facts(header, size, said, _alphas(file, header), _hashes(file, header.data) if hashes else {})
    except files.NotAFileError as error:
        raise CheckpointError(f"{path} {error}", path=path) from error
    except CheckpointError as error:
        raise error.about(path) from error


def _facts(header: Header, size: int, yaml: str, alphas: tuple[float, ...], hashes: Mapping[str, str]) -> FileFacts:
    tensors, (kind, family) = header.tensors, _kind_and_family(header)
    parameters, counts, precisions = Counter[str](), Counter[str](), Counter[str]()
    for name, entry in tensors.items():
        part = next((part for part, starts in PARTS.items() if name.startswith(starts)), kind)
        parameters[part] += math.prod(entry.shape)
        counts[part] += 1
        precisions[entry.dtype] += math.prod(entry.shape)
    whole = kind == "checkpoint"
    said = said_predictions(header, yaml, BESIDE) if whole or kind == "U-Net" else iter(())
    prediction, source = next(said, (None, None))
    skip, because = suggested_clip_skip(header.metadata, family)
    ranks = {entry.shape[0] for name, entry in tensors.items() if _DOWN.search(name) and entry.shape}
    missing = [part for part in ("text encoder", "U-Net", "VAE") if whole and part not in counts]
    first = tensors.get("model.diffusion_model.input_blocks.0.0.weight", tensors.get("conv_in.weight"))
    remarks = [CHANNELS[size] for size in (first.shape[1:2] if first else ()) if size in CHANNELS]
    remarks += ["zero terminal SNR"] if says_zero_snr(header, yaml) else []
    told = {key: header.metadata[key] for key in TOLD if key in header.metadata}
    return FileFacts(
        kind, family, size, dict(parameters), dict(counts), dict(precisions), prediction, source, tuple(missing),
        tuple(remarks), tuple(sorted(ranks)), alphas, told, skip, because, hashes,
    )  # fmt: skip


def _kind_and_family(header: Header) -> tuple[str, str | None]:
    """From names; a family also from widths: of what a U-Net reads of the text, of inversions' vectors, of latents."""
    shapes = {name: entry.shape for name, entry in header.tensors.items() if len(entry.shape) > 0}
    kind, family, _ = MARKS[what] if (what := describe_keys(header.tensors)) else Mark("unknown", None, ())
    if (
        kind == "unknown"
        and len(shapes) == 1
        and all(len(shape) < 3 and shape[-1] in VECTORS for shape in shapes.values())
    ):
        kind = "textual inversion"
    elif kind == "U-Net or VAE":
        kind = "U-Net" if any("attn2" in name for name in shapes) else "VAE"
    if any(name.startswith(("lora_te1_", "lora_te2_", "text_encoder_2.", "clip_g")) for name in shapes):
        return kind, "SDXL"
    if kind in ("VAE", "tiny VAE"):
        channels = {shape[1] for name, shape in shapes.items() if _LATENTS.fullmatch(name) and len(shape) == 4}
        return kind, {4: "SD 1.x, SD 2.x or SDXL", 16: "SD 3 or Flux"}.get(next(iter(channels), 0))
    if kind == "textual inversion":
        return kind, WIDTHS.get(max((shape[-1] for shape in shapes.values()), default=0))
    reads = [name for name, shape in shapes.items() if _READS.search(name) and shape[1:2] and shape[1] in WIDTHS]
    width = shapes[min(reads, key=lambda name: "attn2" not in name)][1] if reads else 0
    return kind, family or WIDTHS.get(width)


def said_predictions(header: Header, yaml: str, beside: str) -> Iterator[tuple[str, str]]:
    """What a U-Net predicts, and who says so, the surest first; `yaml` is the text of the file called `beside`."""
    if "v_pred" in header.tensors:
        yield "v_prediction", "the marker v_pred"
    said = {beside: match[1]} if (match := PARAMETERIZATION.search(yaml)) else {}
    said |= {key: header.metadata.get(key, "") for key in ("modelspec.prediction_type", "modelspec.predict_key")}
    for source, word in said.items():
        if word := word.strip().lower():
            yield PREDICTIONS.get(word, word), source
    if header.metadata.get("ss_v_parameterization") == "True":
        yield "v_prediction", "ss_v_parameterization"


def says_zero_snr(header: Header, yaml: str) -> bool:
    """Whether the betas are said to be rescaled to a signal-to-noise ratio of zero."""
    marked = "ztsnr" in header.tensors or header.metadata.get("ss_zero_terminal_snr") == "True"
    return marked or ZERO_SNR.search(yaml) is not None


def suggested_clip_skip(metadata: Mapping[str, str], family: str | None) -> tuple[int | None, str]:
    """The clip skip that the makers of a file wrote into it, and where; None, and why."""
    if family == "SD 2.x":
        return None, "SD 2.x has one depth only"
    said = {key: metadata[key].strip() for key in ("ss_clip_skip", "modelspec.encoder_layer") if key in metadata}
    texts = {key: metadata.get(key, "") for key in ("modelspec.usage_hint", "modelspec.description")}
    said |= {key: match[1] for key, text in texts.items() if (match := _ADVICE.search(text))}
    for key, value in said.items():
        if value != "None" and (skip := clip_skip_of(value)):
            return skip, f"{key} says so"
    if said.get("ss_clip_skip") == "None":
        return 1, "it was trained without clip skip (ss_clip_skip: None)"
    return None, "nothing in the file says one"


def clip_skip_of(text: str) -> int | None:
    """The clip skip that a trainer wrote down as this, by its value; where it trained without one, it wrote "None"."""
    match = re.fullmatch(r"0*([1-9]\d?)", text.strip(), re.ASCII)
    skip = 1 if text.strip() == "None" else int(match[1]) if match else 0
    return skip if 1 <= skip <= _MOST else None


def _alphas(file: BinaryIO, header: Header) -> tuple[float, ...]:
    found = set()
    for name, entry in header.tensors.items():
        if name.endswith(".alpha") and math.prod(entry.shape) == 1 and entry.dtype in (*_FORMATS, "BF16"):
            file.seek(header.data + entry.begin)
            data, form = file.read(entry.end - entry.begin), _FORMATS.get(entry.dtype, "<f")
            found.add(struct.unpack(form, bytes(2) + data if entry.dtype == "BF16" else data)[0])
    return tuple(sorted(found))


def _hashes(file: BinaryIO, data: int) -> dict[str, str]:
    """The file's hashes as programs and model sites show them; its tensors begin at byte `data`."""
    whole, body, old, place = hashlib.sha256(), hashlib.sha256(), hashlib.sha256(), 0
    file.seek(0)
    while block := file.read(_BLOCK):
        whole.update(block)
        body.update(block[max(0, data - place) :])
        old.update(block[: 1 << 16] if place == _BLOCK else b"")
        place += len(block)
    digest, tensors = whole.hexdigest(), body.hexdigest()
    return {
        "SHA-256": digest, "AutoV2": digest[:10], "AutoV3": tensors[:12], "sshs_model_hash": tensors,
        "AutoV1": old.hexdigest()[:8],
    }  # fmt: skip
