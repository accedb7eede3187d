"""ONNX Runtime's execution providers as this package uses them: where buffers lie, which options, how each is loaded.

Knows nothing of sessions, graphs or artefacts.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipskip.engines import hints
from clipskip.errors import BackendUnavailable

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
TENSORRT_RTX = "NvTensorRTRTXExecutionProvider"
NVIDIA = 0x10DE  # in PCI's list of vendors
ERRORS = 3  # ONNX Runtime's number for what it logs
GPU_PACKAGE = "onnxruntime-gpu[cuda,cudnn]"  # it and `onnxruntime` cannot be installed together


@dataclass(frozen=True)
class Provider:
    """One of ONNX Runtime's providers.

    `target`: what the command line calls it; `kind` and `vendor`: the devices that it computes on, as OrtValues name
    them; `options`, and `half` or `single` for fp16 or fp32 graphs, and `form` for a form of a graph: what it is told;
    `caches`: the options that name a folder for what it compiles; `variants`: the forms that it prefers of a graph, ""
    for the graph itself; `below`: who
    computes what it cannot, before the CPU; `plugin`: the module that brings it, if ONNX Runtime does not; `libraries`:
    the module that, when it is imported, loads the libraries it needs beside CUDA's; `needs`: in words; `package`: what
    is installed.
    """

    name: str
    target: str
    kind: str = "cpu"
    vendor: int = -1
    options: Mapping[str, str] = field(default_factory=dict)
    half: Mapping[str, str] = field(default_factory=dict)
    single: Mapping[str, str] = field(default_factory=dict)
    form: Mapping[str, str] = field(default_factory=dict)
    caches: tuple[str, ...] = ()
    variants: tuple[str, ...] = ("",)
    below: tuple[str, ...] = ()
    plugin: str | None = None
    libraries: str | None = None
    needs: str = f"it needs an NVIDIA driver, CUDA 13 and cuDNN 9; {GPU_PACKAGE} brings the last two"
    package: str = GPU_PACKAGE

    @property
    def install(self) -> str:
        """How it is had."""
        if not self.package:
            return "install the build of ONNX Runtime that brings it"
        apart = " in place of onnxruntime: the two cannot be installed together" if self.package == GPU_PACKAGE else ""
        return hints.install(self.package) + apart

    def place(self, index: int) -> dict[str, str]:
        """What it is told of the device with this index; the CPU has none, and a plugin is given the device itself."""
        return {"device_id": str(index)} if self.kind == "cuda" else {}


_PROVIDERS = (
    Provider(CPU, "onnxruntime", variants=("cpu", ""), package="onnxruntime"),
    Provider(
        CUDA,
        "onnxruntime-cuda",
        "cuda",
        options={
            "arena_extend_strategy": "kSameAsRequested",  # not the next power of two
            "cudnn_conv_algo_search": "HEURISTIC",  # the same in every session; on an H100 as fast as "EXHAUSTIVE"
        },
        single={"use_tf32": "0"},  # whose ten bits are not single precision; but without, half has no tensor cores
        form={"fuse_conv_bias": "1"},  # else it is a kernel of its own; cuDNN refuses it with channels first
        variants=("cuda", ""),
    ),
    Provider(
        TENSORRT,
        "onnxruntime-tensorrt",
        "cuda",
        options={"trt_engine_cache_enable": "True", "trt_timing_cache_enable": "True"},  # it does not know "1"
        half={"trt_fp16_enable": "True"},
        caches=("trt_engine_cache_path", "trt_timing_cache_path"),
        below=(CUDA,),
        libraries="tensorrt",
        needs="beside what onnxruntime-cuda needs, TensorRT 10, from the package tensorrt-cu13<11",
    ),
    Provider(
        TENSORRT_RTX,
        "onnxruntime-tensorrt-rtx",
        "gpu",
        NVIDIA,
        caches=("nv_runtime_cache_path",),
        plugin="onnxruntime_ep_nv_tensorrt_rtx",
        needs="it needs an NVIDIA RTX GPU of compute capability 8.0 or newer, and its driver",
        package="onnxruntime-ep-nv-tensorrt-rtx",
    ),
)
BY_TARGET = {provider.target: provider for provider in _PROVIDERS}


def named(name: str) -> Provider:
    """The provider that ONNX Runtime calls `name`; one that is not known here keeps its buffers on the CPU."""
    other = Provider(name, "onnxruntime", package="")
    return next((provider for provider in _PROVIDERS if provider.name == name), other)


def load(ort: Any, provider: Provider) -> None:
    """Make the provider known to `ort` (the package onnxruntime). BackendUnavailable where that cannot be."""
    present = ort.get_available_providers()
    if provider.plugin and provider.name not in present:
        _register(ort, provider, provider.plugin)
    elif provider.name not in present:
        message = f"this ONNX Runtime has no {provider.name}, only {', '.join(present)}"
        raise BackendUnavailable(message, hint=provider.install)
    elif provider.kind != "cpu":
        ort.set_default_logger_severity(ERRORS)  # else every session warns that the provider is no plugin
        with redirect_stdout(sys.stderr):  # it prints what it does not find
            ort.preload_dlls()  # CUDA's libraries, from the packages that the extra `gpu` brings
        with suppress(ImportError, OSError):  # then they are where the system looks for them, or the session tells
            if provider.libraries:
                importlib.import_module(provider.libraries)


def _register(ort: Any, provider: Provider, plugin: str) -> None:
    if devices(ort, provider):
        return
    try:
        ort.register_execution_provider_library(provider.name, importlib.import_module(plugin).get_library_path())
    except ImportError as error:
        raise BackendUnavailable(f"the package {plugin} is not installed", hint=provider.install) from error
    except Exception as error:  # its exceptions have no common type of their own
        raise BackendUnavailable(f"{provider.name} cannot be loaded: {error}", hint=provider.needs) from error
    if not devices(ort, provider):
        raise BackendUnavailable(f"{provider.name} finds no GPU that it can use", hint=provider.needs)


def devices(ort: Any, provider: Provider) -> list[Any]:
    """The devices that a provider from a plugin offers."""
    return [device for device in ort.get_ep_devices() if device.ep_name == provider.name]


def options(provider: Provider, folder: Path | None, half: bool, form: bool = False) -> dict[str, str]:
    """What the provider is told when it opens a graph. What it compiles is kept in `folder`, or nowhere."""
    told = {**provider.options, **(provider.half if half else provider.single), **(provider.form if form else {})}
    with suppress(OSError):
        if folder:
            folder.mkdir(exist_ok=True)
    if folder and folder.is_dir() and os.access(folder, os.W_OK):
        told |= dict.fromkeys(provider.caches, str(folder))
    else:
        told = {name: value for name, value in told.items() if "cache" not in name}
    return told
