"""Which configurations are a Stable Diffusion 1.x's, and the facts of one; what is not known to work is refused."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable

from clipskip.engines.errors import CheckpointError, RequestError, UnsupportedModelError
from clipskip.engines.manifest import ModelFacts
from clipskip.engines.shapes import LATENT, TOKENS
from clipskip.export.checkpoint import Checkpoint, Config


def check_supported(checkpoint: Checkpoint) -> None:
    """UnsupportedModelError names what the checkpoint is, where it is not an SD 1.x that these graphs can express."""
    pipeline = str(checkpoint.index.get("_class_name", "StableDiffusionPipeline"))
    if not re.fullmatch(r"StableDiffusion(Img2Img|Inpaint)?Pipeline(Safe)?", pipeline):
        raise UnsupportedModelError(f"{checkpoint.root} is a {pipeline}; SD 1.x is supported", path=checkpoint.root)
    for part, rules in (checkpoint.unet, _UNET), (checkpoint.text, _TEXT), (checkpoint.vae, _VAE):
        _apply(rules, part.config, checkpoint.root / part.name / "config.json")
    _apply(_SCHEDULER, checkpoint.scheduler, checkpoint.root / "scheduler" / "scheduler_config.json")
    context, width = checkpoint.unet.config.get("cross_attention_dim"), checkpoint.text.config.get("hidden_size")
    if context != width:
        raise UnsupportedModelError(f"the U-Net reads a context of width {context}, the text encoder gives {width}")
    if (tokens := len(checkpoint.vocabulary)) > checkpoint.text.config["vocab_size"]:
        raise CheckpointError(f"the tokenizer has {tokens} tokens, more than the text encoder")


Rule = tuple[Callable[[Config], object], str]  # what must not be, and what it means
_UNET: tuple[Rule, ...] = (
    (lambda c: c.get("addition_embed_type"), "this is SDXL"),
    (lambda c: c.get("cross_attention_dim") == 1024, "this is SD 2.x"),
    (lambda c: c.get("in_channels") == 9, "this is an inpainting model (9 channels)"),
    (lambda c: c.get("in_channels", 4) != 4 or c.get("out_channels", 4) != 4, "the U-Net has other than 4 channels"),
    (lambda c: c.get("class_embed_type") or c.get("num_class_embeds"), "this U-Net is conditioned on a class"),
    (lambda c: c.get("encoder_hid_dim") or c.get("time_cond_proj_dim"), "this U-Net takes inputs that SD 1.x has not"),
)
_TEXT: tuple[Rule, ...] = (
    (lambda c: c.get("model_type", "clip_text_model") != "clip_text_model", "this is no CLIP text encoder"),
    (lambda c: c.get("max_position_embeddings", TOKENS) != TOKENS, f"the text encoder does not read {TOKENS} tokens"),
    (lambda c: not 1 <= c.get("num_hidden_layers", 12) <= 99, "the text encoder has no or too many layers"),
)
_VAE: tuple[Rule, ...] = (
    (lambda c: c.get("_class_name", "AutoencoderKL") != "AutoencoderKL", "the VAE is no AutoencoderKL"),
    (lambda c: c.get("latent_channels", 4) != 4, "the VAE has other than 4 latent channels"),
    (lambda c: 1 << (len(c.get("block_out_channels", ())) - 1) != LATENT, f"the VAE does not shrink by {LATENT}"),
    (lambda c: c.get("shift_factor") or c.get("latents_mean"), "the VAE shifts its latents, as SD 3 does"),
)
_SCHEDULER: tuple[Rule, ...] = (
    (lambda c: c.get("beta_schedule", "scaled_linear") != "scaled_linear", "the betas are not scaled-linear"),
    (lambda c: c.get("trained_betas"), "the betas are a list of their own"),
    (lambda c: c.get("rescale_betas_zero_snr"), "the betas are rescaled to a signal-to-noise ratio of zero"),
    (lambda c: c.get("prediction_type", "epsilon") not in {"epsilon", "v_prediction"}, "the network predicts no noise"),
)


def _apply(rules: Iterable[Rule], config: Config, path: object) -> None:
    for broken, meaning in rules:
        if broken(config):
            raise UnsupportedModelError(f"{meaning}; SD 1.x is supported ({path})", path=str(path))


def facts(checkpoint: Checkpoint, recommended_clip_skip: int = 1) -> ModelFacts:
    """What goes into the manifest. Where old checkpoints leave a value out, it is SD 1.x's own."""
    check_supported(checkpoint)
    text, unet, scheduler = checkpoint.text.config, checkpoint.unet.config, checkpoint.scheduler
    layers = text.get("num_hidden_layers", 12)
    if type(recommended_clip_skip) is not int or not 1 <= recommended_clip_skip <= layers + 1:
        name = "recommended_clip_skip"
        raise RequestError(f"{name} must be a whole number from 1 to {layers + 1}", field=name)
    return ModelFacts(
        name=re.sub(r"[^A-Za-z0-9_.-]+", "-", checkpoint.root.name).strip("-.")[:100] or "model",
        family="sd1",
        layers=layers,
        width=text["hidden_size"],
        vocabulary=text["vocab_size"],
        prediction=scheduler.get("prediction_type", "epsilon"),
        beta_start=float(scheduler.get("beta_start", 0.00085)),
        beta_end=float(scheduler.get("beta_end", 0.012)),
        train_steps=scheduler.get("num_train_timesteps", 1000),
        scaling_factor=float(checkpoint.vae.config.get("scaling_factor", 0.18215)),
        default_size=unet.get("sample_size", 64) * LATENT,
        size_step=LATENT,  # the step graph upsamples to the size of what it joins
        recommended_clip_skip=recommended_clip_skip,
        model_sha256=hashlib.sha256(json.dumps(dict(checkpoint.sources), sort_keys=True).encode()).hexdigest(),
        sources=checkpoint.sources,
    )
