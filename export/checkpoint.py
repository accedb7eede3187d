"""What a user calls a checkpoint, as named parts: a folder in diffusers' layout, or one .safetensors file of SD 1.x.

A file holds weights only: its configurations are SD 1.x's own and its tokenizer is CLIP's. Reads no tensor, imports
no large library, and knows nothing of what configurations mean.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

from clipskip.engines import files, hints, identify, tensorfile
from clipskip.engines.errors import CheckpointError, ExportError, UnsafeFileError, UnsupportedModelError
from clipskip.engines.store import MANIFEST
from clipskip.engines.tensorfile import Entry, Header
from clipskip.export import names, tokenizer
from clipskip.export.tokenizer import Tokens

State = tuple[int, int, int, int]
Config = Mapping[str, Any]
LARGEST_JSON = 16 << 20  # bytes; a CLIP vocabulary has one
UNET: Config = {
    "sample_size": 64, "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768,
    "attention_head_dim": 8, "layers_per_block": 2,
}  # fmt: skip
VAE: Config = {
    "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4, "layers_per_block": 2, "latent_channels": 4, "scaling_factor": 0.18215,
}  # fmt: skip
TEXT: Config = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
}  # fmt: skip
_TEXT = ("cond_stage_model.transformer.",)
_UNET = ("model.diffusion_model.",)
_BARE_VAE = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_VAE = tuple(f"first_stage_model.{half}" for half in _BARE_VAE)
_BESIDE = ("text_projection.weight", "logit_scale")  # of the CLIP that the encoder was cut out of
_FLOATS = {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True)
class Part:
    """One network: its configuration and where that is, and where its weights are."""

    name: str
    config: Config
    settings: Path
    weights: Path
    tensors: Mapping[str, Entry]  # those of the file's header that belong to it
    modern: Callable[[str], str]  # the name that transformers or diffusers use for a tensor

    def __post_init__(self) -> None:
        dtypes = {entry.dtype for name, entry in self.tensors.items() if not name.endswith("position_ids")}
        if strange := sorted(dtypes - _FLOATS):
            hint = "quantised weights cannot be exported: get the model in fp16, bf16 or fp32"
            message = f"{self.weights} holds {', '.join(strange)} weights"
            raise UnsupportedModelError(message, path=self.weights, hint=hint)


@dataclass(frozen=True)
class Checkpoint:
    """All that an export reads. `sources` holds the SHA-256 of each file, `states` what tells when one is replaced."""

    root: Path
    texts: tuple[Part, ...]  # the text encoders
    unet: Part
    vae: Part
    index: Config
    scheduler: Config
    schedule: Path  # where that is said
    tokenizer: Mapping[str, bytes]  # vocab.json and merges.txt
    sources: Mapping[str, str]
    states: Mapping[Path, State]

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Token -> id."""
        return dict(json.loads(self.tokenizer["vocab.json"]))

    @property
    def weights(self) -> int:
        """How many numbers the networks are."""
        parts = *self.texts, self.unet, self.vae
        return sum(math.prod(entry.shape) for part in parts for entry in part.tensors.values())

    def holds(self, path: Path) -> bool:
        """Whether this is the folder that the checkpoint is in, or one inside of it."""
        return path == (self.root if self.root.is_dir() else self.root.parent) or self.root in path.parents

    def check_unchanged(self) -> None:
        """ExportError where a file is not the one that was hashed."""
        check_unchanged(self.states)


def check_unchanged(states: Mapping[Path, State]) -> None:
    """ExportError where a file is not the one that was there before."""
    for path, state in states.items():
        if _state(path) != state:
            raise ExportError(f"{path} changed while it was being read", path=path, hint="export again")


def open_checkpoint(path: Path, vae: Path | None = None) -> Checkpoint:
    """Look at every file of the checkpoint and hash it. CheckpointError says what is wrong with which file.

    `vae`: a file or folder with another VAE.
    """
    root = _resolved(path)
    return (_open_folder if root.is_dir() else _open_file)(root, vae)


def _resolved(path: Path, what: str = "checkpoint") -> Path:
    try:
        root = path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        hint, why = None, getattr(error, "strerror", error)
        shown = re.sub(r"^(\w+):/+", r"\1://", str(path))  # as it was typed, before it was taken for a path
        if "://" in shown:
            why, hint = "no URL is opened", "nothing is downloaded: fetch it, and give the path of the file or folder"
        elif re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", shown) and not path.parent.exists():
            hint = "a model on a hub has to be downloaded first: give the folder that holds its model_index.json"
        raise CheckpointError(f"no {what} at {shown}: {why}", path=shown, hint=hint) from error
    if (root / MANIFEST).exists() and not (root / "unet").exists():
        hint = f"to make pictures from it: {hints.clipskip()} generate {quote(str(path))} PROMPT"
        raise CheckpointError(f"{path} is an engine store, no {what}", path=path, hint=hint)
    return root


def _open_folder(root: Path, vae: Path | None) -> Checkpoint:
    def part(name: str, stem: str = "diffusion_pytorch_model") -> Part:
        weights, settings = _weights(root / name, stem), root / name / "config.json"
        return Part(name, _json(settings), settings, weights, _header(weights).tensors, names.from_folder)

    text, unet = part("text_encoder", "model"), part("unet")
    coder = part("vae") if vae is None else _other_vae(vae, root / "vae" / "config.json")
    settings, index = root / "scheduler" / "scheduler_config.json", root / "model_index.json"
    scheduler, indexed = _json(settings), _json(index) if index.exists() else {}
    tokens, tokenizer_paths = _tokens(root / "tokenizer")
    parts = text, unet, coder
    paths = [settings, *(path for part in parts for path in (part.settings, part.weights)), *tokenizer_paths]
    return Checkpoint(
        root, (text,), unet, coder, indexed, scheduler, settings, tokens.files(), *_read_states(root, paths)
    )


def _open_file(path: Path, vae: Path | None) -> Checkpoint:
    """SD 1.x in one file, told from what looks like it. A wrong shape is found later."""
    whole = _header(path)
    header = whole.tensors
    kind = identify.describe_keys(header)
    first = header.get("model.diffusion_model.input_blocks.0.0.weight")
    what = None
    if not any(key.startswith(_UNET) for key in header) and any(key.startswith("model_ema.") for key in header):
        what = "holds only the moving averages of a training run (model_ema.*) as its U-Net; get the pruned model"
    elif kind != identify.WHOLE and not any(key.startswith(_UNET) for key in header):
        what = f"is {kind or 'of an unknown kind'}; a whole SD 1.x model is supported"
    elif kind in identify.OTHER_MODELS:
        what = f"is {kind}; SD 1.x is supported"
    elif first is not None and first.shape[1:2] == (9,):
        what = "is an inpainting model (9 channels); SD 1.x is supported"
    elif "ztsnr" in header:
        what = "has betas that are rescaled to a signal-to-noise ratio of zero"
    if what:
        raise UnsupportedModelError(f"{path} {what}", path=path)

    def part(name: str, config: Config, prefixes: tuple[str, ...], modern: Callable[[str], str]) -> Part:
        mine = {key: entry for key, entry in header.items() if key.startswith(prefixes) and not key.endswith(_BESIDE)}
        if not mine:
            hint = "give a VAE of SD 1.x in a file or folder of its own, with --vae" if prefixes is _VAE else None
            raise CheckpointError(f"{path} has no {name} in it (no tensor {prefixes[0]}*)", path=path, hint=hint)
        return Part(name, config, path, path, mine, modern)

    text = part("text_encoder", TEXT, _TEXT, names.text_from_file)
    unet = part("unet", UNET, _UNET, partial(names.unet_from_file, layers=UNET["layers_per_block"]))
    modern = partial(names.vae_from_file, blocks=len(VAE["block_out_channels"]))
    coder = part("vae", VAE, _VAE, modern) if vae is None else _other_vae(vae, None)
    beside = path.with_suffix(".yaml")
    yaml = _read(beside).decode("utf-8", errors="replace") if beside.is_file() else ""
    said, source = identify.said_prediction(whole, yaml)
    where = beside if source == identify.BESIDE else path
    scheduler = {"prediction_type": said} if said else {}
    read = _read_states(path, [path, coder.settings, coder.weights])
    return Checkpoint(path, (text,), unet, coder, {}, scheduler, where, tokenizer.clip(), *read)


def _other_vae(path: Path, config: Path | None) -> Part:
    """The VAE in a folder of diffusers' layout, or in a file. To a file belongs `config`, or SD 1.x's own."""
    root = _resolved(path, "VAE")
    if root.is_dir():
        folder = root / "vae" if (root / "vae").is_dir() else root
        weights, config = _weights(folder, "diffusion_pytorch_model"), folder / "config.json"
    else:
        weights, config = root, config if config and config.exists() else None
    header = _header(weights).tensors
    inside = any(key.startswith(_VAE) for key in header)
    mine = {key: entry for key, entry in header.items() if key.startswith(_VAE if inside else _BARE_VAE)}
    if not any(key.endswith("decoder.conv_in.weight") for key in mine):
        what = identify.describe_keys(header) or "of an unknown kind"
        raise CheckpointError(f"{weights} holds no VAE: it is {what}", path=weights, field="vae")
    modern = partial(names.vae_from_file, blocks=len(VAE["block_out_channels"]))
    return Part("vae", _json(config) if config else VAE, config or weights, weights, mine, modern)


def _weights(folder: Path, stem: str) -> Path:
    """The plain file if it is there, else the half-precision variant."""
    for path in (folder / f"{stem}.safetensors", folder / f"{stem}.fp16.safetensors"):
        if path.exists() or path.is_symlink():
            return path
    if others := sorted(folder.glob("*.safetensors")):
        if len(others) == 1:
            return others[0]
        raise CheckpointError(f"which of these is meant? {', '.join(map(str, others))}", path=folder)
    if pickles := sorted([*folder.glob("*.bin"), *folder.glob("*.ckpt"), *folder.glob("*.pt")]):
        hint = "only .safetensors files are read, for a pickle can run code; get the model in that format"
        raise UnsafeFileError(f"the weights are pickled: {pickles[0]}", path=pickles[0], hint=hint)
    raise CheckpointError(f"{folder / stem}.safetensors is missing", path=folder)


def _tokens(folder: Path) -> tuple[Tokens, list[Path]]:
    """The tokenizer, and the files that it is from."""
    vocabulary, merges, whole = (folder / name for name in ("vocab.json", "merges.txt", "tokenizer.json"))
    added = [path for path in [folder / "added_tokens.json"] if path.exists()]
    extra = {token: place for path in added for token, place in _json(path).items()}
    if whole.exists() and not (vocabulary.exists() and merges.exists()):
        tokens = Tokens.from_json(_json(whole), whole)
        return replace(tokens, added={**tokens.added, **extra}), [whole, *added]
    tree, lines = _json(vocabulary), _read(merges).decode("utf-8", errors="replace").replace("\r", "").split("\n")
    pairs = tuple(line for line in lines if line and not line.startswith("#version"))
    return Tokens(tree, pairs, extra, vocabulary, merges), [vocabulary, merges, *added]


def _json(path: Path) -> Config:
    try:
        tree = json.loads(_read(path))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({error})", path=path) from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path} holds no JSON object", path=path)
    return tree


def _read(path: Path) -> bytes:
    if not path.exists():
        raise CheckpointError(f"{path} is missing", path=path, hint="is this the folder of a Stable Diffusion model?")
    if _check_readable(path).st_size > LARGEST_JSON:
        raise CheckpointError(f"{path} is larger than {LARGEST_JSON} bytes", path=path)
    return path.read_bytes()


def _header(path: Path) -> Header:
    """What the file holds. CheckpointError where the file is not whole, UnsafeFileError for a pickle."""
    size = _check_readable(path).st_size
    try:
        with path.open("rb") as file:
            return tensorfile.read_header(file, size)
    except CheckpointError as error:
        raise error.about(path) from error


def _check_readable(path: Path) -> os.stat_result:
    """The state of a regular file that we may read; CheckpointError says why not. Links are followed."""
    try:
        state = path.stat()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}", path=path) from error
    if not stat.S_ISREG(state.st_mode):
        kind = "a folder" if stat.S_ISDIR(state.st_mode) else "a pipe or a device"
        raise CheckpointError(f"expected a file, found {kind}: {path}", path=path)
    if not os.access(path, os.R_OK):
        raise CheckpointError(f"no permission to read {path}", path=path, hint="check owner and mode")
    return state


def _state(path: Path) -> State:
    """What changes when a file is written or replaced."""
    state = path.stat()
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns


def _read_states(root: Path, paths: Iterable[Path]) -> tuple[dict[str, str], dict[Path, State]]:
    """SHA-256 of each file by its name below `root`, and the states that the files had before."""
    states, hashes = {path: _state(path) for path in paths}, {}
    for path in states:
        inside = path.relative_to(root).as_posix() if root in path.parents else f"another vae/{path.name}"
        with path.open("rb", buffering=0) as file:
            hashes[root.name if path == root else inside] = files.sha256_of(file)
    return hashes, states
