"""Which configurations are a Stable Diffusion 1.x's, and the facts of one; what is not known to work is refused."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from clipskip.engines import strict
from clipskip.engines.errors import CheckpointError, ManifestError, RequestError, UnsupportedModelError
from clipskip.engines.manifest import Beta, Layers, ModelFacts, Scale, TrainSteps
from clipskip.engines.shapes import LATENT, TOKENS
from clipskip.engines.strict import Between
from clipskip.export.checkpoint import Checkpoint

Width = Annotated[int, range(1, 1 << 20)]
Widths = tuple[Width, ...]
Depth = Annotated[int, range(100)]
Word = Annotated[str, r"\w{1,60}"]
Small = Annotated[float, Between(0, 1)]
Schema = Mapping[str, tuple[Any, Any]]  # field -> what it may hold, and what it is where it is left out
_TEXT_FIELDS: Schema = {  # transformers writes only what differs from its own values
    "model_type": (Word, "clip_text_model"), "hidden_act": (Word, "quick_gelu"), "layer_norm_eps": (Small, 1e-5),
    "vocab_size": (Width, 49408), "hidden_size": (Width, 512), "intermediate_size": (Width, 2048),
    "num_hidden_layers": (Layers, 12), "num_attention_heads": (Width, 8), "max_position_embeddings": (Width, TOKENS),
}  # fmt: skip
_UNET_FIELDS: Schema = {
    "sample_size": (Annotated[int, range(1, 8193)], 64), "in_channels": (Width, 4), "out_channels": (Width, 4),
    "block_out_channels": (Widths, (320, 640, 1280, 1280)), "cross_attention_dim": (Width, 1280),
    "layers_per_block": (Depth | tuple[Depth, ...], 2), "transformer_layers_per_block": (Depth | tuple[Depth, ...], 1),
    "attention_head_dim": (Width | Widths, 8), "num_attention_heads": (Width | Widths | None, None),
    "down_block_types": (tuple[Word, ...], ()), "up_block_types": (tuple[Word, ...], ()), "act_fn": (Word, "silu"),
    "mid_block_type": (Word | None, None), "norm_num_groups": (Width | None, 32), "norm_eps": (Small, 1e-5),
    "addition_embed_type": (Word | None, None), "class_embed_type": (Word | None, None),
    "num_class_embeds": (Width | None, None), "encoder_hid_dim": (Width | None, None),
    "time_cond_proj_dim": (Width | None, None),
}  # fmt: skip
_VAE_FIELDS: Schema = {
    "_class_name": (Word, "AutoencoderKL"), "block_out_channels": (Widths, (64,)), "layers_per_block": (Depth, 1),
    "down_block_types": (tuple[Word, ...], ()), "up_block_types": (tuple[Word, ...], ()), "act_fn": (Word, "silu"),
    "in_channels": (Width, 3), "out_channels": (Width, 3), "latent_channels": (Width, 4),
    "norm_num_groups": (Width, 32), "scaling_factor": (Scale, 0.18215), "shift_factor": (float | None, None),
    "latents_mean": (tuple[float, ...] | None, None),
}  # fmt: skip
_SCHEDULER_FIELDS: Schema = {  # where old checkpoints leave a value out, it is SD 1.x's own
    "beta_schedule": (Word, "scaled_linear"), "beta_start": (Beta, 0.00085), "beta_end": (Beta, 0.012),
    "num_train_timesteps": (TrainSteps, 1000), "prediction_type": (Word, "epsilon"),
    "trained_betas": (tuple[float, ...] | None, None), "rescale_betas_zero_snr": (bool, False),
}  # fmt: skip
Rule = tuple[Callable[[Any], object], str]  # what must not be, and what it means
_UNET: tuple[Rule, ...] = (
    (lambda c: c.addition_embed_type, "this is SDXL"),
    (lambda c: c.cross_attention_dim == 1024, "this is SD 2.x"),
    (lambda c: c.in_channels == 9, "this is an inpainting model (9 channels)"),
    (lambda c: (c.in_channels, c.out_channels) != (4, 4), "the U-Net has other than 4 channels"),
    (lambda c: c.class_embed_type or c.num_class_embeds, "this U-Net is conditioned on a class"),
    (lambda c: c.encoder_hid_dim or c.time_cond_proj_dim, "this U-Net takes inputs that SD 1.x has not"),
    (lambda c: not 1 <= len(c.block_out_channels) <= 8, "block_out_channels: the U-Net has no or too many blocks"),
)
_TEXT: tuple[Rule, ...] = (
    (lambda c: c.model_type != "clip_text_model", "this is no CLIP text encoder"),
    (lambda c: c.max_position_embeddings != TOKENS, f"the text encoder does not read {TOKENS} tokens"),
)
_VAE: tuple[Rule, ...] = (
    (lambda c: c._class_name != "AutoencoderKL", "the VAE is no AutoencoderKL"),
    (lambda c: c.latent_channels != 4, "the VAE has other than 4 latent channels"),
    (lambda c: len(c.block_out_channels) != LATENT.bit_length(), f"the VAE does not shrink by {LATENT}"),
    (lambda c: c.shift_factor or c.latents_mean, "the VAE shifts its latents, as SD 3 does"),
)
_SCHEDULER: tuple[Rule, ...] = (
    (lambda c: c.beta_schedule != "scaled_linear", "the betas are not scaled-linear"),
    (lambda c: c.trained_betas, "the betas are a list of their own"),
    (lambda c: c.rescale_betas_zero_snr, "the betas are rescaled to a signal-to-noise ratio of zero"),
    (lambda c: c.beta_end < c.beta_start, "beta_end is less than beta_start"),
)


def _config(kinds: Schema, config: Mapping[str, Any], path: Path, rules: tuple[Rule, ...]) -> Any:
    """The part of the configuration at `path` that must be known. CheckpointError names the field that is wrong."""
    try:
        found = strict.pick(kinds, config)
    except ManifestError as error:
        raise CheckpointError(f"{path}: {error.message}", path=path, field=error.field) from error
    for broken, meaning in rules:
        if broken(found):
            raise UnsupportedModelError(f"{meaning}; SD 1.x is supported ({path})", path=path)
    return found


def _scheduler(source: Checkpoint, prediction: str | None, earlier: ModelFacts | None) -> Any:
    said = {"prediction_type": earlier.prediction} if earlier else {}
    said = {**said, **source.scheduler, **({"prediction_type": prediction} if prediction else {})}
    predicted = said.get("prediction_type")
    if isinstance(predicted, str) and predicted not in ("epsilon", "v_prediction"):
        message = f"the network predicts no noise, but {predicted!r:.60}; SD 1.x is supported ({source.schedule})"
        hint = "if that is wrong, say what it predicts: --prediction epsilon or --prediction v_prediction"
        raise UnsupportedModelError(message, path=source.schedule, field="prediction", hint=hint)
    return _config(_SCHEDULER_FIELDS, said, source.schedule, _SCHEDULER)


def facts(
    source: Checkpoint, recommended_clip_skip: int | None = None, prediction: str | None = None,
    earlier: ModelFacts | None = None,
) -> ModelFacts:  # fmt: skip
    """What goes into the manifest, from the configurations alone; UnsupportedModelError where it is not SD 1.x.

    `prediction`: what the U-Net predicts, whatever the checkpoint says of it. What neither says is as in `earlier`, if
    that is of a model of the same name.
    """
    root = source.root
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", root.name).strip("-.")[:100] or "model"
    earlier = earlier if earlier and earlier.name == name else None
    pipeline = str(source.index.get("_class_name", "StableDiffusionPipeline"))
    if not re.fullmatch(r"StableDiffusion(Img2Img|Inpaint)?Pipeline(Safe)?", pipeline):
        raise UnsupportedModelError(f"{root} is a {pipeline:.80}; SD 1.x is supported", path=root)
    unet = _config(_UNET_FIELDS, source.unet.config, source.unet.settings, _UNET)
    (encoder,) = source.texts
    text = _config(_TEXT_FIELDS, encoder.config, encoder.settings, _TEXT)
    vae = _config(_VAE_FIELDS, source.vae.config, source.vae.settings, _VAE)
    scheduler = _scheduler(source, prediction, earlier)
    if (context := unet.cross_attention_dim) != (width := text.hidden_size):
        raise UnsupportedModelError(f"the U-Net reads a context of width {context}, the text encoder gives {width}")
    if (tokens := len(source.vocabulary)) > text.vocab_size:
        message = f"the tokenizer has {tokens} tokens, more than the text encoder: {encoder.settings}"
        raise CheckpointError(message, path=encoder.settings, field="vocab_size")
    layers = text.num_hidden_layers
    if recommended_clip_skip is None:
        recommended_clip_skip = min(earlier.recommended_clip_skip, layers + 1) if earlier else 1
    if type(recommended_clip_skip) is not int or not 1 <= recommended_clip_skip <= layers + 1:
        message = f"recommended_clip_skip must be a whole number from 1 to {layers + 1}"
        raise RequestError(message, field="recommended_clip_skip")
    return ModelFacts(
        name=name, family="sd1", layers=layers, width=width, vocabulary=text.vocab_size,
        prediction=scheduler.prediction_type, beta_start=scheduler.beta_start, beta_end=scheduler.beta_end,
        train_steps=scheduler.num_train_timesteps, scaling_factor=vae.scaling_factor,
        default_size=unet.sample_size * LATENT,
        size_step=LATENT,  # the step graph upsamples to the size of what it joins
        recommended_clip_skip=recommended_clip_skip,
        model_sha256=hashlib.sha256(json.dumps(dict(source.sources), sort_keys=True).encode()).hexdigest(),
        sources=source.sources,
    )  # fmt: skip
