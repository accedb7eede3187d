"""The backends by the names that the command line uses. Loads only the one that is asked for."""

from __future__ import annotations

from clipskip.errors import RequestError

from . import Backend

NAMES = ("onnxruntime", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx")


def backend_named(name: str) -> Backend:
    """The backend called `name`, with its default settings. Raises BackendUnavailable when it cannot be used here."""
    if name == "onnxruntime":
        from .onnxruntime import OnnxRuntime

        return OnnxRuntime()
    if name == "onnxruntime-cuda":
        from .onnxruntime import OnnxRuntime

        return OnnxRuntime(providers=["CUDAExecutionProvider"])
    if name in ("tensorrt", "tensorrt-rtx"):
        from .tensorrt import tensorrt_backend

        return tensorrt_backend(name)
    raise RequestError(f"target must be one of {', '.join(NAMES)}; not {name!r}", field="target")
