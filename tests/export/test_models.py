"""Every tensor is accounted for, whatever names the checkpoint's writer gave them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from clipskip.errors import CheckpointError, ExportError, UnsupportedModelError
from clipskip.export.checkpoint import open_checkpoint
from clipskip.export.models import FloatNorm, check_halves, keep_norms_in_float, load

TEXT, UNET = "text_encoder/model.safetensors", "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
EditWeights = Callable[..., None]


def loaded(path: Path) -> dict[str, torch.Tensor]:
    networks = load(open_checkpoint(path))
    return {f"{part}.{name}": value for part, net in networks.named.items() for name, value in net.state_dict().items()}


def test_old_names_give_the_same_networks(tiny: Path, checkpoint: Path, edit_weights: EditWeights) -> None:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def rename(name: str) -> str:
        for new, before in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        return name

    edit_weights(checkpoint / VAE, lambda weights: {rename(name): value for name, value in weights.items()})
    edit_weights(
        checkpoint / TEXT,
        lambda weights: (
            {name.removeprefix("text_model."): value for name, value in weights.items()}
            | {"embeddings.position_ids": torch.arange(77)[None]}
        ),
    )
    expected, found = loaded(tiny), loaded(checkpoint)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_attention_stored_as_convolutions_is_the_same_attention(
    tiny: Path, checkpoint: Path, edit_weights: EditWeights
) -> None:
    edit_weights(
        checkpoint / VAE,
        lambda weights: {
            name: value[..., None, None] if "attentions" in name and value.ndim == 2 else value
            for name, value in weights.items()
        },
    )
    expected, found = loaded(tiny), loaded(checkpoint)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_half_precision_files_are_read_as_float32(checkpoint: Path, edit_weights: EditWeights) -> None:
    edit_weights(checkpoint / UNET, lambda weights: {name: value.bfloat16() for name, value in weights.items()})
    assert {value.dtype for value in loaded(checkpoint).values()} == {torch.float32}


def test_missing_and_unexpected_tensors_are_counted_with_a_guess_a14(
    checkpoint: Path, edit_weights: EditWeights
) -> None:
    edit_weights(checkpoint / UNET, lambda weights: {"lora_unet_x.lora_up.weight": torch.zeros(4, 4)})
    with pytest.raises(CheckpointError, match=r"\d+ missing \(.*\), 1 unexpected .*looks like a LoRA"):
        load(open_checkpoint(checkpoint))


LACKING = ("conv_in.bias", "conv_in.weight", "conv_norm_out.bias", "conv_norm_out.weight", "conv_out.bias")


@pytest.mark.parametrize(
    ("part", "lost", "added", "message"),
    [
        (UNET, ("conv_in.bias",), (), "unet: 1 missing (conv_in.bias), 0 unexpected"),
        (VAE, (), ("spare",), "vae: 0 missing, 1 unexpected (spare)"),
        (
            TEXT,
            ("text_model.final_layer_norm.bias",),
            (),
            "text_encoder: 1 missing (final_layer_norm.bias), 0 unexpected",
        ),
        (UNET, (*LACKING, "conv_out.weight"), (), f"unet: 6 missing ({', '.join(LACKING)}, ...), 0 unexpected"),
        (UNET, (), "bdacfe", "unet: 0 missing, 6 unexpected (a, b, c, d, e, ...)"),
        (
            UNET,
            ("conv_in.bias",),
            ("conv_in.lora_up.weight",),
            "1 unexpected (conv_in.lora_up.weight); this looks like a LoRA",
        ),
    ],
)
def test_one_tensor_too_few_or_too_many_is_enough_and_no_more_than_five_are_named_a14(
    checkpoint: Path, edit_weights: EditWeights, part: str, lost: tuple[str, ...], added: Sequence[str], message: str
) -> None:
    def change(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        kept = {name: value for name, value in weights.items() if name not in lost}
        assert len(kept) == len(weights) - len(lost)
        return kept | {name: torch.zeros(2) for name in added}

    edit_weights(checkpoint / part, change)
    with pytest.raises(CheckpointError) as caught:
        load(open_checkpoint(checkpoint))
    assert message in caught.value.message
    assert (caught.value.exit_status, caught.value.path) == (3, str(checkpoint / part))


def test_a_wrong_shape_is_named_with_both_shapes_a18(checkpoint: Path, edit_weights: EditWeights) -> None:
    edit_weights(checkpoint / UNET, lambda weights: weights | {"conv_in.weight": torch.zeros(16, 5, 3, 3)})
    with pytest.raises(CheckpointError, match=r"conv_in.weight has the shape \[16, 5, 3, 3\], .* \[16, 4, 3, 3\]"):
        load(open_checkpoint(checkpoint))


@pytest.mark.parametrize(("value", "message"), [(torch.nan, "1 NaN and 0 infinite"), (torch.inf, "0 NaN and 1 inf")])
def test_weights_that_are_not_finite_are_refused_a12(
    checkpoint: Path, edit_weights: EditWeights, value: float, message: str
) -> None:
    def damage(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights["text_model.final_layer_norm.bias"][3] = value
        return weights

    edit_weights(checkpoint / TEXT, damage)
    with pytest.raises(CheckpointError, match=f"final_layer_norm.bias has {message}"):
        load(open_checkpoint(checkpoint))


def test_quantised_weights_are_not_supported_a19(checkpoint: Path, edit_weights: EditWeights) -> None:
    edit_weights(checkpoint / UNET, lambda weights: {name: value.to(torch.int8) for name, value in weights.items()})
    with pytest.raises(UnsupportedModelError, match="I8"):
        load(open_checkpoint(checkpoint))


def test_weights_beyond_half_precision_are_refused_by_name_a13(checkpoint: Path, edit_weights: EditWeights) -> None:
    edit_weights(checkpoint / UNET, lambda weights: weights | {"conv_in.bias": torch.full((16,), 70000.0)})
    networks = load(open_checkpoint(checkpoint))
    with pytest.raises(ExportError, match=r"unet.conv_in.bias \(70000\)"):
        check_halves(networks)


def test_norms_stay_in_float32_in_a_half_precision_network(tiny: Path) -> None:
    vae = load(open_checkpoint(tiny)).vae.half()
    keep_norms_in_float(vae)
    assert isinstance(vae, AutoencoderKL)
    norms = [each for each in vae.modules() if isinstance(each, FloatNorm)]
    assert norms
    assert all(each.norm.weight.dtype == torch.float32 for each in norms)
    assert vae.decoder.conv_in.weight.dtype == torch.float16


def test_no_library_asks_the_hub_for_anything_b16() -> None:
    code = "from clipskip.export import models; from huggingface_hub import constants; assert constants.HF_HUB_OFFLINE"
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
