"""clipskip: Stable Diffusion with clip skip as a setting of each request.

with clipskip.open("build/sample") as pipe:
    result = pipe("a large red circle on a green background", clip_skip=2, seed=7)
    result.save("circle.png")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import errors
from .errors import *  # noqa: F403

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from . import prompt as prompt
    from .backends import Backend
    from .ledger import Ledger as Ledger
    from .metadata import read_ledger as read_ledger
    from .metadata import read_request as read_request
    from .pipeline import Pipeline as Pipeline
    from .render import parse_render as parse_render
    from .request import Request as Request
    from .result import Progress as Progress
    from .result import Result as Result

__version__ = "0.1.0"
_LATER = {  # what loads when first used, and its home
    "Ledger": "ledger",
    "Pipeline": "pipeline",
    "Progress": "result",
    "Request": "request",
    "Result": "result",
    "parse_render": "render",
    "read_ledger": "metadata",
    "read_request": "metadata",
}
# `open` is not among them: `from clipskip import *` leaves Python's own alone.
__all__ = [*_LATER, "__version__", "prompt"]
__all__ += errors.__all__


def open(
    path: str | os.PathLike[str],
    *,
    backend: Backend | str = "onnxruntime",
    device: int = 0,
    embeddings: Sequence[str | os.PathLike[str]] | str | os.PathLike[str] = (),
    loras: Sequence[str | os.PathLike[str]] | str | os.PathLike[str] = (),
    text_engine_budget: int = 2 * 2**30,
    lora_engines: int = 1,
    max_batch: int | None = None,
    share_lengths: bool = False,
    tile_pixels: int | None = 1024 * 1024,
    warm: Sequence[tuple[int, int, int]] = (),
    max_queue: int = 64,
) -> Pipeline:
    """Open the engine store in the folder `path`.

    `backend` is "onnxruntime" (the CPU), "openvino", "openvino-bf16", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx" or
    another of `clipskip doctor`'s targets, or a backend object with settings of its own, such as
    `OnnxRuntime(providers=[...])` of `clipskip.backends.onnxruntime`; `device` is the number of the GPU for a backend
    given by name. `embeddings` are textual inversions (.safetensors), or folders of them, for use by name in prompts;
    `loras` likewise, for `<lora:name:0.8>` and `Request.loras`. `text_engine_budget` bounds the bytes of the text
    engines that stay open, `lora_engines` the step engines with LoRAs (each as large as the network) beside the plain
    one: requests with other LoRAs wait until one of them is free. `max_batch` bounds the images that share one call of
    the network (default: what the engines and the device take); it changes no picture. `share_lengths` lets prompts of
    different length share calls: pictures are then within 1/255 of those made alone, and results say so. `tile_pixels`
    (at least 256 * 256): a picture of more is decoded or encoded in tiles that overlap, which bounds the memory and
    differs a little from the whole; results say so. None: never. `warm`: sizes as (width, height, images) for which
    everything is opened, compiled and captured now, so that the first request finds it done. `max_queue` bounds the
    requests of `Pipeline.generate` that wait for their first call of the network.

    Raises RequestError for a wrong argument, EngineMissing, ManifestError, EngineCorrupt or EngineIncompatible for the
    store, and BackendUnavailable. Engines are verified and opened when a request first needs them.
    """
    from functools import partial
    from os.path import abspath
    from pathlib import Path

    from clipskip.engines.store import Store

    from . import inversions
    from .backends import backend_named
    from .fields import at_least, location
    from .pipeline import Pipeline, Settings

    store = Store(Path(location("path", path)).absolute())
    at_least("device", device, 0)
    named, adapters = (
        [abspath(location(field, each)) for each in (given if isinstance(given, (list, tuple)) else [given])]
        for field, given in (("embeddings", embeddings), ("loras", loras))
    )
    settings = Settings(text_engine_budget, max_batch, share_lengths, tile_pixels, warm, lora_engines, max_queue)
    chosen = backend_named(backend, device) if isinstance(backend, str) or not hasattr(backend, "loops") else backend
    vectors = inversions.load(named, store.manifest().model.width)
    pipeline = Pipeline(store, chosen, vectors, settings, adapters)
    how = partial(open, store.root, backend=backend, device=device, embeddings=named, loras=adapters)
    pipeline.reopen = partial(how, **vars(settings))
    return pipeline


def __getattr__(name: str) -> object:
    """What loads when first used: `import clipskip` costs next to nothing, and a command hears signals early."""
    from importlib import import_module

    if name == "prompt":
        return import_module("clipskip.prompt")
    if name in _LATER:
        return getattr(import_module(f"clipskip.{_LATER[name]}"), name)
    raise AttributeError(f"module 'clipskip' has no attribute {name!r}")
