"""Forms are made of a store's graphs, proved on the CPU, and published over the weights that are there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from copies import copy_of
from onnx_ir.tape import Tape
from safetensors.numpy import load_file

from clipskip.engines import gates, publish, report, trials, weights
from clipskip.engines.forms import FORMS, build
from clipskip.engines.forms.rewrite import like
from clipskip.engines.manifest import DECODE, STEP, Identity, Role
from clipskip.engines.store import Store
from clipskip.errors import EngineIncompatible, EngineMissing, NumericalError

LAYERS = (0, 2)
NAMES = ["text-00-cuda", "text-02-cuda", "step-cuda", "decode-cuda", "encode-cuda"]


@pytest.fixture(scope="module")
def forms(sample_fp16_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the sample model's fp16 graphs with their forms for CUDA. Not to be changed."""
    root = copy_of(sample_fp16_store, tmp_path_factory.mktemp("forms") / "store")
    assert made(root, "cuda") == NAMES
    return root


@pytest.fixture
def root(forms: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return copy_of(forms, tmp_path / "store")


def made(root: Path, variant: str) -> list[str]:
    """What is made now, in this order."""
    seconds = build.build(Store(root), variant, progress=lambda line: None, layers=LAYERS)
    return [name for name, took in seconds.items() if took is not None]


def forget(root: Path, variant: str) -> None:
    """Take all artefacts of a variant out of the manifest."""
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["artefacts"] = [each for each in manifest["artefacts"] if each.get("variant", "") != variant]
    (root / "manifest.json").write_text(json.dumps(manifest))


def test_a_form_has_its_own_parity_and_reads_the_exported_weights(forms: Path) -> None:
    store = Store(forms)
    for role in map(Role.parse, ("text-02", "step", "decode", "encode")):
        form, graph = store.find(role, "onnx", "fp16", "cuda"), store.find(role, "onnx", "fp16")
        assert form.files[0].path.endswith(f"/{role}-cuda.onnx")
        assert form.files[1].path.endswith(f"/{role}-cuda.json")
        assert form.files[-1:] == graph.files[2:]
        assert (form.inputs, form.outputs, form.axes) == (graph.inputs, graph.outputs, graph.axes)
        assert form.parity.keys() == graph.parity.keys()
        assert form.parity.get(gates.TORCH_FP16) == graph.parity.get(gates.TORCH_FP16)
    assert not [problem for _, problem in report.verify(forms) if problem]


def test_the_table_tells_where_every_weight_outside_of_the_graph_is(forms: Path) -> None:
    store = Store(forms)
    form = store.find(STEP, "onnx", "fp16", "cuda")
    folders = {Path(record.path).name: forms / record.path for record in form.files}
    table = json.loads((forms / form.files[1].path).read_text())
    weights = ir.load(store.verify(form)).graph.initializers
    assert table.keys() == {name for name, value in weights.items() if isinstance(value.const_value, ir.ExternalTensor)}
    for where, offset, nbytes, dtype, shape, _ in table.values():
        stored = np.fromfile(folders[where], dtype, count=nbytes // np.dtype(dtype).itemsize, offset=offset)
        assert np.isfinite(stored.reshape(shape)).all()


def test_the_table_tells_which_parameters_a_weight_holds_and_how(forms: Path, sample_checkpoint: Path) -> None:
    files = {"text": "text_encoder/model", "unet": "unet/diffusion_pytorch_model"}
    own = {
        f"{part}.{name.removeprefix('text_model.')}": array
        for part, stem in files.items()
        for name, array in load_file(sample_checkpoint / f"{stem}.safetensors").items()
    }
    packed, last = set(), set()
    for role in (STEP, Role("text", 2)):
        form = Store(forms).find(role, "onnx", "fp16", "cuda")
        folders = {Path(record.path).name: forms / record.path for record in form.files}
        for stored in weights.loads((forms / form.files[1].path).read_bytes()).values():
            if stored.origin is None:
                continue
            array = np.fromfile(folders[stored.file], stored.dtype, int(np.prod(stored.shape)), offset=stored.offset)
            pieces = np.split(array.reshape(stored.shape), len(stored.origin.pieces), stored.origin.axis)
            for (name, axes), piece in zip(stored.origin.pieces, pieces, strict=True):
                assert np.array_equal(piece, own[name].astype(np.float16).transpose(axes))
                assert stored.parameters()[name] == own[name].shape
                packed |= {name} if len(pieces) > 1 else set()
                last |= {name} if axes == (0, 2, 3, 1) else set()
    assert {name.split(".")[-2] for name in packed} == {"time_emb_proj", "to_k", "to_v"}
    assert {"unet.conv_in.weight", "unet.conv_out.weight"} <= last


def test_what_is_there_is_not_made_again_and_what_a_new_writer_makes_is(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert made(root, "cuda") == []
    monkeypatch.setattr(build, "version", lambda library: "another")
    assert made(root, "cuda") == NAMES


def test_a_graph_that_was_exported_anew_makes_its_form_stale(root: Path) -> None:
    store = Store(root)
    graph = store.find(DECODE, "onnx", "fp16")
    wanted = {graph.identity: graph.ingredients | {"again": "1"}}
    with publish.build(root, "again", wanted, progress=lambda line: None) as draft:
        model = ir.load(store.verify(graph))
        model.doc_string = "another"
        ir.save(model, draft.folder / "decode.onnx")
        shutil.copy(root / graph.files[-1].path, draft.folder)
        draft.add(publish.replace(graph, files=(), ingredients={}), ["decode.onnx", "decode.bin"])
    assert made(root, "cuda") == ["decode-cuda"]


def test_weights_stay_as_long_as_a_form_reads_them(root: Path) -> None:
    forget(root, "")
    folder = Store(root).find(STEP, "onnx", "fp16", "cuda").files[-1].path.partition("/")[0]
    assert folder.startswith("onnx-fp16-")
    assert folder not in publish.gc(root)
    assert not [problem for name, problem in report.verify(root) if problem]


def test_a_graph_that_is_replaced_meanwhile_ends_the_build(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget(root, "cuda")
    honest = gates.run

    def run(*arguments: object) -> object:
        forget(root, "")
        return honest(*arguments)

    monkeypatch.setattr(gates, "run", run)
    with pytest.raises(EngineIncompatible, match="graph changed while text-00-cuda was being built"):
        made(root, "cuda")


def test_a_form_that_computes_something_else_is_not_published(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def doubled(node: ir.Node, tape: Tape) -> Mapping[ir.Value, ir.Value] | None:
        if node.op_type != "Conv":
            return None
        return {node.outputs[0]: like(node, tape, [tape.op("Add", [node.inputs[0]] * 2), *node.inputs[1:]])}

    forget(root, "cuda")
    monkeypatch.setitem(FORMS, "cuda", FORMS["cuda"] | {"step": (doubled,)})
    with pytest.raises(NumericalError, match="step-cuda differs from step: relative_l2 is"):
        made(root, "cuda")
    variants = [artefact.identity.stem for artefact in Store(root).manifest().artefacts if artefact.variant]
    assert variants == ["text-00-cuda", "text-02-cuda"]


def test_without_graphs_of_that_precision_the_export_is_named(root: Path) -> None:
    with pytest.raises(EngineMissing, match="has no step for onnx at fp32") as caught:
        made(root, "cpu")
    assert "export CHECKPOINT" in str(caught.value.hint)


def test_a_store_without_the_form_for_the_cpu_gets_it_without_its_checkpoint(
    sample_store: Path, tmp_path: Path
) -> None:
    root = copy_of(sample_store, tmp_path / "store")
    assert made(root, "cpu") == []  # export wrote them
    exported = Store(root).find(STEP, "onnx", "fp32", "cpu")
    forget(root, "cpu")
    assert made(root, "cpu") == ["step-cpu", "decode-cpu", "encode-cpu"]
    assert made(root, "cpu") == []
    store = Store(root)
    form = store.find(STEP, "onnx", "fp32", "cpu")
    feeds = trials.of(STEP, store.manifest().model, half=False, ports=())
    here = gates.run(store.verify(form).read_bytes(), feeds, [root / form.files[-1].path])
    there = gates.run(store.verify(exported), feeds)
    assert all(np.array_equal(*(each["next_state"] for each in pair)) for pair in zip(here, there, strict=True))


def test_a_form_for_the_cpu_that_export_wrote_is_mended_without_the_checkpoint(
    sample_store: Path, tmp_path: Path
) -> None:
    root = copy_of(sample_store, tmp_path / "store")
    (root / Store(root).find(STEP, "onnx", "fp32", "cpu").files[0].path).write_bytes(b"")
    assert made(root, "cpu") == ["step-cpu"]
    assert not [problem for _, problem in report.verify(root) if problem]


def test_forms_are_built_without_torch() -> None:
    code = "import sys; from clipskip.engines.forms import build; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_form_names_the_command_that_makes_it(sample_fp16_store: Path) -> None:
    with pytest.raises(EngineMissing, match="has no step for onnx at fp16, cuda") as caught:
        Store(sample_fp16_store).find(*Identity(STEP, "onnx", "fp16", "cuda"))
    assert str(caught.value.hint).endswith("--target onnxruntime-cuda")
