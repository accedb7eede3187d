"""clipskip: Stable Diffusion with clip skip as a setting of each request.

with clipskip.open("build/sample") as pipe:
    result = pipe("a large red circle on a green background", clip_skip=2, seed=7)
    result.save("circle.png")
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ClipskipError, RequestError
from .request import Request

if TYPE_CHECKING:
    from .backends import Backend
    from .pipeline import Pipeline

__version__ = "0.1.0"
__all__ = [
    "ClipskipError",
    "Pipeline",
    "Request",
    "RequestError",
    "Result",
    "__version__",
    "open",
    "parse_render",
    "prompt",
    "read_request",
]


def open(
    path: str | os.PathLike[str],
    *,
    backend: Backend | str = "onnxruntime",
    embeddings: Sequence[str | os.PathLike[str]] | str | os.PathLike[str] = (),
    text_engine_budget: int = 2 * 2**30,
    max_batch: int | None = None,
) -> Pipeline:
    """Open the engine store in the folder `path`.

    `backend` is "onnxruntime" (the CPU), "onnxruntime-cuda", "tensorrt", "tensorrt-rtx", or a backend object with
    settings of its own, such as `OnnxRuntime(providers=[...])` of `clipskip.backends.onnxruntime`. `embeddings` are
    textual inversions (.safetensors), or folders of them, for use by name in prompts. `text_engine_budget` bounds the
    bytes of the text engines that stay open. `max_batch` bounds the images that share one call of the network (default:
    what the engines and the device take); it changes no picture.

    Raises EngineMissing, ManifestError, EngineCorrupt or EngineIncompatible for the store, and BackendUnavailable.
    Engines are verified and opened when a request first needs them.
    """
    from clipskip.engines.store import Store

    from . import inversions
    from .backends import backend_named
    from .pipeline import Pipeline

    store = Store(Path(path))
    concepts = inversions.load(embeddings, store.manifest().model.width)
    chosen = backend_named(backend) if isinstance(backend, str) else backend
    return Pipeline(store, chosen, concepts=concepts, text_engine_budget=text_engine_budget, max_batch=max_batch)


def __getattr__(name: str) -> object:
    """The parts that need numpy and Pillow load when first used, so that `import clipskip` costs next to nothing."""
    from importlib import import_module

    homes = {"Pipeline": "pipeline", "Result": "pipeline", "parse_render": "render", "read_request": "metadata"}
    if name == "prompt":
        return import_module("clipskip.prompt")
    if name in homes:
        return getattr(import_module(f"clipskip.{homes[name]}"), name)
    raise AttributeError(f"module 'clipskip' has no attribute {name!r}")
