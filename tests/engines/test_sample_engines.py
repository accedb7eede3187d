"""Engines of the sample model, really built by TensorRT-RTX, which needs no GPU for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx_ir as ir
import pytest
from copies import copy_of

from clipskip.engines import report, tensorrt_compile
from clipskip.engines.forms.attention import flat_attention
from clipskip.engines.forms.rewrite import rewrite
from clipskip.engines.manifest import STEP, Role
from clipskip.engines.shapes import BuildOptions
from clipskip.engines.store import Store
from clipskip.engines.tensorrt import build
from clipskip.engines.tensorrt_child import Job

trt = pytest.importorskip("tensorrt_rtx")

TARGET = "tensorrt-rtx"
LAYERS = (0, 12)  # none and all: tiny graphs try "as many as were exported"
ROLES = ["text-00", "text-12", "step", "decode", "encode"]


@pytest.fixture(scope="module")
def root(sample_fp16_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample model's fp16 graphs."""
    path = tmp_path_factory.mktemp("sample") / "store"
    copy_of(sample_fp16_store, path)
    return path


def rebuilt(root: Path, options: BuildOptions) -> list[str]:
    results = build(Store(root), target=TARGET, options=options, progress=lambda line: None)
    assert [each.role for each in results] == ROLES
    return [each.role for each in results if each.rebuilt]


def test_engines_are_built_once(root: Path) -> None:
    assert rebuilt(root, BuildOptions(layers=LAYERS, max_chunks=2)) == ROLES
    assert rebuilt(root, BuildOptions(layers=LAYERS, max_chunks=2)) == []
    store = Store(root)
    for role in ROLES:
        assert store.verify(store.find(Role.parse(role), TARGET, "fp16")).stat().st_size > 10_000
    assert not [problem for _, problem in report.verify(root) if problem]


def made(root: Path, program: Path) -> str:
    """What `make engines` says of a static set for this store, whose graphs are there already."""
    program.write_text(f'#!/bin/sh\n[ "$1" = export ] || exec {sys.executable} -m clipskip "$@" --skips 1,13\n')
    program.chmod(0o755)
    variables = {"TARGET": TARGET, "OUT": root, "CLIPSKIP": program, "SIZES": 128, "MAX_BATCH": 1, "MAX_CHUNKS": 1}
    command = ["make", "-s", "engines", "--old-file=.venv/installed", *(f"{k}={v}" for k, v in variables.items())]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_static_set_is_built_by_make_and_the_second_time_nothing_is(root: Path, tmp_path: Path) -> None:
    assert made(root, tmp_path / "clipskip").count("built in") == len(ROLES)
    for role in ROLES:
        axes = Store(root).find(Role.parse(role), TARGET, "fp16").axes
        assert {name for name, axis in axes.items() if axis.minimum < axis.maximum} <= {"E"}
    assert made(root, tmp_path / "clipskip").count("up to date") == len(ROLES)


def test_heads_are_found_whether_or_not_they_are_an_axis_of_their_own(root: Path, tmp_path: Path) -> None:
    graph = Store(root).find(STEP, "onnx", "fp16")
    path = Store(root).verify(graph).resolve()
    model = ir.load(path)
    rewrite(model, [flat_attention])
    (tmp_path / "step.bin").symlink_to(path.with_suffix(".bin"))
    ir.save(model, tmp_path / "step.onnx")
    lines = decomposed(path)
    assert lines
    assert all(line.endswith(": 8 wide, HALF") for line in lines)  # 16 and 32 wide ones have kernels
    assert decomposed(tmp_path / "step.onnx") == lines


def decomposed(path: Path) -> list[str]:
    """The attentions of a graph that have no kernel of their own."""
    hooks = tensorrt_compile.capture(trt, tensorrt_compile.Log())
    network = trt.Builder(hooks[0]).create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, hooks[0])
    assert parser.parse_from_file(str(path))
    return tensorrt_compile.decompose(trt, network, Job(TARGET, "", "", {}))
