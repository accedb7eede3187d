"""What this machine has and what each target still lacks: `clipskip doctor`.

Knows nothing of stores or models. Asks the driver, loads the packages, and has ONNX Runtime open one node.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from clipskip.backends.onnxruntime import OnnxRuntime
from clipskip.backends.providers import BY_TARGET
from clipskip.engines import gpu
from clipskip.engines.tensorrt_child import default_capabilities, load_builder, load_package
from clipskip.errors import BackendUnavailable, ClipskipError

PACKAGES = (
    "clipskip", "numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "onnxruntime-ep-nv-tensorrt-rtx",
    "tensorrt-rtx", "tensorrt", "cuda-bindings", "torch", "transformers", "diffusers", "onnx", "safetensors",
)  # fmt: skip
WIDTH = max(map(len, PACKAGES))
DRIVER = Path("/proc/driver/nvidia/version")
OVERWRITTEN = "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: uninstall both, then one"


def examine() -> dict[str, Any]:
    """The findings, ready for JSON.

    `targets` maps each target to what building and running its engines lacks here and how to mend it, None where
    nothing is missing.
    """
    packages: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    try:
        gpus = [vars(device) for device in gpu.gpus(gpu.cuda_runtime())]
    except BackendUnavailable:
        gpus = []
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "driver": DRIVER.read_text().splitlines()[0] if DRIVER.exists() else None,
        "gpus": gpus,
        "targets": {name: {verb: _lack(check) for verb, check in checks.items()} for name, checks in _CHECKS.items()},
        "problems": [OVERWRITTEN] if packages["onnxruntime"] and packages["onnxruntime-gpu"] else [],
    }


def text(facts: dict[str, Any]) -> str:
    """The findings for people."""
    gpus = [
        f"  {device['name']}, compute capability {device['compute_capability']}, "
        f"{device['memory'] / 1e9:.1f} GB, CUDA {device['cuda']}"
        for device in facts["gpus"]
    ]
    targets = []
    for name, checks in facts["targets"].items():
        for verb, lack in checks.items():
            targets.append(f"  {name:<{WIDTH}} {verb:<6} {'ready' if lack is None else lack['lacks']}")
            if lack is not None and lack["fix"]:
                targets.append(f"  {'':<{WIDTH}} {'':<6} fix: {lack['fix']}")
    return "\n".join(
        [
            f"Python {facts['python']} on {facts['platform']}",
            f"NVIDIA driver: {facts['driver'] or 'none'}",
            "GPUs", *(gpus or ["  none that CUDA can use"]),
            "packages", *(f"  {name:<{WIDTH}} {version or '-'}" for name, version in facts["packages"].items()),
            "targets", *targets,
            *(f"problem: {problem}" for problem in facts["problems"]),
        ]
    )  # fmt: skip


def _lack(check: Callable[[], object]) -> dict[str, str | None] | None:
    try:
        check()
    except ClipskipError as error:
        return {"lacks": error.message, "fix": error.hint}
    return None


def _default_gpu() -> gpu.Gpu:
    return gpu.describe(gpu.cuda_runtime(), 0)


def _rtx_run() -> None:
    supported = default_capabilities(load_package("tensorrt-rtx"))
    device = _default_gpu()
    if device.compute_capability not in (*supported, "7.5"):
        message = f"TensorRT-RTX has no code for {device.name} (compute capability {device.compute_capability})"
        raise BackendUnavailable(message, hint="use --target tensorrt")


_CHECKS: dict[str, dict[str, Callable[[], object]]] = {
    **{
        target: {"run": partial(lambda name: OnnxRuntime(providers=[name]).check(), provider.name)}
        for target, provider in BY_TARGET.items()
    },
    "tensorrt-rtx": {"build": partial(load_builder, "tensorrt-rtx"), "run": _rtx_run},
    "tensorrt": {
        "build": lambda: (load_builder("tensorrt"), _default_gpu()),
        "run": lambda: (load_package("tensorrt"), _default_gpu()),
    },
}
