"""The gates: a graph is published only if ONNX Runtime gets what it is to get. `trials` says on which inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from clipskip.engines import files, gpu
from clipskip.engines.errors import ExportError, NumericalError
from clipskip.engines.manifest import DECODE, DECODE_TINY, Role

CPU = "CPUExecutionProvider"
Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
Parity = Mapping[str, float]  # measure -> value
Pairs = Sequence[tuple[Arrays, Arrays]]  # what a graph gave, and what it was to give
FP32_RELATIVE, FP32_ABSOLUTE = 1e-5, 1e-4
FP16_RELATIVE = {"text": 4e-3, "step": 1e-2, "encode": 1e-2}
FP16_WORST = 5e-2  # beyond it half precision does not suit the model
FP16_RATIO = 2.0  # of torch's own fp16 error
DEVICE_RATIO = 3.0  # the same between two computations in half precision, one of them by a GPU's kernels
TORCH_FP16 = "torch_fp16_relative_l2"  # the name of that error in a parity
PSNR = 40.0  # dB


@dataclass(frozen=True)
class Case:
    """Inputs, what torch makes of them in float32 and, to judge a half-precision graph by, in float16."""

    feeds: Arrays
    exact: Arrays
    half: Arrays  # empty for an fp32 graph


def measure(role: Role, path: Path, cases: Sequence[Case]) -> Parity:
    """The graph's parity with torch. NumericalError where it fails a gate, ExportError where it does not run."""
    halves = [(case.half, case.exact) for case in cases if case.half]
    own = {TORCH_FP16: _worst(relative_l2, halves)} if halves else {}
    outputs = run(path, [case.feeds for case in cases])
    return judge(role, [(got, case.exact) for got, case in zip(outputs, cases, strict=True)], own)


def judge(role: Role, pairs: Pairs, own: Parity, form: str = "", ratio: float = FP16_RATIO) -> Parity:
    """The parity of a graph with torch, or of a form of this name with its graph; NumericalError where it fails.

    `own`: a parity with torch's own error at half precision, of which an error in fp16 may be `ratio`.
    """
    what = f"{form} differs from {role}" if form else f"{role} differs from torch"
    if role in (DECODE, DECODE_TINY):
        return _pictures(pairs, what)
    parity: dict[str, float] = {"relative_l2": _worst(relative_l2, pairs), "max_abs": _worst(max_abs, pairs)}
    limits = {"relative_l2": FP32_RELATIVE, "max_abs": FP32_ABSOLUTE}
    if TORCH_FP16 in own:
        parity[TORCH_FP16] = own[TORCH_FP16]
        torch = min(own[TORCH_FP16], FP16_WORST)  # up to that, what is as exact as torch itself is not refused
        limits = {"relative_l2": max(torch, min(FP16_RELATIVE[role.part], ratio * torch))}
    for name, limit in limits.items():
        if not parity[name] <= limit:
            raise NumericalError(f"{what}: {name} is {parity[name]:.3g}, allowed is {limit:.3g}")
    return parity


def run(model: Path | bytes, feeds: Sequence[Arrays], weights: Sequence[Path] = ()) -> list[Arrays]:
    """What ONNX Runtime makes of the inputs on the CPU. `weights`: the files that a graph in memory reads, if any."""
    name, source = (model.name, str(model)) if isinstance(model, Path) else ("a graph in memory", model)
    try:
        opened = session(source, weights, [CPU])
    except Exception as error:  # its exceptions have no common type of their own
        raise files.shortage(error) or ExportError(f"ONNX Runtime cannot open {name}: {error}") from error
    names = [output.name for output in opened.get_outputs()]
    try:
        return [dict(zip(names, opened.run(names, dict(feed)), strict=True)) for feed in feeds]
    except Exception as error:
        raise files.shortage(error) or ExportError(f"ONNX Runtime cannot run {name}: {error}") from error


def session(graph: str | bytes, weights: Sequence[Path], providers: Sequence[str]) -> Any:
    """A session for a run or two: neither packed weights nor folded constants are worth a second copy of them."""
    ort, maps = gpu.onnxruntime(), [np.memmap(path, np.uint8, "r") for path in weights]
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_prepacking", "1")
    names, sizes = [path.name for path in weights], [content.nbytes for content in maps]
    options.add_external_initializers_from_files_in_memory(names, maps, sizes)
    settings = {"providers": list(providers), "disabled_optimizers": ["ConstantFolding"]}
    return ort.InferenceSession(graph, options, enable_fallback=0, **settings)


def _worst(error: Callable[[Array, Array], float], pairs: Pairs) -> float:
    """The largest error over all outputs; infinite where an output is not finite, for NaN compares as no error."""
    tensors = [
        (outputs[name].astype(np.float64), exact[name].astype(np.float64)) for outputs, exact in pairs for name in exact
    ]
    return float(max(error(got, exact) if np.isfinite(got).all() else np.inf for got, exact in tensors))


def relative_l2(got: Array, exact: Array) -> float:
    """The largest relative error over the vectors along the last axis, or over the planes of pictures and latents."""
    axes = (-2, -1) if got.ndim > 3 else (-1,)
    error = np.sqrt(np.square(got - exact).sum(axes))
    return float((error / np.maximum(np.sqrt(np.square(exact).sum(axes)), 1e-12)).max())


def max_abs(got: Array, exact: Array) -> float:
    return float(np.abs(got - exact).max())


def _pictures(pairs: Pairs, what: str) -> Parity:
    """8-bit pictures, and whether a picture that is not finite is called so. The last bit may fall either way."""
    for got, exact in pairs:
        if not np.array_equal(got["finite"], exact["finite"]):
            raise NumericalError(f"{what}: it calls pictures finite as {got['finite']}, not as {exact['finite']}")
    worst = min(psnr(got["image"], exact["image"]) for got, exact in pairs if exact["finite"].all())
    if not worst >= PSNR:
        raise NumericalError(f"{what}: PSNR is {worst:.1f} dB, at least {PSNR:.0f} is asked for")
    return {"psnr_db": worst}


def psnr(got: Array, exact: Array) -> float:
    """Peak signal-to-noise ratio of 8-bit pictures in dB, at most 120 (identical ones have an infinite one)."""
    error = np.square(got.astype(np.float64) - exact.astype(np.float64)).mean()
    return float(10 * np.log10(255**2 / max(error, 255**2 * 1e-12)))
