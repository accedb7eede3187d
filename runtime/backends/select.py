"""The backends by the names that the command line uses. Loads only the one that is asked for."""

from __future__ import annotations

from clipskip.errors import RequestError

from . import Backend
from .providers import BY_TARGET

NAMES = (*BY_TARGET, "tensorrt", "tensorrt-rtx")


def backend_named(name: str) -> Backend:
    """The backend called `name`, with its default settings. Raises BackendUnavailable when it cannot be used here."""
    if name in BY_TARGET:
        from .onnxruntime import OnnxRuntime

        return OnnxRuntime(providers=[BY_TARGET[name].name])
    if name in ("tensorrt", "tensorrt-rtx"):
        from .tensorrt import tensorrt_backend

        return tensorrt_backend(name)
    raise RequestError(f"target must be one of {', '.join(NAMES)}; not {name!r}", field="target")
