"""Engines of the sample model, really built by TensorRT-RTX, which needs no GPU for it."""

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
LAYERS = (0, 12)  # none and all: tiny graphs try "as many as were exported"
ROLES = ["text-00", "text-12", "step", "decode", "encode"]


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


def test_engines_are_built_once_and_other_sizes_rebuild_only_the_networks(root: Path) -> None:
    assert rebuilt(root, BuildOptions(layers=LAYERS, max_chunks=2)) == ROLES
    assert rebuilt(root, BuildOptions(layers=LAYERS, max_chunks=2)) == []
    store = Store(root)
    for role in ROLES:
        assert store.verify(store.find(Role.parse(role), TARGET, "fp16")).stat().st_size > 10_000
    assert not [problem for _, problem in report.verify(root) if problem]
    options = BuildOptions(layers=LAYERS, max_chunks=2, sizes=AxisRange(72, 136, 232))
    assert rebuilt(root, options) == ["step", "decode", "encode"]
