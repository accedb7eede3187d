"""The GPU that `make test-gpu` runs on, engines built for it, and the table that it ends with.

With CLIPSKIP_TEST_GPU=simulated the doubles stand in, so that these tests themselves are tried where there is no GPU.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipskip.backends import Backend, backend_named
from clipskip.backends.tensorrt import tensorrt_backend
from clipskip.engines import gpu
from clipskip.engines.manifest import AxisRange
from clipskip.engines.shapes import BuildOptions
from clipskip.engines.store import Store
from clipskip.engines.tensorrt import build
from clipskip.engines.tensorrt_child import default_capabilities, load_package
from clipskip.errors import BackendUnavailable

SIMULATED = os.environ.get("CLIPSKIP_TEST_GPU") == "simulated"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without a GPU: `pytest -m gpu` says so and ends with status 5; the whole suite skips these tests."""
    mine = [item for item in items if item.get_closest_marker("gpu")]
    if SIMULATED or not mine:
        return
    try:
        gpu.gpus(gpu.cuda_runtime())
    except BackendUnavailable as error:
        if config.option.markexpr == "gpu":
            pytest.exit(f"nothing to test on: {error}", returncode=BackendUnavailable.exit_status)
        for item in mine:
            item.add_marker(pytest.mark.skip(reason=error.message))


@pytest.fixture(scope="session", params=["tensorrt", "onnxruntime"])
def backend(request: pytest.FixtureRequest) -> Backend:
    """TensorRT-RTX where it has code for the GPU, TensorRT otherwise; and ONNX Runtime, where it is the GPU's build."""
    return {"tensorrt": _tensorrt, "onnxruntime": _onnxruntime}[request.param]()


def _tensorrt() -> Backend:
    if SIMULATED:
        from doubles.store import simulated

        return simulated()[0]
    found = gpu.describe(gpu.cuda_runtime(), 0)
    rtx = found.compute_capability in default_capabilities(load_package("tensorrt-rtx"))
    return tensorrt_backend("tensorrt-rtx" if rtx else "tensorrt")


def _onnxruntime() -> Backend:
    with pytest.MonkeyPatch.context() as patch:
        if SIMULATED:
            from doubles.onnxruntime import SimulatedOnnxRuntime

            patch.setitem(sys.modules, "onnxruntime", SimulatedOnnxRuntime())
        try:
            return backend_named("onnxruntime-cuda")
        except BackendUnavailable as error:
            pytest.skip(f"{error.message}: make test-gpu-onnxruntime installs one that has it")


@pytest.fixture(scope="session")
def engines(backend: Backend, sample_fp16_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the sample model's graphs and, where the backend needs them, its engines, built here and now."""
    root = tmp_path_factory.mktemp("gpu") / "store"
    shutil.copytree(sample_fp16_store, root)
    if backend.target == "onnx":
        return root
    if SIMULATED:
        from doubles.store import publish_plans

        publish_plans(Store(root))
    else:
        build(Store(root), target=backend.target, options=BuildOptions(sizes=AxisRange(32, 64, 96)), progress=print)
    return root


@pytest.fixture(scope="session")
def rows(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Lines for the table; printed when all tests are done, whether output is captured or not."""
    lines: list[str] = []
    yield lines
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print("", *lines, sep="\n")
