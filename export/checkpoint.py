"""Open what a user calls a checkpoint: a folder in diffusers' layout, or one .safetensors file.

Reads no tensor and imports no large library, so an export that has nothing to do is over at once.
"""

from __future__ import annotations

from pathlib import Path

from clipskip.engines.errors import CheckpointError
from clipskip.export.folder import open_folder
from clipskip.export.parts import Checkpoint
from clipskip.export.single_file import open_file

__all__ = ["Checkpoint", "open_checkpoint"]


def open_checkpoint(path: Path) -> Checkpoint:
    """Look at every file of the checkpoint and hash it. CheckpointError says what is wrong with which file."""
    try:
        root = path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"no checkpoint at {path}: {getattr(error, 'strerror', error)}", path=path) from error
    return open_folder(root) if root.is_dir() else open_file(root)
