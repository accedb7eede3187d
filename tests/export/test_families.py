"""What is of no family is refused by its name; what old checkpoints leave out is filled in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipskip.errors import RequestError, UnsupportedModelError
from clipskip.export.checkpoint import open_checkpoint
from clipskip.export.families import facts
from clipskip.export.names import describe_keys


@pytest.mark.parametrize(
    ("name", "entries", "message"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "StableDiffusionXLPipeline"),
        ("model_index.json", {"_class_name": "FluxPipeline"}, "FluxPipeline"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "does not say how wide its pooled vector is"),
        ("unet/config.json", {"addition_embed_type": "text_image"}, "takes inputs that no supported model has"),
        ("unet/config.json", {"cross_attention_dim": 1024}, "a context of width 1024, the text encoder gives 32"),
        ("unet/config.json", {"in_channels": 8}, "other than 4 channels, or 9"),
        ("unet/config.json", {"out_channels": 8}, "other than 4 channels"),
        ("unet/config.json", {"num_class_embeds": 1000}, "conditioned on a class"),
        ("unet/config.json", {"cross_attention_dim": 768}, "a context of width 768, the text encoder gives 32"),
        ("text_encoder/config.json", {"model_type": "t5"}, "no CLIP text encoder"),
        ("text_encoder/config.json", {"max_position_embeddings": 248}, "does not read 77 tokens"),
        ("vae/config.json", {"_class_name": "AutoencoderTiny"}, "no AutoencoderKL"),
        ("vae/config.json", {"latent_channels": 16}, "4 latent channels"),
        ("vae/config.json", {"block_out_channels": [8, 8, 8]}, "does not shrink by 8"),
        ("vae/config.json", {"shift_factor": 0.1}, "shifts its latents"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "linear"}, "not scaled-linear"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "predicts no noise, but 'sample'"),
        ("scheduler/scheduler_config.json", {"beta_end": 0.0001}, "beta_end is less than beta_start"),
    ],
)
def test_other_models_are_refused_by_name_a15(
    checkpoint: Path, edit: Callable[..., None], name: str, entries: dict[str, Any], message: str
) -> None:
    edit(checkpoint / name, **entries)
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        facts(open_checkpoint(checkpoint))
    assert caught.value.exit_status == 3


def test_the_facts_of_the_model_reach_the_manifest(checkpoint: Path, edit: Callable[..., None]) -> None:
    said = {"prediction_type": "v_prediction", "beta_end": 0.02, "rescale_betas_zero_snr": True}
    edit(checkpoint / "scheduler" / "scheduler_config.json", **said)
    edit(checkpoint / "vae" / "config.json", scaling_factor=0.4)
    found = facts(open_checkpoint(checkpoint), recommended_clip_skip=2)
    assert (found.layers, found.width, found.vocabulary, found.size_step, found.default_size) == (3, 32, 56, 8, 64)
    assert (found.prediction, found.beta_end, found.scaling_factor) == ("v_prediction", 0.02, 0.4)
    assert (found.zero_snr, found.clip_skips, found.kept) == (True, (), (3, 2, 1, 0))
    assert (found.name, found.family, found.recommended_clip_skip) == ("tiny", "sd1", 2)


def test_what_old_checkpoints_leave_out_is_sd_1s_own(checkpoint: Path) -> None:
    (checkpoint / "scheduler" / "scheduler_config.json").write_text("{}")
    config = json.loads((checkpoint / "vae" / "config.json").read_text())
    del config["scaling_factor"]
    (checkpoint / "vae" / "config.json").write_text(json.dumps(config))
    found = facts(open_checkpoint(checkpoint))
    assert (found.beta_start, found.beta_end, found.train_steps) == (0.00085, 0.012, 1000)
    assert (found.scaling_factor, found.prediction) == (0.18215, "epsilon")


@pytest.mark.parametrize("value", [0, 5, -1, True, 2.0])
def test_a_recommended_clip_skip_that_the_model_does_not_have_is_refused(tiny: Path, value: Any) -> None:
    with pytest.raises(RequestError, match="from 1 to 4"):
        facts(open_checkpoint(tiny), recommended_clip_skip=value)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("conditioner.embedders.1.model.ln_final.weight", "SDXL"),
        ("lora_unet_down_blocks_0.lora_up.weight", "a LoRA"),
        ("control_model.input_blocks.0.0.weight", "a ControlNet"),
        ("cond_stage_model.model.ln_final.weight", "SD 2.x"),
        ("double_blocks.0.img_attn.proj.weight", "Flux"),
        ("emb_params", "a textual inversion"),
    ],
)
def test_names_of_tensors_tell_what_a_file_is(name: str, kind: str) -> None:
    assert describe_keys([name]) == kind
    assert describe_keys(["something.else"]) is None
