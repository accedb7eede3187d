"""What this machine has and what each target still lacks: `clipskip doctor`.

Knows nothing of stores or models. Asks the driver, loads the packages, and has ONNX Runtime open one node.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from clipskip.engines import gpu
from clipskip.engines.tensorrt_child import load_builder, load_package

from .backends.fit import default_capabilities
from .backends.onnxruntime import OnnxRuntime
from .backends.providers import BY_TARGET, Provider
from .errors import BackendUnavailable, ClipskipError

PACKAGES = (
    "clipskip", "numpy", "tokenizers", "pillow", "onnxruntime", "onnxruntime-gpu", "onnxruntime-ep-nv-tensorrt-rtx",
    "tensorrt-rtx", "tensorrt", "cuda-bindings", "torch", "transformers", "diffusers", "onnx", "safetensors",
)  # fmt: skip
WIDTH = max(map(len, PACKAGES))
DRIVER = Path("/proc/driver/nvidia/version")


def examine() -> dict[str, Any]:
    """The findings, ready for JSON.

    `targets` maps each target to what building and running its engines lacks here and how to mend it, None where
    nothing is missing.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "driver": _driver(),
        "gpus": _gpus(),
        "targets": {name: {verb: _lack(check) for verb, check in checks.items()} for name, checks in _CHECKS.items()},
        "problems": _problems(),
    }


def text(facts: dict[str, Any]) -> str:
    """The findings for people."""
    versions = [f"  {name:<{WIDTH}} {version or '-'}" for name, version in facts["packages"].items()]
    gpus = [f"  {each['name']}, {_describe(each)}" for each in facts["gpus"]] or ["  none that CUDA can use"]
    targets = [line for name, checks in facts["targets"].items() for line in _target_lines(name, checks)]
    problems = [f"problem: {each}" for each in facts["problems"]]
    return "\n".join(
        [
            f"Python {facts['python']} on {facts['platform']}",
            f"NVIDIA driver: {facts['driver'] or 'none'}",
            "GPUs", *gpus,
            "packages", *versions,
            "targets", *targets,
            *problems,
        ]
    )  # fmt: skip


def _describe(each: dict[str, Any]) -> str:
    return f"compute capability {each['compute_capability']}, {each['memory'] / 1e9:.1f} GB, CUDA {each['cuda']}"


def _target_lines(name: str, checks: dict[str, Any]) -> list[str]:
    lines = []
    for verb, lack in checks.items():
        lines.append(f"  {name:<{WIDTH}} {verb:<6} {'ready' if lack is None else lack['lacks']}")
        if lack is not None and lack["fix"]:
            lines.append(f"  {'':<{WIDTH}} {'':<6} fix: {lack['fix']}")
    return lines


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    try:
        return DRIVER.read_text().splitlines()[0]
    except OSError:
        return None


def _gpus() -> list[dict[str, Any]]:
    try:
        return [vars(each) for each in gpu.gpus(gpu.cuda_runtime())]
    except BackendUnavailable:
        return []


def _lack(check: Callable[[], None]) -> dict[str, str | None] | None:
    try:
        check()
    except ClipskipError as error:
        return {"lacks": error.message, "fix": error.hint}
    return None


def _onnxruntime(provider: Provider) -> None:
    OnnxRuntime(providers=[provider.name]).check()


def _first_gpu() -> gpu.Gpu:
    return gpu.gpus(gpu.cuda_runtime())[0]


def _tensorrt_build() -> None:
    load_builder("tensorrt")
    _first_gpu()


def _tensorrt_run() -> None:
    load_package("tensorrt")
    _first_gpu()


def _rtx_build() -> None:
    load_builder("tensorrt-rtx")


def _rtx_run() -> None:
    supported = default_capabilities(load_package("tensorrt-rtx"))
    found = _first_gpu()
    if found.compute_capability not in (*supported, "7.5"):
        message = f"TensorRT-RTX has no code for {found.name} (compute capability {found.compute_capability})"
        raise BackendUnavailable(message, hint="use --target tensorrt")


_CHECKS: dict[str, dict[str, Callable[[], None]]] = {
    **{target: {"run": partial(_onnxruntime, provider)} for target, provider in BY_TARGET.items()},
    "tensorrt-rtx": {"build": _rtx_build, "run": _rtx_run},
    "tensorrt": {"build": _tensorrt_build, "run": _tensorrt_run},
}


def _problems() -> list[str]:
    if _version("onnxruntime") and _version("onnxruntime-gpu"):
        return ["onnxruntime and onnxruntime-gpu are both installed and overwrite each other: uninstall both, then one"]
    return []
