"""Libraries that hold code for GPUs, or at least its headers."""

from __future__ import annotations

from pathlib import Path

from clipskip.engines.gpu import BUNDLE, ENTRY, MARK


def library(path: Path, *architectures: tuple[int, int]) -> Path:
    """A file in which code of these kinds for these architectures is bundled as CUDA's compiler does it."""
    code = b"".join(
        ENTRY.pack(kind, 0x101, 64, 32, architecture).ljust(64) + bytes(32) for kind, architecture in architectures
    )
    bundle = BUNDLE.pack(int.from_bytes(MARK, "little"), 1, BUNDLE.size, len(code)) + code
    path.write_bytes(b"\x7fELF" + bytes(20) + MARK + bytes(30) + bundle + bytes(9) + bundle + MARK)
    return path
