"""What this machine has and what each target still lacks: `clipskip doctor`. Knows nothing of stores or models."""

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
    """The findings, ready for JSON; for each target what its verbs lack here and how to mend it, or None."""
    packages: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    targets: dict[str, dict[str, dict[str, str | None] | None]] = {}
    for target, verb, check in CHECKS:
        verbs = targets.setdefault(target, {})
        try:
            check()
            verbs[verb] = None
        except ClipskipError as error:
            verbs[verb] = {"lacks": error.message, "fix": error.hint}
    try:
        gpus = [vars(device) for device in gpu.gpus(gpu.cuda_runtime())]
    except ClipskipError:
        gpus = []
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "driver": DRIVER.read_text().splitlines()[0] if DRIVER.exists() else None,
        "gpus": gpus,
        "targets": targets,
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


def _check_gpu(target: str, load: Callable[[str], Any]) -> None:
    """The target's package can be loaded, and has code for the GPU that is here."""
    package = load(target)
    device = gpu.describe(gpu.cuda_runtime(), 0)
    if target == "tensorrt-rtx" and device.compute_capability not in (*default_capabilities(package), "7.5"):
        message = f"TensorRT-RTX has no code for {device.name} (compute capability {device.compute_capability})"
        raise BackendUnavailable(message, hint="use --target tensorrt")


CHECKS: tuple[tuple[str, str, Callable[[], object]], ...] = (  # ClipskipError says what the verb lacks for the target
    *(
        (target, "run", partial(lambda name: OnnxRuntime(providers=[name]).check(), provider.name))
        for target, provider in BY_TARGET.items()
    ),
    ("tensorrt-rtx", "build", partial(load_builder, "tensorrt-rtx")),
    ("tensorrt-rtx", "run", partial(_check_gpu, "tensorrt-rtx", load_package)),
    ("tensorrt", "build", partial(_check_gpu, "tensorrt", load_builder)),
    ("tensorrt", "run", partial(_check_gpu, "tensorrt", load_package)),
)
