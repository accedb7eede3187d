"""`clipskip diagnose`: the first tensor that is apart, between two graphs on the CPU; TensorRT as far as that goes."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from copies import copy_of

from clipskip.__main__ import main
from clipskip.engines import diagnose, gpu, manifest, trials
from clipskip.engines.diagnose import WORST, distance
from clipskip.engines.forms import FORMS
from clipskip.engines.forms.build import build
from clipskip.engines.manifest import DECODE, STEP
from clipskip.engines.store import MANIFEST, Store
from clipskip.errors import BackendUnavailable, NumericalError

pytest.importorskip("polygraphy")
ir = pytest.importorskip("onnx_ir")


def with_a_broken_weight(store: Path, copy: Path) -> ir.Node:
    """A copy of a store in which one kernel in the middle of the step is zero; gives the node that reads it."""
    copy_of(store, copy)
    content = Store(copy).manifest()
    step = Store(copy).find(STEP, "onnx", "fp32")
    convolutions = [node for node in ir.load(copy / step.files[0].path).graph if node.op_type == "Conv"]
    node = convolutions[len(convolutions) // 2]
    kernel, weights = node.inputs[1].const_value, copy / step.files[-1].path
    data = bytearray(weights.read_bytes())
    data[kernel.offset : kernel.offset + kernel.length] = bytes(kernel.length)
    weights.write_bytes(data)
    sealed = replace(step.files[-1], sha256=sha256(data).hexdigest())
    artefacts = [
        replace(entry, files=tuple(sealed if record.path == sealed.path else record for record in entry.files))
        for entry in content.artefacts
    ]
    (copy / MANIFEST).write_text(manifest.dumps(replace(content, artefacts=tuple(artefacts))))
    return node


def test_a_broken_weight_is_named_by_the_node_that_reads_it(
    sample_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = with_a_broken_weight(sample_store, tmp_path / "broken")
    command = ["diagnose", str(tmp_path / "broken"), "step", "--against", str(sample_store), "--json"]
    assert main(command) == NumericalError.exit_status
    found = json.loads(capsys.readouterr().out)
    assert (found["node"], found["operator"], found["tensor"]) == (node.name, "Conv", node.outputs[0].name)
    assert found["error"] > 0.5
    assert set(found["inputs"]) == {node.inputs[0].name}
    assert found["inputs"][node.inputs[0].name] == 0


def test_without_a_fault_all_tensors_agree(sample_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", str(sample_store), "encode", "--against", str(sample_store)]) == 0
    assert "100 tensors agree that both compute, of 100" in capsys.readouterr().out


def test_the_form_for_the_cpu_agrees_in_every_tensor(sample_store: Path) -> None:
    found = diagnose.diagnose(Store(sample_store), DECODE, print, target="onnxruntime", variant="cpu")
    assert found.tensor is None, asdict(found)
    assert found.compared > 100


def test_the_form_for_cuda_is_taken_apart_on_the_cpu_and_agrees(
    sample_fp16_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(copy_of(sample_fp16_store, tmp_path / "store"))
    monkeypatch.setitem(FORMS, "cuda", {"decode": FORMS["cuda"]["decode"]})
    build(store, "cuda", progress=print)
    found = diagnose.diagnose(Store(store.root), DECODE, print, target="onnxruntime", variant="cuda")
    assert found.tensor is None, asdict(found)
    assert 20 < found.compared < found.tensors, "what was fused away is in no form"


def test_a_graph_is_not_compared_with_itself(sample_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", str(sample_store), "step"]) == 2
    assert "name a --variant, a --target, or a store --against it" in capsys.readouterr().err
    assert main(["diagnose", str(sample_store), "stop", "--variant", "cpu"]) == 2
    assert "'stop' is no role" in capsys.readouterr().err


def test_without_polygraphy_the_hint_installs_it(
    sample_store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "polygraphy.backend.onnx", None)
    assert main(["diagnose", str(sample_store), "decode", "--variant", "cpu"]) == 5
    assert "a diagnosis needs polygraphy" in (said := capsys.readouterr().err)
    assert "pip install '.[diagnose]'" in said


def test_a_target_that_is_not_here_says_what_it_lacks(sample_fp16_store: Path) -> None:
    store = Store(sample_fp16_store)
    with pytest.raises(BackendUnavailable, match="CUDAExecutionProvider"):
        diagnose.diagnose(store, DECODE, print, target="onnxruntime-cuda")


def test_tensorrt_rtx_builds_an_engine_that_gives_every_tensor(
    sample_fp16_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Building needs no GPU; running does, and is not tried here."""
    pytest.importorskip("tensorrt_rtx")
    pytest.importorskip("cuda.bindings")
    monkeypatch.setattr(gpu, "check_driver", lambda runtime: 1)
    store = Store(sample_fp16_store)
    graph = store.find(DECODE, "onnx", "fp16")
    feeds = trials.of(DECODE, store.manifest().model, half=True, ports=())[0]
    side = diagnose._tensorrt(store, graph, "tensorrt-rtx", feeds)
    tensors = diagnose._onnxruntime(store, graph, "onnxruntime").tensors
    assert set(tensors) <= set(side.tensors)
    from polygraphy.backend.trt import EngineBytesFromNetwork

    loader = side.runner(list(tensors))._engine_or_context
    assert EngineBytesFromNetwork(loader._network, loader._config)() is not None


@pytest.mark.parametrize(
    ("got", "exact", "error"),
    [
        ([3.0, 4.5], [3.0, 4.0], 0.1),
        ([0.0], [0.0], 0),
        ([1.5, np.nan], [1.5, np.nan], 0),
        ([1.5, np.nan], [1.5, 2.0], WORST),
        ([1.5], [1.5, 2.0], WORST),
        (np.array([7, 9], np.uint8), np.array([8, 9], np.uint8), 0),
        (np.array([7.0, 9.0]), np.array([8.0, 9.0]), 0),
        (np.array([5, 9], np.uint8), np.array([8, 9], np.uint8), 3 / np.hypot(8, 9)),
        (np.array([7]), np.array([8]), 1 / 8),
        (np.array([True]), np.array([False]), 1e12),
    ],
)
def test_the_distance_of_two_tensors(got: object, exact: object, error: float) -> None:
    assert distance(np.array(got), np.array(exact)) == pytest.approx(error)
