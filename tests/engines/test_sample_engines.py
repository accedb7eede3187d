"""The sample model's sixteen engines, really built by TensorRT-RTX, which needs no GPU for it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from clipskip.engines import report
from clipskip.engines.manifest import AxisRange, Role
from clipskip.engines.shapes import BuildOptions
from clipskip.engines.store import Store
from clipskip.engines.tensorrt import build

pytest.importorskip("tensorrt_rtx")

TARGET = "tensorrt-rtx"
ROLES = [*(f"text-{layers:02}" for layers in range(13)), "step", "decode", "encode"]


@pytest.fixture(scope="module")
def root(sample_fp16_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample model's fp16 graphs."""
    path = tmp_path_factory.mktemp("sample") / "store"
    shutil.copytree(sample_fp16_store, path)
    return path


def rebuilt(root: Path, options: BuildOptions) -> list[str]:
    results = build(Store(root), target=TARGET, options=options, progress=lambda line: None)
    assert [each.role for each in results] == ROLES
    return [each.role for each in results if each.rebuilt]


def test_sixteen_engines_are_built_once_and_other_sizes_rebuild_only_the_networks(root: Path) -> None:
    assert rebuilt(root, BuildOptions(max_chunks=2)) == ROLES
    assert rebuilt(root, BuildOptions(max_chunks=2)) == []
    store = Store(root)
    for role in ROLES:
        assert store.verify(store.find(Role.parse(role), TARGET, "fp16")).stat().st_size > 10_000
    assert not [problem for _, problem in report.verify(root) if problem]
    options = BuildOptions(max_chunks=2, sizes=AxisRange(64, 128, 256))
    assert rebuilt(root, options) == ["step", "decode", "encode"]
