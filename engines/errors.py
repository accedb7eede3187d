"""Every error that clipskip raises on purpose, with the exit status each one ends the command line with.

Knows nothing of what goes wrong in foreign libraries: whoever calls them translates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a command hears signals when this is loaded, and pathlib takes longer than the rest
    from pathlib import Path
    from typing import ClassVar

__all__ = [
    "BackendUnavailable", "Busy", "CheckpointError", "ClipskipError", "Closed", "DeadlineExceeded", "DeviceLost",
    "DeviceOutOfMemory", "EngineCorrupt", "EngineIncompatible", "EngineMissing", "ExportError", "ManifestError",
    "NumericalError", "RequestError", "StorageError", "StoreError", "UnsafeFileError", "UnsupportedModelError",
]  # fmt: skip


class ClipskipError(Exception):
    """What is wrong, where (`path` or `field`), and what to do about it (`hint`)."""

    code: ClassVar[str] = "error"
    exit_status: ClassVar[int] = 1

    def __init_subclass__(cls, code: str = "", exit_status: int = 0) -> None:
        cls.code, cls.exit_status = code or cls.code, exit_status or cls.exit_status

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


class RequestError(ClipskipError, ValueError, code="request", exit_status=2):
    """A request that means nothing or cannot be served: refused before any engine runs."""


class CheckpointError(ClipskipError, code="checkpoint", exit_status=3):
    """An input file (checkpoint, LoRA, embedding, image) that cannot be used."""


class UnsafeFileError(CheckpointError, code="unsafe_file"):
    """A file that could run code when it is read, such as a pickle."""


class UnsupportedModelError(CheckpointError, code="unsupported_model"):
    """A sound file of a kind that clipskip does not run."""


class ExportError(ClipskipError, code="export", exit_status=3):
    """A graph or an engine that could not be made."""


class StoreError(ClipskipError, code="store", exit_status=4):
    """An engine store that is missing, corrupt or does not fit."""


class EngineMissing(StoreError, code="engine_missing"):
    """An engine that was never built; the hint is the command that builds it."""


class EngineCorrupt(StoreError, code="engine_corrupt"):
    """An engine whose bytes are not those that were published."""


class EngineIncompatible(StoreError, code="engine_incompatible"):
    """A sound engine made for another library version, GPU or model."""


class ManifestError(StoreError, code="manifest"):
    """A manifest that cannot be read or trusted."""


class BackendUnavailable(ClipskipError, code="backend_unavailable", exit_status=5):
    """A runtime library, driver or device that is not there."""


class DeviceOutOfMemory(ClipskipError, code="device_out_of_memory", exit_status=5):
    """The device has not enough memory for this request or build."""


class DeviceLost(ClipskipError, code="device_lost", exit_status=5):
    """The device failed for good; the process has to be started again."""


class NumericalError(ClipskipError, code="numerical", exit_status=6):
    """NaN or infinity where there must be a picture, or a parity gate that failed."""


class StorageError(ClipskipError, code="storage", exit_status=7):
    """A full disk, a missing permission or a lock that was not released in time."""


class Closed(ClipskipError, RuntimeError, code="closed", exit_status=2):
    """A pipeline, or a part of one, that was closed before it was used: a mistake of the program, not of a request."""


class Busy(ClipskipError, code="busy", exit_status=5):
    """Every context is in use and none came free in time, or too many wait; again in about `retry_after` seconds."""

    retry_after: float = 1.0


class DeadlineExceeded(Busy, code="deadline"):
    """A request that was not done in the time that it was given."""
