"""A Stable Diffusion 1.x checkpoint in diffusers' folder layout, with variant files and links as caches have them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipskip.engines.errors import CheckpointError, UnsafeFileError
from clipskip.export import names, parts, tensorfile
from clipskip.export.parts import Checkpoint, Part

LARGEST_JSON = 16 << 20  # bytes; a CLIP vocabulary has one


def open_folder(root: Path) -> Checkpoint:
    """Look at every file of the checkpoint in the folder `root` and hash it. CheckpointError says what is wrong."""
    networks = text, unet, vae = _part(root, "text_encoder", "model"), _part(root, "unet"), _part(root, "vae")
    scheduler, index = root / "scheduler" / "scheduler_config.json", root / "model_index.json"
    checkpoint_scheduler, (contents, tokenizer) = _json(scheduler), _tokenizer(root / "tokenizer")
    configs = [root / part.name / "config.json" for part in networks]
    read = [*configs, scheduler, *(part.weights for part in networks), *tokenizer]
    states = {each: parts.state_of(each) for each in read}
    return Checkpoint(
        root, text, unet, vae, index=_json(index) if index.exists() else {}, scheduler=checkpoint_scheduler,
        tokenizer=contents, sources=parts.hashes(read, root), states=states,
    )  # fmt: skip


def _part(root: Path, name: str, stem: str = "diffusion_pytorch_model") -> Part:
    config = _json(root / name / "config.json")
    weights = _weights(root / name, stem)
    return Part(name, config, weights, tensorfile.read_header(weights), names.from_folder)


def _weights(folder: Path, stem: str) -> Path:
    """The plain file if it is there, else the half-precision variant."""
    for name in (f"{stem}.safetensors", f"{stem}.fp16.safetensors"):
        if (folder / name).exists() or (folder / name).is_symlink():
            return folder / name
    if found := sorted(folder.glob("*.safetensors")):
        if len(found) == 1:
            return found[0]
        raise CheckpointError(f"which of these is meant? {', '.join(map(str, found))}", path=folder)
    if pickles := sorted([*folder.glob("*.bin"), *folder.glob("*.ckpt"), *folder.glob("*.pt")]):
        hint = "only .safetensors files are read, for a pickle can run code; get the model in that format"
        raise UnsafeFileError(f"the weights are pickled: {pickles[0]}", path=pickles[0], hint=hint)
    raise CheckpointError(f"{folder / stem}.safetensors is missing", path=folder)


def _tokenizer(folder: Path) -> tuple[dict[str, bytes], list[Path]]:
    """vocab.json and merges.txt as a store has them, and the files that they were read from.

    Older libraries write these two and, where words were added, added_tokens.json; transformers 5 one tokenizer.json.
    """
    whole, vocabulary, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if whole.exists() and not (vocabulary.exists() and merges.exists()):
        files, added = parts.unpack_tokenizer(_json(whole), whole)
        read = [whole]
    else:
        files, added, read = {path.name: _read(path) for path in (vocabulary, merges)}, {}, [vocabulary, merges]
        if (more := folder / "added_tokens.json").exists():
            added, read = dict(_json(more)), [*read, more]
    return parts.check_tokenizer(files, added, folder), read


def _json(path: Path) -> Mapping[str, Any]:
    return parts.parse_json(_read(path), path)


def _read(path: Path) -> bytes:
    if not path.exists():
        raise CheckpointError(f"{path} is missing", path=path, hint="is this the folder of a Stable Diffusion model?")
    if tensorfile.check_readable(path).st_size > LARGEST_JSON:
        raise CheckpointError(f"{path} is larger than {LARGEST_JSON} bytes", path=path)
    return path.read_bytes()
