"""One-file SD 1.x models: the same weights under their old names give the same networks."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from originals import original_unet, original_vae, write_one_file
from safetensors.torch import load_file, save_file

from clipskip.errors import CheckpointError, UnsupportedModelError
from clipskip.export import names, onefile, tokenizer
from clipskip.export.checkpoint import open_checkpoint
from clipskip.export.families import facts
from clipskip.export.models import load


@pytest.fixture
def one_file(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny model as one file, and SD 1.x's configurations shrunk to its size."""
    return write_one_file(tiny, tmp_path / "my model.safetensors", monkeypatch)


def test_a_model_in_one_file_is_the_model_in_a_folder(tiny: Path, one_file: Path) -> None:
    source = open_checkpoint(one_file)
    assert list(source.sources) == ["my model.safetensors"]
    folder, file = load(open_checkpoint(tiny)), load(source)
    for part, network in folder.named.items():
        found = file.named[part].state_dict()
        assert found.keys() == network.state_dict().keys()
        assert all(torch.equal(value, found[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("kind", ["unet", "vae"])
def test_the_names_of_a_full_sd_1_are_those_that_diffusers_converts_to(kind: str) -> None:
    with torch.device("meta"):
        network = (UNet2DConditionModel if kind == "unet" else AutoencoderKL).from_config(
            dict(onefile.SD1.unet if kind == "unet" else onefile.VAE)
        )
    expected = list(network.state_dict())
    if kind == "unet":
        file = {f"model.diffusion_model.{original_unet(name, 2, {1, 2, 3})}": name for name in expected}
        converted = convert_ldm_unet_checkpoint(dict(file), dict(network.config))
        modern = names.unet_from_file
    else:
        file = {f"first_stage_model.{original_vae(name, 4)}": name for name in expected}
        tensors = {key: torch.zeros(1, 1, 1, 1) for key in file}
        converted = {key: key for key in convert_ldm_vae_checkpoint(tensors, dict(network.config))}
        modern = names.vae_from_file
    assert converted == {name: name for name in expected}
    assert {key: modern(key) for key in file} == file


def test_the_packaged_tokenizer_is_clips() -> None:
    vocabulary = json.loads(tokenizer.clip()["vocab.json"])  # it checks itself
    assert len(vocabulary) == 49408
    words = ("a</w>", "photo</w>", "of</w>", "cat</w>", "<|startoftext|>", "<|endoftext|>")
    assert [vocabulary[word] for word in words] == [320, 1125, 539, 2368, 49406, 49407]


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ({"conditioner.embedders.1.model.ln_final.weight": torch.ones(2)}, "is SDXL; SD 1.x and SD 2.x are supported"),
        ({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(16, 8, 3, 3)}, "is an instruct-pix2pix model"),
        ({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(16, 5, 3, 3)}, "is a depth-to-image model"),
        ({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(16, 6, 3, 3)}, "sees 6 channels"),
        ({"model.diffusion_model.label_emb.0.0.weight": torch.ones(2, 2)}, "is conditioned on a class or a picture"),
        ({"model.diffusion_model.input_blocks.1.motion_modules.0.norm.bias": torch.ones(2)}, "makes films"),
    ],
)
def test_one_file_of_another_model_is_refused_by_name_a15(
    one_file: Path, added: dict[str, torch.Tensor], message: str
) -> None:
    save_file(load_file(one_file) | added, one_file)
    with pytest.raises(UnsupportedModelError, match=message):
        open_checkpoint(one_file)


@pytest.mark.parametrize(
    ("names_of", "message"),
    [
        (["lora_unet_x.lora_up.weight"], "is a LoRA; SD 1.x and SD 2.x are supported in one file"),
        (["control_model.input_hint_block.0.weight"], "is a ControlNet"),
        (["emb_params"], "is a textual inversion"),
        (["blob"], "is of an unknown kind"),
        (["encoder.down.0.block.0.conv1.weight", "decoder.up.0.block.0.conv1.weight"], "is a VAE in one file"),
    ],
)
def test_a_file_that_is_no_whole_model_is_refused_by_name_a16(
    tmp_path: Path, names_of: list[str], message: str
) -> None:
    save_file({name: torch.ones(2) for name in names_of}, tmp_path / "x.safetensors")
    with pytest.raises(UnsupportedModelError, match=message):
        open_checkpoint(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("prefix", "part"), [("first_stage_model.", "vae"), ("cond_stage_model.", "text_encoder"), ("model.", "unet")]
)
def test_a_pruned_file_is_told_what_it_lacks_a17(one_file: Path, prefix: str, part: str) -> None:
    save_file({name: value for name, value in load_file(one_file).items() if not name.startswith(prefix)}, one_file)
    message = f"{re.escape(str(one_file))} (has no {part} in it|is of an unknown kind|is a .*; SD 1.x)"
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(one_file)
    assert caught.value.exit_status == 3
    assert ("--vae" in (caught.value.hint or "")) == (part == "vae")


def test_a_v_prediction_model_says_so_in_its_file_a17(one_file: Path) -> None:
    assert facts(open_checkpoint(one_file)).prediction == "epsilon"
    save_file(load_file(one_file) | {"v_pred": torch.ones(1)}, one_file)
    assert facts(open_checkpoint(one_file)).prediction == "v_prediction"
    assert facts(open_checkpoint(one_file), prediction="epsilon").prediction == "epsilon"


YAML = "model:\n  target: ldm.models.diffusion.ddpm.LatentDiffusion\n  params:\n    {}\n    linear_start: 0.00085\n"


@pytest.mark.parametrize(
    ("line", "prediction"),
    [
        ('parameterization: "v"', "v_prediction"),
        ("parameterization: v  # for this one", "v_prediction"),
        ("'parameterization' : 'eps'", "epsilon"),
        ('params: {linear_end: 0.012, parameterization: "v"}', "v_prediction"),
        ('# parameterization: "v"', "epsilon"),
        ("scale_factor: 0.18215", "epsilon"),
        ("\xff\x00 parameterization", "epsilon"),
    ],
)
def test_a_yaml_beside_the_file_says_what_it_predicts(one_file: Path, line: str, prediction: str) -> None:
    one_file.with_suffix(".yaml").write_text(YAML.format(line), encoding="latin-1")
    assert facts(open_checkpoint(one_file)).prediction == prediction


@pytest.mark.parametrize(
    ("said", "prediction"),
    [("v", "v_prediction"), ("V_prediction", "v_prediction"), ("epsilon", "epsilon"), ("", "epsilon")],
)
def test_a_file_s_metadata_say_what_it_predicts_a17(one_file: Path, said: str, prediction: str) -> None:
    metadata = {"modelspec.prediction_type": said, "modelspec.architecture": "stable-diffusion-v1"}
    save_file(load_file(one_file), one_file, metadata=metadata)
    found = open_checkpoint(one_file)
    assert facts(found).prediction == prediction
    for by_hand in ("epsilon", "v_prediction"):
        assert facts(found, prediction=by_hand).prediction == by_hand


def test_a_network_that_predicts_something_else_is_refused_where_it_is_said_and_can_be_overruled_a17(
    one_file: Path,
) -> None:
    said = {"modelspec.prediction_type": "flow"}
    save_file(load_file(one_file), one_file, metadata=said)
    beside = one_file.with_suffix(".yaml")
    for what, path in (("flow", one_file), ("x0", beside)):
        if path == beside:
            beside.write_text(YAML.format("parameterization: x0"))
        with pytest.raises(UnsupportedModelError, match=f"predicts no noise, but '{what}'") as caught:
            facts(open_checkpoint(one_file))
        assert caught.value.path == str(path)
        assert str(path) in caught.value.message
        assert "--prediction epsilon" in (caught.value.hint or "")
        assert facts(open_checkpoint(one_file), prediction="epsilon").prediction == "epsilon"


def same_vae(found: AutoencoderKL, tiny: Path, scale: float = 1) -> bool:
    expected = load_file(tiny / VAE_FILE)
    return all(torch.equal(value * scale, found.state_dict()[name]) for name, value in expected.items())


VAE_FILE = "vae/diffusion_pytorch_model.safetensors"


@pytest.mark.parametrize("names_of", ["prefixed", "bare", "today's", "today's, prefixed", "whole model"])
@pytest.mark.parametrize("base", ["file", "folder"])
def test_a_vae_is_taken_from_another_file_in_whatever_names(
    tiny: Path, one_file: Path, tmp_path: Path, base: str, names_of: str
) -> None:
    today = {name: value * 2 for name, value in load_file(tiny / VAE_FILE).items()}
    old = {original_vae(name, 4): value for name, value in today.items()}
    prefix = "first_stage_model." if names_of != "bare" and names_of != "today's" else ""
    weights = {f"{prefix}{name}": value for name, value in (today if "today" in names_of else old).items()}
    beside = {"loss.logvar": torch.ones(1), "model_ema.decay": torch.ones(1)}
    whole = {"model.diffusion_model.out.2.bias": torch.ones(4)}
    save_file(weights | (whole if names_of == "whole model" else beside), tmp_path / "other.safetensors")
    source = open_checkpoint(one_file if base == "file" else tiny, tmp_path / "other.safetensors")
    assert source.sources["another vae/other.safetensors"] == digest(tmp_path / "other.safetensors")
    assert same_vae(load(source).vae, tiny, 2)
    own = facts(open_checkpoint(one_file if base == "file" else tiny))
    assert facts(source).model_sha256 != own.model_sha256
    assert facts(source).scaling_factor == own.scaling_factor


def test_a_vae_in_a_folder_comes_with_its_own_configuration(
    tiny: Path, one_file: Path, checkpoint: Path, edit: Callable[..., None]
) -> None:
    edit(checkpoint / "vae" / "config.json", scaling_factor=0.5)
    for folder in (checkpoint, checkpoint / "vae"):
        source = open_checkpoint(one_file, folder)
        assert facts(source).scaling_factor == 0.5
        assert sorted(source.sources) == [
            "another vae/config.json", "another vae/diffusion_pytorch_model.safetensors", one_file.name,
        ]  # fmt: skip
        assert same_vae(load(source).vae, tiny)
    shutil.rmtree(checkpoint / "vae")
    assert same_vae(load(open_checkpoint(checkpoint, tiny)).vae, tiny)


def test_a_file_without_a_vae_says_what_to_do_and_is_whole_with_another_a17(
    tiny: Path, one_file: Path, tmp_path: Path
) -> None:
    weights = load_file(one_file)
    save_file({n: value for n, value in weights.items() if not n.startswith("first_stage_model.")}, one_file)
    with pytest.raises(CheckpointError, match="has no vae in it") as caught:
        open_checkpoint(one_file)
    assert "--vae" in (caught.value.hint or "")
    assert same_vae(load(open_checkpoint(one_file, tiny / VAE_FILE)).vae, tiny)


@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
def test_what_is_no_vae_is_refused_as_one(tiny: Path, one_file: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="holds no VAE") as caught:
        open_checkpoint(one_file, tiny / name)
    assert caught.value.field == "vae"


@pytest.mark.parametrize("new", ["to_{}", "{}"])
def test_newer_names_of_the_vae_s_attention_are_the_same_a17(tiny: Path, one_file: Path, new: str) -> None:
    def rename(name: str) -> str:
        name = re.sub(r"attn_1\.([qkv])\.", lambda match: f"attn_1.{new.format(match[1])}.", name)
        if new == "to_{}":
            name = name.replace("attn_1.proj_out.", "attn_1.to_out.0.").replace("attn_1.norm.", "attn_1.group_norm.")
        return name

    save_file({rename(name): value for name, value in load_file(one_file).items()}, one_file)
    assert same_vae(load(open_checkpoint(one_file)).vae, tiny)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32, torch.float16, torch.uint8])
def test_positions_of_any_type_are_replaced(tiny: Path, one_file: Path, dtype: torch.dtype) -> None:
    positions = {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77).to(dtype)[None]}
    save_file(load_file(one_file) | positions, one_file)
    assert torch.equal(load(open_checkpoint(one_file)).texts[0].embeddings.position_ids, torch.arange(77)[None])


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64])
def test_quantised_weights_are_refused_by_their_header_a19(one_file: Path, dtype: torch.dtype) -> None:
    prefix = "model.diffusion_model."
    tensors = load_file(one_file).items()
    save_file({name: value.to(dtype) if name.startswith(prefix) else value for name, value in tensors}, one_file)
    with pytest.raises(UnsupportedModelError, match=r"holds (U8|I8|I64) weights") as caught:
        open_checkpoint(one_file)
    assert "fp16" in (caught.value.hint or "")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
