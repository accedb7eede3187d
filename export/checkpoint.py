"""What a user calls a checkpoint, as named parts: a folder in diffusers' layout, or one .safetensors file of SD 1.x.

A file holds weights only: its configurations are SD 1.x's own and its tokenizer is CLIP's. Reads no tensor, imports
no large library, and knows nothing of what configurations mean.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from clipskip.engines import files, tensorfile
from clipskip.engines.errors import CheckpointError, ExportError, UnsafeFileError, UnsupportedModelError
from clipskip.engines.tensorfile import Entry
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
_VAE = tuple(f"first_stage_model.{half}." for half in ("encoder", "decoder", "quant_conv", "post_quant_conv"))
_BESIDE = ("text_projection.weight", "logit_scale")  # of the CLIP that the encoder was cut out of


@dataclass(frozen=True)
class Part:
    """One network: its configuration, and where its weights are."""

    name: str
    config: Config
    weights: Path
    tensors: Mapping[str, Entry]  # those of the file's header that belong to it
    modern: Callable[[str], str]  # the name that transformers or diffusers use for a tensor


@dataclass(frozen=True)
class Checkpoint:
    """All that an export reads. `sources` holds the SHA-256 of each file, `states` what tells when one is replaced."""

    root: Path
    text: Part
    unet: Part
    vae: Part
    index: Config
    scheduler: Config
    tokenizer: Mapping[str, bytes]  # vocab.json and merges.txt
    sources: Mapping[str, str]
    states: Mapping[Path, State]

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Token -> id."""
        return dict(json.loads(self.tokenizer["vocab.json"]))

    def check_unchanged(self) -> None:
        """ExportError where a file is not the one that was hashed."""
        for path, state in self.states.items():
            if _state(path) != state:
                raise ExportError(f"{path} changed while it was being read", path=path, hint="export again")


def open_checkpoint(path: Path) -> Checkpoint:
    """Look at every file of the checkpoint and hash it. CheckpointError says what is wrong with which file."""
    try:
        root = path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"no checkpoint at {path}: {getattr(error, 'strerror', error)}", path=path) from error
    if not root.is_dir():
        return _open_file(root)

    def part(name: str, stem: str = "diffusion_pytorch_model") -> Part:
        config, weights = _json(root / name / "config.json"), _weights(root / name, stem)
        return Part(name, config, weights, _header(weights), names.from_folder)

    parts = part("text_encoder", "model"), part("unet"), part("vae")
    scheduler, index = root / "scheduler" / "scheduler_config.json", root / "model_index.json"
    settings = _json(scheduler)
    tokens, tokenizer_paths = _tokens(root / "tokenizer")
    configs = [root / part.name / "config.json" for part in parts]
    paths = [*configs, scheduler, *(part.weights for part in parts), *tokenizer_paths]
    indexed = _json(index) if index.exists() else {}
    return Checkpoint(root, *parts, indexed, settings, tokens.files(), *_read_states(paths, root))


def _open_file(path: Path) -> Checkpoint:
    """SD 1.x in one file, told from what looks like it. A wrong shape is found later."""
    header = _header(path)
    kind = names.describe_keys(header)
    first = header.get("model.diffusion_model.input_blocks.0.0.weight")
    what = None
    if kind != names.WHOLE and not any(key.startswith(_UNET) for key in header):
        what = f"is {kind or 'of an unknown kind'}; a whole SD 1.x model is supported"
    elif kind in names.OTHER_MODELS:
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
            raise CheckpointError(f"{path} has no {name} in it (no tensor {prefixes[0]}*)", path=path)
        return Part(name, config, path, mine, modern)

    text = part("text_encoder", TEXT, _TEXT, names.text_from_file)
    unet = part("unet", UNET, _UNET, partial(names.unet_from_file, layers=UNET["layers_per_block"]))
    vae = part("vae", VAE, _VAE, partial(names.vae_from_file, blocks=len(VAE["block_out_channels"])))
    scheduler = {"prediction_type": "v_prediction" if "v_pred" in header else "epsilon"}
    return Checkpoint(path, text, unet, vae, {}, scheduler, tokenizer.clip(), *_read_states([path], path.parent))


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


def _header(path: Path) -> Mapping[str, Entry]:
    """The tensors of the file by name. CheckpointError where the file is not whole, UnsafeFileError for a pickle."""
    size = _check_readable(path).st_size
    try:
        with path.open("rb") as file:
            return tensorfile.read_header(file, size).tensors
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


def _read_states(paths: Iterable[Path], root: Path) -> tuple[dict[str, str], dict[Path, State]]:
    """SHA-256 of each file by its name below `root`, and the states that the files had before."""
    states, hashes = {path: _state(path) for path in paths}, {}
    for path in states:
        with path.open("rb", buffering=0) as file:
            hashes[path.relative_to(root).as_posix()] = files.sha256_of(file)
    return hashes, states
