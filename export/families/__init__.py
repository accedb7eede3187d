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
from clipskip.export.families.family import SUPPORTED, Family
from clipskip.export.families.sd1 import SD1
from clipskip.export.families.sd2 import SD2
from clipskip.export.families.sdxl import SDXL

FAMILIES = (SDXL, SD2, SD1)  # the first that claims a U-Net has it


def of(source: Checkpoint) -> Family:
    """The family of a checkpoint. CheckpointError, UnsupportedModelError for a U-Net that is of none."""
    return _family(_unet(source))


def _unet(source: Checkpoint) -> Any:
    return shared.read(shared.UNET_FIELDS, source.unet.config, source.unet.settings, shared.UNET)


def _family(unet: Any) -> Family:
    return next(family for family in FAMILIES if family.claims(unet))


def _texts(source: Checkpoint, unet: Any, family: Family) -> list[Any]:
    """The configurations of the text encoders, which are as many as the family has, and as wide as the U-Net reads."""
    if len(source.texts) != (count := len(family.encoders)):
        message = f"{source.root} has {len(source.texts)} text encoders, and {family.title} has {count}"
        raise UnsupportedModelError(message, path=source.root)
    texts = [shared.read(shared.TEXT_FIELDS, part.config, part.settings, shared.TEXT) for part in source.texts]
    pooled = sum(text.projection_dim for text, use in zip(texts, family.encoders, strict=True) if use.pooled)
    given = {"context": sum(text.hidden_size for text in texts), "pooled": pooled}
    asked = {port.name: port.shape[-1] for port in family.inputs(unet, "float32")} | {
        "context": unet.cross_attention_dim
    }
    for name, width in asked.items():
        if given.get(name, width) != width:
            message = f"the U-Net reads a {name} of width {width}, the text encoder gives {given[name]}"
            raise UnsupportedModelError(message, path=source.unet.settings)
    for part, text in zip(source.texts, texts, strict=True):
        tokens, rows = len(source.vocabulary), text.vocab_size
        if tokens > rows or 2 * tokens < rows:  # some rows without a token are an enlarged vocabulary
            fault = "more than the text encoder" if tokens > rows else f"the text encoder {rows}: it is another model's"
            message = f"the tokenizer has {tokens} tokens, {fault}: {part.settings}"
            raise CheckpointError(message, path=part.settings, field="vocab_size")
    return texts


def _scheduler(source: Checkpoint, prediction: str | None, earlier: ModelFacts | None) -> Any:
    said = {"prediction_type": earlier.prediction} if earlier else {}
    own = {field: value for field, value in source.scheduler.items() if (field, value) != ("prediction_type", "")}
    said = {**said, **own, **({"prediction_type": prediction} if prediction else {})}
    predicted = said.get("prediction_type")
    if predicted is None and own != source.scheduler:
        message = (
            f"nothing says whether this model predicts noise, as 512-base does, or v, as 768-v does: {source.root}"
        )
        hint = "say it: --prediction epsilon or --prediction v_prediction; or put the model's .yaml beside the file"
        raise UnsupportedModelError(message, path=source.schedule, field="prediction", hint=hint)
    if isinstance(predicted, str) and predicted not in ("epsilon", "v_prediction"):
        message = f"the network predicts no noise, but {predicted!r:.60}; {SUPPORTED} ({source.schedule})"
        hint = "if that is wrong, say what it predicts: --prediction epsilon or --prediction v_prediction"
        raise UnsupportedModelError(message, path=source.schedule, field="prediction", hint=hint)
    return shared.read(shared.SCHEDULER_FIELDS, said, source.schedule, shared.SCHEDULER)


def facts(
    source: Checkpoint, recommended_clip_skip: int | None = None, prediction: str | None = None,
    earlier: ModelFacts | None = None,
) -> ModelFacts:  # fmt: skip
    """What goes into the manifest, from the configurations alone; UnsupportedModelError where it is of no family.

    `prediction`: what the U-Net predicts, whatever the checkpoint says of it. What neither says is as in `earlier`, if
    that is of a model of the same name.
    """
    root = source.root
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", root.name).strip("-.")[:100] or "model"
    earlier = earlier if earlier and earlier.name == name else None
    unet = _unet(source)
    family = _family(unet)
    pipeline = source.index.get("_class_name")
    if pipeline is not None and not re.fullmatch(family.pipelines, str(pipeline)):
        message = f"{root} is a {pipeline!s:.80} with a U-Net of {family.title}; {SUPPORTED}"
        raise UnsupportedModelError(message, path=root)
    texts = _texts(source, unet, family)
    vae = shared.read(shared.VAE_FIELDS, source.vae.config, source.vae.settings, shared.VAE)
    scheduler = _scheduler(source, prediction, earlier)
    layers = texts[0].num_hidden_layers
    clip_skips = family.clip_skips(layers)
    if recommended_clip_skip is None:
        recommended_clip_skip = min(earlier.recommended_clip_skip, len(clip_skips)) if earlier else 1
    if type(recommended_clip_skip) is not int or not 1 <= recommended_clip_skip <= len(clip_skips):
        message = f"recommended_clip_skip must be a whole number from 1 to {len(clip_skips)}"
        raise RequestError(message, field="recommended_clip_skip")
    return ModelFacts(
        name=name, family=family.name, layers=layers, width=unet.cross_attention_dim, vocabulary=texts[0].vocab_size,
        prediction=scheduler.prediction_type, beta_start=scheduler.beta_start, beta_end=scheduler.beta_end,
        train_steps=scheduler.num_train_timesteps, scaling_factor=vae.scaling_factor,
        default_size=(unet.sample_size or family.size(scheduler.prediction_type)) * LATENT,
        size_step=LATENT,  # the step graph upsamples to the size of what it joins
        recommended_clip_skip=recommended_clip_skip,
        model_sha256=hashlib.sha256(json.dumps(dict(source.sources), sort_keys=True).encode()).hexdigest(),
        sources=source.sources,
        clip_skips=() if clip_skips == tuple(range(layers, -1, -1)) else clip_skips,
        zero_snr=scheduler.rescale_betas_zero_snr,
        context_parts=tuple(text.hidden_size for text in texts) if len(texts) > 1 else (),
    )  # fmt: skip
