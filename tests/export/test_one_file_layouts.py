"""Single files as they exist: SD 2.x, moving averages, precisions, leftovers, and what they say that they predict."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import one_file_shapes
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_open_clip_checkpoint,
    create_diffusers_clip_model_from_ldm,
)
from originals import OPEN_CLIP, original_unet, replaced, write_one_file
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from clipskip.engines import files
from clipskip.errors import CheckpointError, ExportError, UnsupportedModelError
from clipskip.export import names, onefile
from clipskip.export.checkpoint import open_checkpoint
from clipskip.export.families import facts
from clipskip.export.models import Networks, check_halves, load

Tensors = dict[str, torch.Tensor]
UNET = "model.diffusion_model."
LAYOUTS = {layout.family: layout for layout in onefile.LAYOUTS}
PRECISIONS = (torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
V_MARK = {"v_pred": torch.ones(0)}
V_AND_ZERO = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}


@pytest.fixture
def one_file(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny SD 1.x as one file."""
    return write_one_file(tiny, tmp_path / "my model.safetensors", monkeypatch)


@pytest.fixture(scope="module")
def second(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny SD 2.x: linear layers around the attentions, heads by block, another activation."""
    root = shutil.copytree(tiny, tmp_path_factory.mktemp("models") / "second")
    config = json.loads((root / "unet" / "config.json").read_text())
    config |= {"use_linear_projection": True, "attention_head_dim": [2, 4]}
    text = json.loads((root / "text_encoder" / "config.json").read_text()) | {"hidden_act": "gelu"}
    torch.manual_seed(1)
    unet = UNet2DConditionModel.from_config(config)
    (root / "unet" / "config.json").write_text(json.dumps(config))
    (root / "text_encoder" / "config.json").write_text(json.dumps(text))
    save_file(unet.state_dict(), root / "unet" / "diffusion_pytorch_model.safetensors")
    return root


@pytest.fixture
def second_file(second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """It as one file, with a layer that no picture needs and a word of what it predicts."""
    path = write_one_file(second, tmp_path / "second.safetensors", monkeypatch, "sd2")
    head = "cond_stage_model.model."
    layer = {name: value for name, value in load_file(path).items() if ".resblocks.2." in name}
    more = {name.replace(".resblocks.2.", ".resblocks.3."): value for name, value in layer.items()}
    more |= {f"{head}text_projection": torch.ones(32, 32), f"{head}logit_scale": torch.ones(())}
    save_file(load_file(path) | more | V_MARK, path)
    return path


def change(path: Path, function: Callable[[Tensors], Tensors], metadata: dict[str, str] | None = None) -> None:
    save_file(function(load_file(path)), path, metadata=metadata)


def same(found: Networks, expected: Networks) -> bool:
    """Every weight of every part, bit for bit."""
    states = [[{**network.state_dict()} for network in networks.named.values()] for networks in (found, expected)]
    return all(
        mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
        for mine, theirs in zip(*states, strict=True)
    )


def test_sd_2_in_one_file_is_the_model_in_a_folder(second: Path, second_file: Path) -> None:
    source = open_checkpoint(second_file)
    assert same(load(source), load(open_checkpoint(second)))
    found = facts(source)
    assert (found.family, found.prediction, found.default_size) == ("sd2", "v_prediction", 64)
    assert any("15 cond_stage_model," in note for note in source.notes)  # a layer of 12, and three beside


def test_sd_2_s_text_encoder_is_what_diffusers_makes_of_the_file(second: Path, second_file: Path) -> None:
    theirs = create_diffusers_clip_model_from_ldm(
        CLIPTextModel, load_file(second_file), subfolder="text_encoder", config=str(second), local_files_only=True
    )
    ours = load(open_checkpoint(second_file)).texts[0].state_dict()
    assert ours.keys() == theirs.state_dict().keys()
    assert all(torch.equal(value, ours[name]) for name, value in theirs.state_dict().items())


def test_the_names_of_a_full_sd_2_are_those_that_diffusers_converts_to() -> None:
    layout = LAYOUTS["sd2"]
    networks = one_file_shapes.networks(layout)
    unet = list(networks["unet"].state_dict())
    file = {f"{UNET}{original_unet(name, 2, {1, 2, 3})}": name for name in unet}
    assert convert_ldm_unet_checkpoint(dict(file), dict(layout.unet)) == {name: name for name in unet}
    assert {key: names.unet_from_file(key) for key in file} == file
    text = {name: value for name, value in networks["text_encoder"].state_dict().items() if "v_proj" not in name}
    packed = {replaced(name.replace(".q_proj.", ".in_proj_"), OPEN_CLIP): value for name, value in text.items()}
    packed = {f"cond_stage_model.model.{name}": value for name, value in packed.items() if "k_proj" not in name}
    whole = {name: torch.cat([value] * 3) if "in_proj" in name else value for name, value in packed.items()}
    theirs = convert_open_clip_checkpoint(networks["text_encoder"], whole)
    ours = onefile.Part("text_encoder", layout.text, Path(), Path(), _entries(whole), layout.modern).places
    assert ours.keys() == {name.removeprefix("text_model.") for name in theirs}


def _entries(tensors: Tensors) -> dict[str, onefile.Entry]:
    return {name: onefile.Entry("F32", tuple(tensor.shape), 0, 0) for name, tensor in tensors.items()}


def test_the_packaged_shapes_are_those_of_the_libraries() -> None:
    for layout in onefile.LAYOUTS:
        assert onefile.shapes(layout.family) == one_file_shapes.shapes(layout)


def test_a_single_file_s_weights_are_those_that_diffusers_reads(
    sample_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_one_file(sample_checkpoint, tmp_path / "sample.safetensors", monkeypatch)
    ours = load(open_checkpoint(path))
    for kind, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae")):
        theirs = kind.from_single_file(str(path), config=str(sample_checkpoint), subfolder=part, local_files_only=True)
        mine = ours.named[part].state_dict()
        assert mine.keys() == theirs.state_dict().keys()
        assert all(torch.equal(value, mine[name]) for name, value in theirs.state_dict().items())


def averages(tensors: Tensors, factor: float) -> Tensors:
    """The moving averages that a training keeps of the U-Net: names without dots, and two numbers of its own."""
    own = {name.removeprefix(UNET): value for name, value in tensors.items() if name.startswith(UNET)}
    flat = {f"model_ema.diffusion_model{name.replace('.', '')}": value * factor for name, value in own.items()}
    return flat | {"model_ema.decay": torch.ones(()), "model_ema.num_updates": torch.ones((), dtype=torch.int32)}


@pytest.mark.parametrize("family", LAYOUTS)
def test_names_of_averages_are_read_back_as_they_were(family: str) -> None:
    originals = [original_unet(name, 2, {1, 2, 3}) for name in onefile.shapes(family)["unet"]]
    flat = [f"model_ema.diffusion_model{name.replace('.', '')}" for name in originals]
    assert [names.unet_from_average(name) for name in flat] == list(onefile.shapes(family)["unet"])


def test_averages_beside_the_weights_are_counted_and_ignored(tiny: Path, one_file: Path) -> None:
    change(one_file, lambda tensors: tensors | averages(tensors, 0.5))
    source = open_checkpoint(one_file)
    assert same(load(source), load(open_checkpoint(tiny)))
    count = sum(name.startswith(UNET) for name in load_file(one_file)) + 2
    assert [note for note in source.notes if f"{count} model_ema" in note]


def test_averages_alone_are_the_u_net(one_file: Path) -> None:
    expected = load(open_checkpoint(one_file)).unet.state_dict()
    change(one_file, lambda tensors: averages(tensors, 0.5) | {n: v for n, v in tensors.items() if UNET not in n})
    source = open_checkpoint(one_file)
    found = load(source).unet.state_dict()
    assert all(torch.equal(found[name], value * 0.5) for name, value in expected.items())
    assert any("moving averages" in note for note in source.notes)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_whatever_precision_weights_have_they_are_read_as_they_are(one_file: Path, dtype: torch.dtype) -> None:
    plain = load_file(one_file)
    rounded = {name: value.to(dtype) if UNET in name else value for name, value in plain.items()}
    save_file({name: value.float() for name, value in rounded.items()}, one_file)
    expected = load(open_checkpoint(one_file))
    save_file(rounded | {f"{UNET}scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}, one_file)
    assert same(load(open_checkpoint(one_file)), expected)


@pytest.mark.parametrize("spelling", [("scale_weight", "scale_input"), ("weight_scale", "input_scale")])
@pytest.mark.parametrize("rows", [False, True])
def test_fp8_weights_are_multiplied_by_their_scales(one_file: Path, rows: bool, spelling: tuple[str, str]) -> None:
    quantised, restored = {}, {}
    for name, value in load_file(one_file).items():
        quantised[name] = restored[name] = value
        if UNET in name and name.endswith(".weight") and value.dim() > 1:
            scale = value.flatten(1).abs().amax(1) if rows else value.abs().max()
            factors = scale.reshape(-1, *[1] * (value.dim() - 1))
            quantised[name] = (value / factors * 448).to(torch.float8_e4m3fn)
            restored[name] = quantised[name].float() * (factors / 448)
            stem = name.removesuffix("weight")
            quantised |= {stem + spelling[0]: scale / 448, stem + spelling[1]: torch.ones(1)}
    originals = load(open_checkpoint(one_file)).unet.state_dict()
    save_file(restored, one_file)
    expected = load(open_checkpoint(one_file))
    save_file(quantised, one_file)
    found = load(open_checkpoint(one_file))
    assert same(found, expected)
    for name, value in found.unet.state_dict().items():
        assert (value - originals[name]).abs().max() <= originals[name].abs().max() / 16, name


def test_a_scale_that_is_not_understood_is_refused(one_file: Path) -> None:
    name = f"{UNET}time_embed.0.weight"
    change(one_file, lambda tensors: tensors | {f"{name}_scale": torch.ones(2, 2)})
    with pytest.raises(UnsupportedModelError, match=r"time_embed.0.weight_scale has the shape \[2, 2\]"):
        open_checkpoint(one_file)


def test_leftovers_of_a_training_are_counted_and_what_is_unknown_is_listed(tiny: Path, one_file: Path) -> None:
    known = (
        "alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "posterior_variance", "global_step", "scale_factor",
        "embedding_manager.string_to_param_dict.*", "optimizer_states.0.state.1.exp_avg", "first_stage_model.loss.x",
        "cond_stage_model.transformer.text_projection.weight", "cond_stage_model.transformer.vision_model.x.weight",
    )  # fmt: skip
    change(
        one_file, lambda tensors: tensors | {name: torch.ones(1) for name in (*known, "foo.bar", "my_adapter.weight")}
    )
    source = open_checkpoint(one_file)
    assert same(load(source), load(open_checkpoint(tiny)))
    ignored, unknown = source.notes
    assert f"{len(known) + 3} tensors" in ignored  # and the three that are in every file of these tests
    assert "1 optimizer_states" in ignored
    assert unknown == "warning: 2 unknown and not used (foo.bar, my_adapter.weight)"


@pytest.mark.parametrize("family", LAYOUTS)
def test_a_model_for_inpainting_has_a_u_net_that_sees_nine_channels(
    tiny: Path, second: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    path = write_one_file(tiny if family == "sd1" else second, tmp_path / "x.safetensors", monkeypatch, family)
    change(path, lambda tensors: tensors | {f"{UNET}input_blocks.0.0.weight": torch.ones(16, 9, 3, 3)})
    unet = load(open_checkpoint(path)).unet
    assert (unet.config["in_channels"], unet.conv_in.weight.shape) == (9, (16, 9, 3, 3))


def without(tensors: Tensors, lost: Iterable[str]) -> Tensors:
    return {name: value for name, value in tensors.items() if name not in lost}


@pytest.mark.parametrize(
    ("lost", "added", "message"),
    [
        (("out.2.bias",), {}, "does not hold the unet: 1 missing (conv_out.bias), 0 unexpected"),
        (
            (),
            {"out.2.bias": [5]},
            "out.2.bias has the shape [5], the configuration asks for [4]",
        ),
        ((), {"time_embed.0.weight": [64, 17]}, "time_embed.0.weight has the shape [64, 17]"),
        ((), {"time_embed.9.weight": [1]}, "1 unexpected (time_embed.9.weight)"),
    ],
)
def test_what_is_wrong_with_a_file_is_named_before_anything_is_hashed_a14_a18(
    one_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    lost: tuple[str, ...],
    added: dict[str, tuple[int, ...]],
    message: str,
) -> None:
    more = {UNET + name: torch.ones(shape) for name, shape in added.items()}
    change(one_file, lambda tensors: without(tensors, [UNET + name for name in lost]) | more)
    monkeypatch.setattr(files, "sha256_of", lambda file: pytest.fail("hashed"))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(one_file)
    assert message in caught.value.message
    assert (caught.value.path, caught.value.exit_status) == (str(one_file), 3)


def test_a_vae_of_another_shape_is_refused_as_one(tiny: Path, one_file: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny / "vae" / "diffusion_pytorch_model.safetensors")
    save_file(tensors | {"decoder.conv_in.weight": torch.ones(8, 16, 3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"decoder.conv_in.weight has the shape \[8, 16, 3, 3\]"):
        open_checkpoint(one_file, tmp_path / "other.safetensors")


def test_a_weight_that_is_there_under_two_names_is_not_chosen_between(one_file: Path) -> None:
    old = "cond_stage_model.transformer.text_model.final_layer_norm.bias"
    change(one_file, lambda tensors: tensors | {old.replace("text_model.", ""): tensors[old].clone()})
    with pytest.raises(CheckpointError, match=r"final_layer_norm\.bias are the same weight"):
        open_checkpoint(one_file)


def test_what_a_file_predicts_is_asked_for_where_sd_2_does_not_say_it(second_file: Path) -> None:
    change(second_file, lambda tensors: without(tensors, V_MARK))
    source = open_checkpoint(second_file)
    with pytest.raises(UnsupportedModelError, match=r"nothing says whether .* predicts noise") as caught:
        facts(source)
    assert "--prediction v_prediction" in (caught.value.hint or "")
    assert (caught.value.field, caught.value.exit_status) == ("prediction", 3)
    told = facts(source, prediction="epsilon")
    assert told.prediction == "epsilon"
    assert facts(source, earlier=told).prediction == "epsilon"
    second_file.with_suffix(".yaml").write_text('params:\n  parameterization: "v"\n')
    assert facts(open_checkpoint(second_file)).prediction == "v_prediction"


@pytest.mark.parametrize(("prediction", "size"), [("epsilon", 512), ("v_prediction", 768)])
def test_a_full_sd_2_is_as_large_as_it_was_trained(
    second_file: Path, monkeypatch: pytest.MonkeyPatch, prediction: str, size: int
) -> None:
    unet = {field: value for field, value in onefile.LAYOUTS[1].unet.items() if field != "sample_size"}
    monkeypatch.setattr(onefile, "LAYOUTS", (replace(onefile.LAYOUTS[1], unet=unet),))
    assert facts(open_checkpoint(second_file), prediction=prediction).default_size == size


@pytest.mark.parametrize(
    ("added", "metadata", "yaml", "said"),
    [
        ({}, {}, "", {}),
        (V_MARK, {}, "", {"prediction_type": "v_prediction"}),
        (V_MARK | {"ztsnr": torch.ones(0)}, {}, "", V_AND_ZERO),
        ({}, {"modelspec.prediction_type": "v"}, "", {"prediction_type": "v_prediction"}),
        ({}, {"modelspec.predict_key": "epsilon"}, "", {"prediction_type": "epsilon"}),
        ({}, {"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}, "", V_AND_ZERO),
        ({}, {"ss_v_parameterization": "False", "ss_zero_terminal_snr": "False"}, "", {}),
        ({}, {}, "  zero_terminal_snr: true\n  parameterization: v\n", V_AND_ZERO),
        ({}, {}, "  rescale_betas_zero_snr: false\n", {}),
    ],
)  # fmt: skip
def test_prediction_and_noise_levels_are_found_wherever_they_are_said_a17(
    one_file: Path, added: Tensors, metadata: dict[str, str], yaml: str, said: dict[str, object]
) -> None:
    change(one_file, lambda tensors: tensors | added, metadata)
    if yaml:
        one_file.with_suffix(".yaml").write_text(f"params:\n{yaml}")
    source = open_checkpoint(one_file)
    assert source.scheduler == said
    assert facts(source).zero_snr == ("rescale_betas_zero_snr" in said)


def test_sources_that_contradict_each_other_are_all_named(one_file: Path) -> None:
    change(one_file, lambda tensors: tensors | V_MARK, {"modelspec.prediction_type": "epsilon"})
    one_file.with_suffix(".yaml").write_text("parameterization: eps\n")
    source = open_checkpoint(one_file)
    assert source.scheduler["prediction_type"] == "v_prediction"
    (note,) = [note for note in source.notes if "--prediction" in note]
    assert "v_pred says v_prediction, my model.yaml says epsilon, modelspec.prediction_type says epsilon" in note


@pytest.mark.parametrize("what", ["gone", "cut", "of another shape"])
def test_a_file_that_changes_under_the_export_is_named_for_that_a24(one_file: Path, what: str) -> None:
    source = open_checkpoint(one_file)
    if what == "gone":
        one_file.unlink()
    elif what == "cut":
        one_file.write_bytes(one_file.read_bytes()[:-100])
    else:
        change(one_file, lambda tensors: tensors | {f"{UNET}time_embed.0.weight": torch.ones(3, 3)})
    with pytest.raises(ExportError, match=r"my model\.safetensors changed while it was being read"):
        load(source)


@pytest.mark.parametrize("value", [torch.nan, 500.0])
def test_what_fp8_cannot_hold_is_named_as_it_stands_in_the_file_a12_a13(one_file: Path, value: float) -> None:
    name = f"{UNET}time_embed.0.weight"
    broken = torch.full((64, 16), value).to(torch.float8_e4m3fn)
    change(one_file, lambda tensors: tensors | {name: broken, f"{name}_scale": torch.tensor(200.0)})
    if value == 500.0:
        networks = load(open_checkpoint(one_file))
        with pytest.raises(ExportError, match=r"unet\.time_embedding\.linear_1\.weight \(\d+\)"):
            check_halves(networks)
    else:
        with pytest.raises(CheckpointError, match=r"time_embed\.0\.weight has 1024 NaN"):
            load(open_checkpoint(one_file))
