"""One weight file for all text graphs, and graphs that carry nothing of the machine they were made on."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from clipskip.engines.manifest import STEP, Role
from clipskip.engines.store import Store
from clipskip.export.checkpoint import open_checkpoint
from clipskip.export.models import load

PAGE = 4096


def external(path: Path) -> dict[str, ExternalDataInfo]:
    graph = onnx.load(path, load_external_data=False).graph
    return {each.name: ExternalDataInfo(each) for each in graph.initializer if uses_external_data(each)}


@pytest.fixture(scope="module")
def texts(store: Store) -> list[Path]:
    return [store.verify(store.find(Role.parse(f"text-{depth:02}"), "onnx", "fp32")) for depth in range(4)]


def test_all_text_graphs_read_one_file_and_share_its_pages_b17(texts: list[Path]) -> None:
    infos = [external(path) for path in texts]
    assert {info.location for each in infos for info in each.values()} == {"text.bin"}
    assert all(info.offset % PAGE == 0 for each in infos for info in each.values())
    for shallow, deep in pairwise(infos):
        same = {name: deep[name].offset for name in shallow}
        assert same == {name: info.offset for name, info in shallow.items()}
        assert len(deep) > len(shallow) > 0
    size = (texts[0].parent / "text.bin").stat().st_size
    last = max(infos[-1].values(), key=lambda info: info.offset)
    assert size == last.offset + last.length


def test_no_graph_is_a_link(store: Store) -> None:
    for artefact in store.manifest().artefacts:
        for record in artefact.files:
            state = (store.root / record.path).lstat()
            assert state.st_nlink == 1


def test_graphs_hold_no_paths_and_use_opset_23(texts: list[Path], store: Store) -> None:
    for path in (*texts, store.verify(store.find(STEP, "onnx", "fp32"))):
        content = path.read_bytes()
        assert b".py" not in content
        assert b"/" + Path.home().name.encode() + b"/" not in content
        model = onnx.load(path, load_external_data=False)
        assert [each.version for each in model.opset_import if not each.domain] == [23]


def test_attention_and_group_norm_stay_single_nodes(store: Store) -> None:
    graph = onnx.load(store.verify(store.find(STEP, "onnx", "fp32")), load_external_data=False).graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("Attention") == 4
    assert "Softmax" not in kinds
    assert "InstanceNormalization" not in kinds


@pytest.fixture(scope="module")
def hidden(sample_store: Path, sample_checkpoint: Path) -> tuple[npt.NDArray[np.int64], list[npt.NDArray[np.float32]]]:
    """Two rows of tokens, and what transformers makes of them at each depth."""
    encoder = load(open_checkpoint(sample_checkpoint)).texts[0]
    tokens = np.random.default_rng(0).integers(0, Store(sample_store).manifest().model.vocabulary, (2, 77))
    with torch.no_grad():
        states = encoder(torch.from_numpy(tokens), output_hidden_states=True).hidden_states
        return tokens, [encoder.final_layer_norm(state).numpy() for state in states]


@pytest.mark.parametrize("depth", range(13))
def test_the_text_graph_of_each_depth_is_the_layernormed_hidden_state(
    sample_store: Path, hidden: tuple[npt.NDArray[np.int64], list[npt.NDArray[np.float32]]], depth: int
) -> None:
    store, (tokens, states) = Store(sample_store), hidden
    path = store.verify(store.find(Role("text", depth), "onnx", "fp32"))
    feeds = {"tokens": tokens, "concepts": np.zeros((1, store.manifest().model.width), np.float32)}
    got = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)[0]
    assert np.linalg.norm(got - states[depth]) / np.linalg.norm(states[depth]) <= 1e-6
