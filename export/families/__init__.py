"""The families of models, one file for each, and the facts of a checkpoint; what is not known to work is refused."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from clipskip.engines.errors import CheckpointError, RequestError, UnsupportedModelError
from clipskip.engines.manifest import ModelFacts
from clipskip.engines.shapes import LATENT
from clipskip.export.checkpoint import Checkpoint
from clipskip.export.families import family as shared
from clipskip.export.families.family import SUPPORTED
from clipskip.export.families.sd1 import SD1

FAMILIES = {family.name: family for family in (SD1,)}


def _scheduler(source: Checkpoint, prediction: str | None, earlier: ModelFacts | None) -> Any:
    said = {"prediction_type": earlier.prediction} if earlier else {}
    said = {**said, **source.scheduler, **({"prediction_type": prediction} if prediction else {})}
    predicted = said.get("prediction_type")
    if isinstance(predicted, str) and predicted not in ("epsilon", "v_prediction"):
        message = f"the network predicts no noise, but {predicted!r:.60}; {SUPPORTED} ({source.schedule})"
        hint = "if that is wrong, say what it predicts: --prediction epsilon or --prediction v_prediction"
        raise UnsupportedModelError(message, path=source.schedule, field="prediction", hint=hint)
    return shared.read(shared.SCHEDULER_FIELDS, said, source.schedule, shared.SCHEDULER)


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
    if not re.fullmatch(SD1.pipelines, pipeline):
        raise UnsupportedModelError(f"{root} is a {pipeline:.80}; {SUPPORTED}", path=root)
    unet = shared.read(shared.UNET_FIELDS, source.unet.config, source.unet.settings, shared.UNET)
    (encoder,) = source.texts
    text = shared.read(shared.TEXT_FIELDS, encoder.config, encoder.settings, shared.TEXT)
    vae = shared.read(shared.VAE_FIELDS, source.vae.config, source.vae.settings, shared.VAE)
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
