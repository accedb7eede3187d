"""Pictures through engines that are built for one size, one image and one chunk: two rows, never another number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from copies import copy_of
from doubles.store import publish_plans, simulated

import clipskip
from clipskip.backends import Engine
from clipskip.backends.onnxruntime import OnnxRuntime
from clipskip.engines.manifest import Artefact, AxisRange
from clipskip.engines.shapes import BuildOptions
from clipskip.engines.store import Store
from clipskip.errors import RequestError
from clipskip.pipeline import Pipeline

STATIC = BuildOptions(sizes=AxisRange(64, 64, 64), max_batch=1, max_chunks=1)
SMALL = {"prompt": "a (large:1.2) red circle", "width": 64, "height": 64, "steps": 3, "seed": 5}
REQUESTS: list[dict[str, Any]] = [{"cfg": 1.0}, {"cfg": 5.0, "negative_prompt": "blue"}, {"cfg": 1.0, "batch": 2}]


@pytest.fixture(scope="module")
def store(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample model's graphs, and static plans that compute them."""
    root = tmp_path_factory.mktemp("static") / "store"
    copy_of(sample_store, root)
    publish_plans(Store(root), STATIC, precision="fp32")
    return root


@pytest.fixture(scope="module")
def expected(store: Path) -> Iterator[Pipeline]:
    with clipskip.open(store, backend=exported(OnnxRuntime(threads=1))) as pipe:
        yield pipe


def exported(backend: OnnxRuntime) -> OnnxRuntime:
    """One that runs the very graphs that the plans compute, and not their forms."""
    backend.variants = ("",)
    return backend


class TwoRows(OnnxRuntime):
    """The CPU, with engines that take exactly two rows of the U-Net and two of text."""

    def open(self, artefact: Artefact, path: Path) -> Engine:
        two = {axis: AxisRange(2, 2, 2) for axis in ("N", "R") if axis in artefact.axes}
        return super().open(replace(artefact, axes={**artefact.axes, **two}), path)


@pytest.mark.parametrize("fields", REQUESTS)
def test_a_row_that_fills_up_changes_no_bit_of_a_picture(
    store: Path, expected: Pipeline, fields: dict[str, Any]
) -> None:
    pictures = expected(**SMALL, **fields).images
    for backend in (exported(TwoRows(threads=1)), simulated()[0]):
        with clipskip.open(store, backend=backend, max_batch=1) as pipe:
            for one, other in zip(pipe(**SMALL, **fields).images, pictures, strict=True):
                np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_three_parts_are_refused_with_the_command_that_builds_for_them(store: Path) -> None:
    with clipskip.open(store, backend=simulated()[0]) as pipe:
        with pytest.raises(RequestError, match="3 parts with its negative; the engines take 2") as caught:
            pipe(**{**SMALL, "prompt": "a ring AND a star"})
        assert str(caught.value.hint).endswith("--max-batch 2")
