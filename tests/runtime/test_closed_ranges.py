"""Pictures through engines that are built for one size, one image and one chunk: two rows, never another number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import lora_files
import numpy as np
import pytest
from copies import copy_of
from doubles.store import publish_plans, simulated

import clipskip
from clipskip.backends import Engine
from clipskip.backends.onnxruntime import OnnxRuntime
from clipskip.engines import variants
from clipskip.engines.manifest import STEP, Artefact, AxisRange
from clipskip.engines.shapes import BuildOptions
from clipskip.engines.store import Store
from clipskip.errors import EngineCorrupt, RequestError
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


@pytest.fixture(scope="module")
def with_lora(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pipeline, Path]]:
    """Plans for several images and sizes, and static ones that pass for engines with a LoRA; and the LoRA's file."""
    folder = tmp_path_factory.mktemp("loras")
    copy_of(sample_store, folder / "store")
    store = publish_plans(Store(folder / "store"), BuildOptions(sizes=AxisRange(64, 64, 128)), precision="fp32")
    there = variants.changeable(store, "fp32")
    path = lora_files.write(folder / "style.safetensors", there, lambda name: name.startswith("unet."))
    mix = variants.mix(STEP, there, variants.opened(store, "fp32", [f"{path}:0.5"]))
    store = publish_plans(store, STATIC, "fp32", mix.variant)
    with clipskip.open(store.root, backend=simulated()[0], loras=path) as pipe:
        yield pipe, path


def test_a_batch_keeps_to_what_the_engine_with_its_loras_takes(with_lora: tuple[Pipeline, Path]) -> None:
    pipe, path = with_lora
    plain = pipe(**SMALL, batch=3)
    tagged = {**SMALL, "prompt": f"{SMALL['prompt']} <lora:style:0.5>"}
    with_loras = pipe.check(clipskip.Request(**tagged, batch=3))
    assert (pipe.together(pipe.check(clipskip.Request(**SMALL))), pipe.together(with_loras)) == (4, 1)
    for one, other in zip(pipe(**tagged, batch=3).images, plain.images, strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    with pytest.raises(RequestError, match=r"width 128 is outside 64\.\.64") as caught:
        pipe(**{**tagged, "width": 128})
    assert f"--lora {path}:0.5:0.5 --sizes " in str(caught.value.hint)
    assert pipe.check(clipskip.Request(**{**SMALL, "width": 128})).width == 128


def test_a_damaged_engine_with_loras_is_built_again_by_the_command_that_names_them(
    with_lora: tuple[Pipeline, Path],
) -> None:
    _, path = with_lora
    root = path.parent / "store"
    (artefact,) = [
        each for each in Store(root).manifest().artefacts if each.variant.startswith("lora-") and each.role == STEP
    ]
    damaged = root / artefact.files[0].path
    damaged.chmod(0o644)
    damaged.write_bytes(b"")
    with (
        clipskip.open(root, backend=simulated()[0], loras=path) as other,
        pytest.raises(EngineCorrupt) as caught,
    ):
        other(**{**SMALL, "prompt": "a ring <lora:style:0.5>"})
    assert str(caught.value.hint).endswith(f"build {root} --target tensorrt-rtx --lora {path}:0.5:0.5")
