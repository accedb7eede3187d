"""An export makes what is missing, by content, and leaves the store alone when it fails."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch

import clipskip
from clipskip.backends.onnxruntime import OnnxRuntime
from clipskip.engines import files, hints
from clipskip.engines.manifest import DECODE, ENCODE, STEP, Identity, Role
from clipskip.engines.report import verify
from clipskip.engines.store import Store
from clipskip.errors import (
    DeviceOutOfMemory,
    EngineCorrupt,
    EngineIncompatible,
    NumericalError,
    RequestError,
    StorageError,
)
from clipskip.export import build, cases, export, job
from clipskip.export.checkpoint import open_checkpoint
from clipskip.export.families import facts
from clipskip.export.models import Networks

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def root(store: Store, tmp_path: Path) -> Path:
    """A copy of the tiny model's store."""
    return shutil.copytree(store.root, tmp_path / "store")


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_everything_is_published_with_its_parity_and_the_tokenizer(store: Store) -> None:
    manifest = store.manifest()
    roles = {str(artefact.role) for artefact in manifest.artefacts}
    assert roles == {"text-00", "text-01", "text-02", "text-03", "step", "decode", "encode"}
    for artefact in manifest.artefacts:
        assert artefact.parity.get("relative_l2", 0) <= 1e-5
        assert artefact.parity.get("psnr_db", 99) >= 40
        assert artefact.parity
        assert artefact.provenance["torch"] == torch.__version__
    assert sorted(path.name for path in store.verify_tokenizer().iterdir())[-1] == "vocab.json"


def test_a_touched_or_copied_checkpoint_exports_nothing_b14(checkpoint: Path, root: Path) -> None:
    for path in checkpoint.rglob("*"):
        os.utime(path, (1, 1))
    before, lines = content(root), []
    export(checkpoint, root, progress=lines.append)
    assert lines[-1].endswith("up to date")
    assert content(root) == before


def test_an_export_with_nothing_to_do_does_not_even_import_torch(tiny: Path, root: Path) -> None:
    code = (
        "import sys, time; from clipskip.export import export; export(*sys.argv[1:]);"
        "assert not {'torch', 'onnx', 'transformers', 'diffusers'} & set(sys.modules); print(time.process_time())"
    )
    done = subprocess.run([sys.executable, "-c", code, tiny, root], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 2


def test_a_changed_weight_is_a_reason_and_an_interrupt_leaves_the_store(
    checkpoint: Path, root: Path, edit_weights: Callable[..., None]
) -> None:
    edit_weights(checkpoint / UNET, lambda weights: weights | {"conv_in.bias": weights["conv_in.bias"] + 1})
    before, lines = content(root), []

    def interrupt(line: str) -> None:
        lines.append(line)
        if line == "loading the networks":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(checkpoint, root, progress=interrupt)
    assert any("the checkpoint changed" in line and UNET in line for line in lines)
    assert content(root) == before


def reason(checkpoint: Path, root: Path, **options: str) -> str:
    """What an export says until it begins to work, for there is something to do."""
    lines: list[str] = []

    def stop(line: str) -> None:
        lines.append(line)
        if line == "loading the networks":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(checkpoint, root, progress=stop, **options)
    return " ".join(lines)


def test_another_library_version_or_precision_is_a_reason(
    tiny: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "not built yet" in reason(tiny, root, precision="fp16")
    monkeypatch.setattr("clipskip.export.job.GRAPH_WRITERS", ("job.py",))
    another = hashlib.sha256(Path(job.__file__).read_bytes()).hexdigest()[:16]
    assert f"-> {another}" in reason(tiny, root)


def test_a_graph_that_fails_its_gate_publishes_nothing_b12(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = cases.text

    def dishonest(networks: Networks, *rest: object) -> object:
        other = copy.deepcopy(networks.texts[0])  # the graph that was traced shares its weights with the encoder
        other.get_parameter("encoder.layers.0.mlp.fc1.weight").data.mul_(1.02)
        return honest(replace(networks, texts=(other,)), *rest)

    monkeypatch.setattr(cases, "text", dishonest)
    with pytest.raises(NumericalError, match="text-01 differs"):
        export(tiny, tmp_path / "store")
    assert not [path for path in (tmp_path / "store").iterdir() if not path.name.startswith(".lock")]


def test_a_missing_depth_is_added_without_making_the_rest_again(tiny: Path, root: Path) -> None:
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["artefacts"] = [each for each in manifest["artefacts"] if each["role"] not in ("text-01", "text-03")]
    (root / "manifest.json").write_text(json.dumps(manifest))
    before = Store(root).manifest()
    after = export(tiny, root, skips=[1])
    assert {each.role for each in after.artefacts} == {each.role for each in before.artefacts} | {Role("text", 3)}
    assert after.find(Identity(STEP, "onnx", "fp32")) == before.find(Identity(STEP, "onnx", "fp32"))
    store = Store(root)
    for artefact in after.artefacts:
        store.verify(artefact)


@pytest.mark.parametrize("role", ["step", "decode"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_missing_network_is_added_and_torch_is_asked_for_no_more_than_it_takes(
    tiny: Path, store: Store, half_store: Store, tmp_path: Path, asked: list[str], precision: str, role: str
) -> None:
    root = shutil.copytree((store if precision == "fp32" else half_store).root, tmp_path / "store")
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["artefacts"] = [artefact for artefact in manifest["artefacts"] if artefact["role"] != role]
    (root / "manifest.json").write_text(json.dumps(manifest))
    assert export(tiny, root, precision=precision).find(Identity(Role.parse(role), "onnx", precision)) is not None
    assert asked == {"step": ["text", "step"], "decode": ["decode", "encode"]}[role]


def test_what_was_said_by_hand_changes_the_manifest_only_and_is_kept_a17(tiny: Path, root: Path) -> None:
    before = Store(root).manifest().artefacts
    after = export(tiny, root, recommended_clip_skip=2, prediction="v_prediction")
    assert (after.model.recommended_clip_skip, after.model.prediction) == (2, "v_prediction")
    assert after.artefacts == before
    assert Store(root).manifest() == after, "on the disk as well"
    assert export(tiny, root) == after
    assert export(tiny, root, recommended_clip_skip=1).model.prediction == "v_prediction"
    assert export(tiny, root, prediction="epsilon").model == replace(
        after.model, prediction="epsilon", recommended_clip_skip=1
    )


@pytest.mark.parametrize("place", ["/sys/store", "/proc/store", "a file", "a file/store"])
def test_a_store_that_cannot_be_written_is_refused_before_any_work_b4(tiny: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "a file").touch()
    lines: list[str] = []
    with pytest.raises(StorageError) as caught:
        export(tiny, tmp_path / place, progress=lines.append)
    assert caught.value.exit_status == 7
    assert place in (caught.value.path or "")
    assert lines == ["reading the checkpoint"]


def test_a_disk_or_quota_too_small_for_the_model_is_refused_before_any_work_b4(
    tiny: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, lines = content(root), []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(StorageError, match=r"no room in .*: needs \d+ kB, 1\.0 kB free") as caught:
        export(tiny, root, precision="fp16", progress=lines.append)
    assert caught.value.exit_status == 7
    assert "loading the networks" not in lines
    assert content(root) == before


def test_what_a_checkpoint_says_itself_is_not_kept_from_before(checkpoint: Path, edit: Callable[..., None]) -> None:
    found = open_checkpoint(checkpoint)
    earlier = replace(facts(found), prediction="v_prediction", recommended_clip_skip=9)
    assert facts(found, earlier=earlier).prediction == "v_prediction"
    assert facts(found, earlier=earlier).recommended_clip_skip == 4, "of three layers"
    assert facts(found, earlier=replace(earlier, name="another")).prediction == "epsilon"
    edit(checkpoint / "scheduler" / "scheduler_config.json", prediction_type="epsilon")
    assert facts(open_checkpoint(checkpoint), earlier=earlier).prediction == "epsilon"


def test_an_export_to_where_the_checkpoint_is_is_refused_before_any_work(checkpoint: Path) -> None:
    for out in (checkpoint, checkpoint / "unet", checkpoint.parent / "x" / ".." / "tiny"):
        with pytest.raises(RequestError, match="where the checkpoint is"):
            export(checkpoint, out)
    assert not (checkpoint / "manifest.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "precision must be one of fp32, fp16, not 'int8'"),
        ({"skips": []}, "skips must name at least one clip skip"),
        ({"prediction": "v"}, "prediction must be epsilon or v_prediction, not 'v'"),
        *(({"skips": [skip]}, f"clip_skip must be 1..4, not {skip}: it counts from 1 ") for skip in (0, 5, True, 0.9)),
    ],
)
def test_what_the_model_does_not_have_is_refused_before_anything_is_read_twice(
    tiny: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(RequestError, match=re.escape(message)):
        export(tiny, tmp_path / "store", **options)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("options", "skip"),
    [({"skips": [1, 2], "recommended_clip_skip": 3}, 3), ({"skips": [2]}, 1), ({"skips": [2, 4]}, 1)],
)
def test_a_recommended_clip_skip_without_its_graph_is_refused_before_any_work(
    tiny: Path, tmp_path: Path, options: dict[str, object], skip: int
) -> None:
    with pytest.raises(RequestError, match=f"skips leave out {skip}, the recommended_clip_skip") as caught:
        export(tiny, tmp_path / "store", **options)
    assert caught.value.field == "recommended_clip_skip"
    assert caught.value.hint == f"add {skip} to --skips, or give one of them with --recommended-clip-skip"
    assert not (tmp_path / "store").exists()


def test_a_recommendation_that_the_store_has_and_an_export_leaves_out_is_refused_as_well(
    tiny: Path, root: Path
) -> None:
    assert export(tiny, root, skips=[1, 2], recommended_clip_skip=3).model.recommended_clip_skip == 3  # its graph stays
    before = content(root)
    with pytest.raises(RequestError, match="skips leave out 3"):
        export(tiny, root, precision="fp16", skips=[1, 2])
    assert content(root) == before
    assert Store(root).find(Role("text", 1), "onnx", "fp32")


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
@pytest.mark.parametrize("edit", [lambda data: data + b" ", lambda data: data.replace(b"c", b"C", 1), None])
def test_an_edited_tokenizer_is_refused_by_readers_and_made_again_by_an_export_c13(
    tiny: Path, root: Path, name: str, edit: Callable[[bytes], bytes] | None
) -> None:
    (record,) = (record for record in Store(root).manifest().tokenizer if record.path.endswith(name))
    path = root / record.path
    path.write_bytes(edit(path.read_bytes())) if edit else path.unlink()
    with pytest.raises(EngineCorrupt, match=name) as caught:
        clipskip.open(root)
    assert caught.value.exit_status == 4
    assert caught.value.hint == f"{hints.clipskip()} export CHECKPOINT --out {root} --precision fp32"
    assert [problem for artefact, problem in verify(root) if problem and artefact != "tokenizer"] == []
    assert name in reason(tiny, root)


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("scheduler/scheduler_config.json", {"beta_end": 0.0121}),
        ("scheduler/scheduler_config.json", {"clip_sample": True}),
        ("vae/config.json", {"scaling_factor": 0.2}),
        ("tokenizer/added_tokens.json", {}),
    ],
)
def test_an_edited_configuration_is_another_model_with_a_hash_of_its_own_c13(
    checkpoint: Path, root: Path, edit: Callable[..., None], name: str, entries: dict[str, object]
) -> None:
    before = Store(root).manifest().model
    if (checkpoint / name).exists():
        assert name in before.sources
        edit(checkpoint / name, **entries)
    else:
        (checkpoint / name).write_text(json.dumps(entries))
    after = facts(open_checkpoint(checkpoint))
    assert after.model_sha256 != before.model_sha256
    assert {source for source, _ in after.sources.items() ^ before.sources.items()} == {name}
    assert f"the checkpoint changed: {name}" in reason(checkpoint, root)


def test_half_precision_passes_its_gates_and_shows_only_in_the_context(half_store: Store) -> None:
    for artefact in half_store.manifest().artefacts:
        types = {port.name: port.dtype for port in (*artefact.inputs, *artefact.outputs)}
        assert [name for name, dtype in types.items() if dtype == "float16"] == ["context"] * ("context" in types)
        if artefact.role != DECODE:
            assert artefact.parity["relative_l2"] <= 2 * artefact.parity["torch_fp16_relative_l2"]


def test_every_graph_says_what_it_is_and_is_opened_as_nothing_else_c11(store: Store) -> None:
    backend = OnnxRuntime()
    for artefact in store.manifest().artefacts:
        backend.open(artefact, store.verify(artefact)).close()
    deep, shallow = (store.find(Role("text", layers), "onnx", "fp32") for layers in (3, 1))
    with pytest.raises(EngineIncompatible, match="is no text-03 as the manifest has it: it is text-01"):
        backend.open(deep, store.verify(shallow))


def test_a_lack_of_memory_while_torch_works_is_called_that_b8(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(build, "build", fail)
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):  # with memory left it is a bug
        export(tiny, tmp_path / "store")
    monkeypatch.setattr(files, "_ROOM", 1 << 60)
    with pytest.raises(DeviceOutOfMemory, match="there is not enough memory"):
        export(tiny, tmp_path / "store")
    assert list((tmp_path / "store").iterdir()) == []


def test_norms_that_half_precision_spoils_stay_in_float32_by_name(
    checkpoint: Path, edit_weights: Callable[..., None], tmp_path: Path
) -> None:
    def overflowing(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """One channel is far from its group's others: its weight takes it beyond float16, its bias back."""
        weights["encoder.mid_block.resnets.1.conv2.bias"][3] += 200
        weights["encoder.conv_norm_out.weight"][3], weights["encoder.conv_norm_out.bias"][3] = 4e4, -6e4
        weights["encoder.conv_out.weight"][:, 3] = 1e-4
        return weights

    edit_weights(checkpoint / "vae" / "diffusion_pytorch_model.safetensors", overflowing)
    manifest = export(checkpoint, tmp_path / "store", precision="fp16")
    notes = {artefact.role: artefact.notes for artefact in manifest.artefacts if artefact.notes}
    spoiled = "vae.encoder.conv_norm_out.norm.weight"
    assert notes == {ENCODE: (f"norms in fp32, for fp16 would spoil them: {spoiled}",)}
    path = tmp_path / "store" / manifest.find(Identity(ENCODE, "onnx", "fp16")).files[0].path
    weights = onnx.load(path).graph.initializer
    floats = {weight.name for weight in weights if weight.data_type == onnx.TensorProto.FLOAT}
    assert {name for name in floats if "norm" in name} == {spoiled, spoiled.replace("weight", "bias")}
