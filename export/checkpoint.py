"""What a user calls a checkpoint, as named parts: a folder in diffusers' layout, or one .safetensors file.

Reads no tensor, imports no large library, and knows nothing of what configurations mean.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from shlex import quote

from clipskip.engines import hints, identify
from clipskip.engines.errors import CheckpointError, UnsafeFileError
from clipskip.engines.lora import EXPORTED, Choice, check
from clipskip.engines.store import MANIFEST
from clipskip.export import names, onefile, tokenizer
from clipskip.export.parts import Config, Files, Part, read, read_header, read_json
from clipskip.export.tokenizer import Tokens


@dataclass(frozen=True)
class Checkpoint:
    """All that an export reads."""

    root: Path
    texts: tuple[Part, ...]  # the text encoders
    unet: Part
    vae: Part
    index: Config
    scheduler: Config
    schedule: Path  # where that is said
    tokenizer: Mapping[str, bytes]  # vocab.json and merges.txt
    files: Files
    notes: tuple[str, ...] = ()  # for the user
    loras: tuple[Choice, ...] = ()  # to be merged into the networks

    @property
    def sources(self) -> Mapping[str, str]:
        """The SHA-256 of each file, which takes a while the first time."""
        return self.files.sha256

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

    def with_loras(self, choices: Iterable[Choice]) -> Checkpoint:
        """The checkpoint into which these are to be merged: another model. CheckpointError, UnsupportedModelError."""
        choices, named = tuple(choices), {"unet": self.unet, **dict(zip(("text", "text2"), self.texts, strict=False))}
        shapes = {f"{part}.{name}": at.shape for part, network in named.items() for name, at in network.places.items()}
        for choice in choices:
            check(choice.path, shapes, EXPORTED)
        files = {f"{number}. LoRA {choice}": choice.path for number, choice in enumerate(choices, 1)}
        return replace(self, files=self.files.with_more(files), loras=choices)


def open_checkpoint(path: Path, vae: Path | None = None) -> Checkpoint:
    """Look at every file of the checkpoint. CheckpointError says what is wrong with which file.

    `vae`: a file or folder with another VAE.
    """
    root = resolved(path)
    return (_open_folder if root.is_dir() else _open_file)(root, vae)


def resolved(path: Path, what: str = "checkpoint") -> Path:
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
        weights, settings = find_weights(root / name, stem), root / name / "config.json"
        return Part(name, read_json(settings), settings, weights, read_header(weights).tensors, names.from_folder)

    folders = [name for name in ("text_encoder", "text_encoder_2") if (root / name).is_dir()]
    texts = tuple(part(name, "model") for name in folders or ["text_encoder"])
    unet = part("unet")
    coder = part("vae") if vae is None else _other_vae(vae, root / "vae" / "config.json")
    settings, index = root / "scheduler" / "scheduler_config.json", root / "model_index.json"
    scheduler, indexed = read_json(settings), read_json(index) if index.exists() else {}
    tokens, tokenizer_paths = _tokens(root / "tokenizer")
    if (second := root / "tokenizer_2").is_dir():
        other, others_paths = _tokens(second)
        if other.files() != tokens.files():
            message = f"{second} is another tokenizer than {root / 'tokenizer'}: both encoders read the same tokens"
            raise CheckpointError(message, path=second)
        tokenizer_paths += others_paths
    parts = *texts, unet, coder
    paths = [settings, *(path for part in parts for path in (part.settings, part.weights)), *tokenizer_paths]
    return Checkpoint(root, texts, unet, coder, indexed, scheduler, settings, tokens.files(), Files.of(root, paths))


def _open_file(path: Path, vae: Path | None) -> Checkpoint:
    """One file of weights: the configurations are the family's own, the tokenizer is CLIP's."""
    whole = onefile.read(path)
    coder = whole.vae if vae is None else _other_vae(vae, None)
    if coder is None:
        hint = "give a VAE of SD 1.x or 2.x in a file or folder of its own, with --vae"
        raise CheckpointError(f"{path} has no vae in it (no tensor first_stage_model.*)", path=path, hint=hint)
    return Checkpoint(
        path, (whole.text,), whole.unet, coder, {}, whole.scheduler, whole.schedule, tokenizer.clip(),
        Files.of(path, [path, coder.settings, coder.weights]), whole.notes,
    )  # fmt: skip


def _other_vae(path: Path, config: Path | None) -> Part:
    """The VAE in a folder of diffusers' layout, or in a file. To a file belongs `config`, or SD 1.x's own."""
    root = resolved(path, "VAE")
    if root.is_dir():
        folder = root / "vae" if (root / "vae").is_dir() else root
        weights, config = find_weights(folder, "diffusion_pytorch_model"), folder / "config.json"
    else:
        weights, config = root, config if config and config.exists() else None
    header = read_header(weights).tensors
    inside = any(key.startswith(onefile.VAE_PREFIXES) for key in header)
    prefixes = onefile.VAE_PREFIXES if inside else onefile.BARE_VAE
    mine = {key: entry for key, entry in header.items() if key.startswith(prefixes)}
    if not any(key.endswith("decoder.conv_in.weight") for key in mine):
        what = identify.describe_keys(header) or "of an unknown kind"
        raise CheckpointError(f"{weights} holds no VAE: it is {what}", path=weights, field="vae")
    modern = partial(names.vae_from_file, blocks=len(onefile.VAE["block_out_channels"]))
    coder = Part("vae", read_json(config) if config else onefile.VAE, config or weights, weights, mine, modern)
    if config is None:
        coder.check(onefile.shapes(onefile.SD1.family)["vae"])
    return coder


def find_weights(folder: Path, stem: str) -> Path:
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
    extra = {token: place for path in added for token, place in read_json(path).items()}
    if whole.exists() and not (vocabulary.exists() and merges.exists()):
        tokens = Tokens.from_json(read_json(whole), whole)
        return replace(tokens, added={**tokens.added, **extra}), [whole, *added]
    tree, lines = read_json(vocabulary), read(merges).decode("utf-8", errors="replace").replace("\r", "").split("\n")
    pairs = tuple(line for line in lines if line and not line.startswith("#version"))
    return Tokens(tree, pairs, extra, vocabulary, merges), [vocabulary, merges, *added]
