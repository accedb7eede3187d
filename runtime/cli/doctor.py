"""What this machine has and what each target still lacks: `clipskip doctor`. Knows nothing of stores or models."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from clipskip.backends import OPENVINO, backend_named
from clipskip.backends.onnxruntime import OnnxRuntime
from clipskip.backends.providers import BY_TARGET
from clipskip.engines import gpu
from clipskip.engines.tensorrt_child import default_capabilities, known_capabilities, load_builder, load_package
from clipskip.errors import ClipskipError

PACKAGES = (
    "clipskip", "numpy", "pillow", "openvino", "onnxruntime", "onnxruntime-gpu", "onnxruntime-ep-nv-tensorrt-rtx",
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
    gpus, code = list[gpu.Gpu](), {}
    with suppress(ClipskipError):
        gpus = gpu.gpus(gpu.cuda_runtime())
    if kernels := gpu.code_of_onnxruntime():
        code["onnxruntime-cuda"] = kernels
    with suppress(ClipskipError):
        code["tensorrt-rtx"] = known_capabilities(load_package("tensorrt-rtx"))
    outlooks = [{each: outlook(each, code[each], device.compute_capability) for each in code} for device in gpus]
    targets: dict[str, dict[str, dict[str, str | None] | None]] = {}
    for target, verb, check in CHECKS:
        verbs = targets.setdefault(target, {})
        try:
            check()
            verbs[verb] = None
            if verb == "run" and gpus and target in code and not any(does[target] for does in outlooks):
                there = ", ".join(f"{device.name} (compute capability {device.compute_capability})" for device in gpus)
                message = f"{target} has no code for {there}, only for {', '.join(code[target])}"
                verbs[verb] = {"lacks": message, "fix": "use --target tensorrt"}
        except ClipskipError as error:
            verbs[verb] = {"lacks": error.message, "fix": error.hint}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "driver": DRIVER.read_text().splitlines()[0] if DRIVER.exists() else None,
        "gpus": [{**vars(device), "targets": does} for device, does in zip(gpus, outlooks, strict=True)],
        "code": code,
        "targets": targets,
        "problems": [OVERWRITTEN] if packages["onnxruntime"] and packages["onnxruntime-gpu"] else [],
    }


def text(facts: dict[str, Any]) -> str:
    """The findings for people."""
    gpus = [
        f"  {device['name']}, compute capability {device['compute_capability']}, "
        f"{device['memory'] / 1e9:.1f} GB, CUDA {device['cuda']}"
        + "".join(f"\n    {target}: {does or 'no code for it'}" for target, does in device["targets"].items())
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
            *(f"code of {target}: for compute capability {', '.join(code)}" for target, code in facts["code"].items()),
            *(f"problem: {problem}" for problem in facts["problems"]),
        ]
    )  # fmt: skip


def outlook(target: str, code: Sequence[str], own: str) -> str | None:
    """What a target with this code would do on a GPU of compute capability `own`; None where that is nothing."""
    if target != "tensorrt-rtx":
        return "runs" if gpu.has_code(code, own) else None
    if own in default_capabilities(load_package(target)):
        return "runs engines that are built without a choice of GPUs"
    return f"runs engines that are built with --compute-capability {own}" if own in code else None


def _check_gpu(target: str, load: Callable[[str], Any]) -> None:
    """The target's package can be loaded, and there is a GPU."""
    load(target)
    gpu.check_driver(gpu.cuda_runtime())


CHECKS: tuple[tuple[str, str, Callable[[], object]], ...] = (  # ClipskipError says what the verb lacks for the target
    *(
        (target, "run", partial(lambda name: OnnxRuntime(providers=[name]).check(), provider.name))
        for target, provider in BY_TARGET.items()
    ),
    *((target, "run", partial(backend_named, target)) for target in OPENVINO),
    ("tensorrt-rtx", "build", partial(load_builder, "tensorrt-rtx")),
    ("tensorrt-rtx", "run", partial(_check_gpu, "tensorrt-rtx", load_package)),
    ("tensorrt", "build", partial(_check_gpu, "tensorrt", load_builder)),
    ("tensorrt", "run", partial(_check_gpu, "tensorrt", load_package)),
)
