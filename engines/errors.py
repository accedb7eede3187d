"""Every error that clipskip raises on purpose, with the exit status each one ends the command line with.

Knows nothing of what goes wrong in foreign libraries: whoever calls them translates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a command hears signals when this is loaded, and pathlib takes longer than the rest
    from pathlib import Path
    from typing import ClassVar

__all__ = [
    "BackendUnavailable",
    "Busy",
    "CheckpointError",
    "ClipskipError",
    "Closed",
    "DeadlineExceeded",
    "DeviceLost",
    "DeviceOutOfMemory",
    "EngineCorrupt",
    "EngineIncompatible",
    "EngineMissing",
    "ExportError",
    "ManifestError",
    "NumericalError",
    "RequestError",
    "StorageError",
    "StoreError",
    "UnsafeFileError",
    "UnsupportedModelError",
]


class ClipskipError(Exception):
    """What is wrong, where (`path` or `field`), and what to do about it (`hint`)."""

    code: ClassVar[str] = "error"
    exit_status: ClassVar[int] = 1

    def __init__(
        self, message: str, *, path: str | Path | None = None, field: str | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.path = None if path is None else str(path)
        self.field = field
        self.hint = hint

    def about(self, path: str | Path) -> ClipskipError:
        """The same error with the file that it is about in front."""
        return type(self)(f"{path}: {self.message}", path=path, field=self.field, hint=self.hint)

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"


class RequestError(ClipskipError, ValueError):
    """A request that means nothing or cannot be served: refused before any engine runs."""

    code = "request"
    exit_status = 2


class CheckpointError(ClipskipError):
    """An input file (checkpoint, LoRA, embedding, image) that cannot be used."""

    code = "checkpoint"
    exit_status = 3


class UnsafeFileError(CheckpointError):
    """A file that could run code when it is read, such as a pickle."""

    code = "unsafe_file"


class UnsupportedModelError(CheckpointError):
    """A sound file of a kind that clipskip does not run."""

    code = "unsupported_model"


class ExportError(ClipskipError):
    """A graph or an engine that could not be made."""

    code = "export"
    exit_status = 3


class StoreError(ClipskipError):
    """An engine store that is missing, corrupt or does not fit."""

    code = "store"
    exit_status = 4


class EngineMissing(StoreError):
    """An engine that was never built; the hint is the command that builds it."""

    code = "engine_missing"


class EngineCorrupt(StoreError):
    """An engine whose bytes are not those that were published."""

    code = "engine_corrupt"


class EngineIncompatible(StoreError):
    """A sound engine made for another library version, GPU or model."""

    code = "engine_incompatible"


class ManifestError(StoreError):
    """A manifest that cannot be read or trusted."""

    code = "manifest"


class BackendUnavailable(ClipskipError):
    """A runtime library, driver or device that is not there."""

    code = "backend_unavailable"
    exit_status = 5


class DeviceOutOfMemory(ClipskipError):
    """The device has not enough memory for this request or build."""

    code = "device_out_of_memory"
    exit_status = 5


class DeviceLost(ClipskipError):
    """The device failed for good; the process has to be started again."""

    code = "device_lost"
    exit_status = 5


class NumericalError(ClipskipError):
    """NaN or infinity where there must be a picture, or a parity gate that failed."""

    code = "numerical"
    exit_status = 6


class StorageError(ClipskipError):
    """A full disk, a missing permission or a lock that was not released in time."""

    code = "storage"
    exit_status = 7


class Closed(ClipskipError, RuntimeError):
    """A pipeline, or a part of one, that was closed before it was used: a mistake of the program, not of a request."""

    code = "closed"
    exit_status = 2


class Busy(ClipskipError):
    """Every context is in use and none came free in time, or too many wait; again in about `retry_after` seconds."""

    code = "busy"
    exit_status = 5
    retry_after: float = 1.0


class DeadlineExceeded(Busy):
    """A request that was not done in the time that it was given."""

    code = "deadline"
