"""TAESD beside the model's own decoder: every layout that is about, against diffusers, and as a thing of its own."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file

import clipskip
from clipskip.engines import tensorrt
from clipskip.engines.errors import CheckpointError, EngineMissing, UnsupportedModelError
from clipskip.engines.forms import FORMS
from clipskip.engines.forms.build import build
from clipskip.engines.manifest import DECODE_TINY
from clipskip.engines.store import Store
from clipskip.export import export
from clipskip.export.tinyfile import open_tiny


@pytest.fixture(scope="module")
def taesd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in diffusers' layout, of random weights."""
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("models") / "taesd"
    network = AutoencoderTiny()
    folder.mkdir()
    weights = {name: value * 1.5 for name, value in network.state_dict().items()}
    weights["decoder.layers.18.bias"] = torch.full((3,), 0.5)  # or most of its pictures are black
    save_file(weights, folder / "taesd.safetensors")
    (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderTiny", **network.config}))
    return folder


def numbered(taesd: Path, path: Path, prefix: str = "") -> Path:
    """The decoder as its maker wrote it: the clamp of its input is the first of its parts."""
    tensors = load_file(taesd / "taesd.safetensors")
    named = {
        re.sub(r"decoder\.layers\.(\d+)", lambda match: f"{prefix}{int(match[1]) + 1}", name): value
        for name, value in tensors.items()
        if name.startswith("decoder.")
    }
    save_file(named, path)
    return path


@pytest.fixture(scope="module")
def both(tiny: Path, taesd: Path, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The tiny model's graphs, and then its tiny decoder."""
    root = shutil.copytree(store.root, tmp_path_factory.mktemp("stores") / "both")
    export(tiny, root, tiny_vae=taesd)
    return Store(root)


def test_it_may_come_later_and_nothing_else_is_made_anew(
    tiny: Path, taesd: Path, store: Store, tmp_path: Path, asked: list[str]
) -> None:
    root = shutil.copytree(store.root, tmp_path / "store")
    export(tiny, root, tiny_vae=taesd)
    assert asked == ["decode"], "torch was asked for the tiny decoder alone"
    before, after = ({each.role: each.key for each in Store(each).manifest().artefacts} for each in (store.root, root))
    assert {**before, DECODE_TINY: after[DECODE_TINY]} == after


def test_the_tiny_decoder_gives_the_pictures_of_diffusers(both: Store, taesd: Path) -> None:
    latents = torch.randn(2, 4, 9, 17, generator=torch.Generator().manual_seed(1)) * 2
    network = AutoencoderTiny(**json.loads((taesd / "config.json").read_text(), object_hook=known))
    network.load_state_dict(load_file(taesd / "taesd.safetensors"))
    with torch.no_grad():
        expected = ((network.decode(latents).sample / 2 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1).numpy()
    session = onnxruntime.InferenceSession(both.verify(both.find(DECODE_TINY, "onnx", "fp32")))
    picture, finite = session.run(None, {"latents": latents.numpy()})
    assert np.abs(picture - expected).max() <= 1
    assert expected.std() > 20, "a flat picture would show nothing"
    assert finite.tolist() == [True, True]


def known(config: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in config.items() if name[0] != "_" and name != "block_out_channels"}


def test_the_numbered_layout_gives_the_graph_of_the_folder(
    tiny: Path, taesd: Path, both: Store, tmp_path: Path
) -> None:
    root = shutil.copytree(both.root, tmp_path / "store")
    export(tiny, root, tiny_vae=numbered(taesd, tmp_path / "taesd_decoder.safetensors"))
    before, after = (store.find(DECODE_TINY, "onnx", "fp32") for store in (both, Store(root)))
    assert after.key != before.key, "another file"
    assert [file.sha256 for file in after.files] == [file.sha256 for file in before.files]


@pytest.mark.parametrize("prefix", ["", "decoder.", "taesd_decoder."])
def test_every_way_of_numbering_means_the_same_layers(taesd: Path, tmp_path: Path, prefix: str) -> None:
    mine, theirs = (open_tiny(path).part for path in (numbered(taesd, tmp_path / "x.safetensors", prefix), taesd))
    assert sorted(map(mine.modern, mine.tensors)) == sorted(map(theirs.modern, theirs.tensors))
    assert len(mine.tensors) == 67


def test_what_is_there_already_is_not_made_again_and_outlives_an_export_without_it(
    tiny: Path, taesd: Path, both: Store, asked: list[str]
) -> None:
    export(tiny, both.root, tiny_vae=taesd)
    export(tiny, both.root)
    assert asked == []
    assert Store(both.root).manifest() == both.manifest()


def test_at_half_precision_it_passes_its_gate_and_has_a_form_for_cuda(
    tiny: Path, taesd: Path, half_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(half_store.root, tmp_path / "store")
    export(tiny, root, precision="fp16", tiny_vae=taesd)
    monkeypatch.setitem(FORMS, "cuda", {"decode-tiny": FORMS["cuda"]["decode-tiny"]})
    assert set(build(Store(root), "cuda", progress=lambda line: None)) == {"decode-tiny-cuda"}
    form = Store(root).find(DECODE_TINY, "onnx", "fp16", "cuda")
    assert form.parity["psnr_db"] > 50
    assert b"NhwcConv" in (root / form.files[0].path).read_bytes()


def test_a_store_without_it_has_no_form_of_it_and_no_engine(half_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMS, "cuda", {"decode-tiny": FORMS["cuda"]["decode-tiny"]})
    assert build(half_store, "cuda", progress=lambda line: None) == {}
    assert DECODE_TINY not in tensorrt.roles(half_store, None)


def test_a_request_chooses_its_decoder_and_previews_take_the_tiny_one(both: Store) -> None:
    request = clipskip.Request(prompt="a cat", seed=1, steps=2)
    with clipskip.open(both.root) as pipe:
        *early, last = pipe.steps(request)
        preview, own = early[-1].preview()[0], last.results[0]
        tiny = pipe(request, decoder="tiny")
        assert np.array_equal(preview, tiny.images[0]), "the latents of the last call are the finished ones"
    assert np.array_equal(last.preview()[0], own.images[0])
    assert not np.array_equal(own.images[0], tiny.images[0])
    used = [{name for name in result.engines if "decode" in name} for result in (own, tiny)]
    assert used == [{"decode-cpu"}, {"decode-tiny"}]


def test_a_store_without_it_refuses_the_request_with_the_command_that_brings_it(store: Store) -> None:
    with clipskip.open(store.root) as pipe, pytest.raises(EngineMissing, match="has no decode-tiny") as caught:
        pipe("a cat", decoder="tiny", seed=1, steps=1)
    assert f"export CHECKPOINT --out {store.root} --precision fp32 --tiny-vae FILE" in str(caught.value.hint)
    assert store.command("tensorrt-rtx", "fp16", DECODE_TINY).endswith("--precision fp16 --tiny-vae FILE")


def test_where_its_graph_is_an_engine_of_it_is_built(both: Store) -> None:
    assert "build" in both.command("tensorrt-rtx", "fp16", DECODE_TINY)


def test_what_is_no_tiny_decoder_is_refused_by_what_it_is(tiny: Path, taesd: Path, tmp_path: Path) -> None:
    tensors = load_file(taesd / "taesd.safetensors")
    path = tmp_path / "taesd.safetensors"
    save_file({name: value for name, value in tensors.items() if name.startswith("encoder.")}, path)
    with pytest.raises(CheckpointError, match="holds no decoder of TAESD"):
        open_tiny(path)
    save_file({**tensors, "decoder.layers.0.weight": torch.zeros(64, 16, 3, 3)}, path)
    with pytest.raises(UnsupportedModelError, match=r"16 channels; those of SD 1\.x and 2\.x have 4"):
        open_tiny(path)
    with pytest.raises(CheckpointError, match="it is a VAE in one file"):
        open_tiny(tiny / "vae")
    with pytest.raises(CheckpointError, match="no tiny VAE at"):
        open_tiny(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_decoder_blocks": [3, 3, 3, 2]}, "does not hold the tiny VAE"),
        ({"num_decoder_blocks": 5}, "no tiny VAE can be made"),
        ({"upsampling_scaling_factor": 4}, "enlarges 64 times, not 8 times"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_and_the_store_stays(
    tiny: Path, taesd: Path, both: Store, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    folder = shutil.copytree(taesd, tmp_path / "taesd")
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    with pytest.raises(CheckpointError, match=message):
        export(tiny, both.root, tiny_vae=folder)
    assert Store(both.root).manifest() == both.manifest()
