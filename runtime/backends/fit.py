"""Whether an engine can run here: its package version and GPU against those of this machine, before it is read.

Knows nothing of the engine's bytes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from clipskip.engines.gpu import Gpu
from clipskip.engines.manifest import Artefact
from clipskip.errors import EngineIncompatible


def check_version(artefact: Artefact, package: str, hint: str) -> None:
    """`package` is "name version", as the builder recorded it; engines only run under the version that built them."""
    built = artefact.provenance.get("package", "an unknown package")
    if built != package:
        message = f"{artefact.role} was built with {built}, installed is {package}"
        raise EngineIncompatible(message, field=str(artefact.role), hint=f"build it again: {hint}")


def check_device(artefact: Artefact, gpu: Gpu, supported: Sequence[str], strict: bool, hint: str) -> None:
    """The GPU's architecture must be one that the engine has code for; another model of it is worth a warning.

    `supported`: what an engine built for the package's "default" has code for.
    """
    recorded = artefact.provenance.get("compute capability", "default")
    built = list(supported) if recorded == "default" else recorded.split(", ")
    if gpu.compute_capability not in built:
        found = f"{gpu.name} has {gpu.compute_capability}"
        message = f"{artefact.role} was built for compute capability {', '.join(built)}; {found}"
        raise EngineIncompatible(message, field=str(artefact.role), hint=_other_build(gpu, hint))
    device = artefact.provenance.get("device", "any")
    if device not in ("any", gpu.identity):
        message = f"{artefact.role} was tuned on {device}; this is {gpu.identity}: it may be slow or fail"
        if strict:
            raise EngineIncompatible(message, field=str(artefact.role), hint=f"build it here: {hint}")
        warnings.warn(message, RuntimeWarning, stacklevel=2)


def _other_build(gpu: Gpu, hint: str) -> str:
    return f"{hint} --compute-capability {gpu.compute_capability}, or, where that is not offered, --target tensorrt"


def default_capabilities(trt: Any) -> list[str]:
    """What TensorRT-RTX builds for unless told otherwise: every architecture it knows from Ampere (8.0) on."""
    names = [name[2:] for name in dir(trt.ComputeCapability) if name.startswith("SM")]
    return sorted((f"{name[:-1]}.{name[-1]}" for name in names if int(name) >= 80), key=float)
