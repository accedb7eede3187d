"""The GPU that `make test-gpu` runs on, engines built for it, and the table that it ends with.

What this machine cannot do is skipped, with what it lacks. CLIPSKIP_GPU_STORE names a store of fp16 graphs to use
instead of exporting the sample model: then neither torch nor a network is needed, and the store stays as it is.
With CLIPSKIP_TEST_GPU=simulated the doubles stand in, so that these tests themselves are tried where there is no GPU.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from clipskip.__main__ import main
from clipskip.backends import Backend
from clipskip.backends.onnxruntime import OnnxRuntime
from clipskip.backends.providers import CUDA
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
    try:
        return {"tensorrt": _tensorrt, "onnxruntime": _onnxruntime}[request.param]()
    except BackendUnavailable as error:
        pytest.skip(str(error))


def _tensorrt() -> Backend:
    if SIMULATED:
        from doubles.store import simulated

        return simulated()[0]
    card = gpu.describe(gpu.cuda_runtime(), 0)
    with suppress(BackendUnavailable):
        if card.compute_capability in default_capabilities(load_package("tensorrt-rtx")):
            return tensorrt_backend("tensorrt-rtx")
    return tensorrt_backend("tensorrt")


def _onnxruntime() -> Backend:
    with pytest.MonkeyPatch.context() as patch:
        if SIMULATED:
            from doubles.onnxruntime import SimulatedOnnxRuntime

            SimulatedOnnxRuntime().installed(patch)
        backend = OnnxRuntime([CUDA])
        backend.check()
        return backend


@pytest.fixture(scope="session")
def engines(
    backend: Backend, rows: list[str], request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A store with fp16 graphs and what the backend makes of them, built here and now where it is not there yet."""
    root = tmp_path_factory.mktemp("gpu") / "store"
    prepared = os.environ.get("CLIPSKIP_GPU_STORE")
    shutil.copytree(prepared or request.getfixturevalue("sample_fp16_store"), root)
    if SIMULATED:
        from doubles.store import publish_forms, publish_plans

        {"onnx": publish_forms}.get(backend.target, publish_plans)(Store(root))
    elif backend.target != "onnx":
        build(Store(root), target=backend.target, options=BuildOptions(sizes=AxisRange(32, 64, 96)), progress=print)
    elif main(["build", str(root), "--target", "onnxruntime-cuda"]) != 0:
        rows.append("the form for CUDA could not be made: only the exported graphs are tested")
    return root


@pytest.fixture(params=["exported", "cuda"])
def variant(request: pytest.FixtureRequest, backend: Backend, engines: Path) -> str:
    """The form of a graph that runs: as it was exported, or the one for CUDA; TensorRT makes engines of the first."""
    name = {"exported": "", "cuda": "cuda"}[request.param]
    if name not in {graph.variant for graph in Store(engines).manifest().artefacts if graph.target == backend.target}:
        pytest.skip(f"{engines} has no such form for {backend.name}")
    return name


@pytest.fixture(scope="session")
def rows(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Lines for the table; printed when all tests are done, whether output is captured or not."""
    lines: list[str] = []
    yield lines
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print("", *lines, sep="\n")
