"""What a family of models is, and what all of them share: the fields of their configurations and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from clipskip.engines import strict
from clipskip.engines.errors import CheckpointError, ManifestError, UnsupportedModelError
from clipskip.engines.manifest import Beta, Layers, Port, Scale, TrainSteps
from clipskip.engines.shapes import LATENT, TOKENS
from clipskip.engines.strict import Between

SUPPORTED = "SD 1.x, SD 2.x and SDXL are supported"
INPAINTING = 9  # channels of a U-Net that also sees a mask and what it leaves of a picture
Width = Annotated[int, range(1, 1 << 20)]
Widths = tuple[Width, ...]
Depth = Annotated[int, range(100)]
Word = Annotated[str, r"\w{1,60}"]
Small = Annotated[float, Between(0, 1)]
Schema = Mapping[str, tuple[Any, Any]]  # field -> what it may hold, and what it is where it is left out
TEXT_FIELDS: Schema = {  # transformers writes only what differs from its own values
    "model_type": (Word, "clip_text_model"), "hidden_act": (Word, "quick_gelu"), "layer_norm_eps": (Small, 1e-5),
    "vocab_size": (Width, 49408), "hidden_size": (Width, 512), "intermediate_size": (Width, 2048),
    "num_hidden_layers": (Layers, 12), "num_attention_heads": (Width, 8), "max_position_embeddings": (Width, TOKENS),
    "projection_dim": (Width, 512),
}  # fmt: skip
UNET_FIELDS: Schema = {
    "sample_size": (Annotated[int, range(1, 8193)] | None, None), "in_channels": (Width, 4), "out_channels": (Width, 4),
    "block_out_channels": (Widths, (320, 640, 1280, 1280)), "cross_attention_dim": (Width, 1280),
    "layers_per_block": (Depth | tuple[Depth, ...], 2), "transformer_layers_per_block": (Depth | tuple[Depth, ...], 1),
    "attention_head_dim": (Width | Widths, 8), "num_attention_heads": (Width | Widths | None, None),
    "down_block_types": (tuple[Word, ...], ()), "up_block_types": (tuple[Word, ...], ()), "act_fn": (Word, "silu"),
    "mid_block_type": (Word | None, None), "norm_num_groups": (Width | None, 32), "norm_eps": (Small, 1e-5),
    "addition_embed_type": (Word | None, None), "class_embed_type": (Word | None, None),
    "num_class_embeds": (Width | None, None), "encoder_hid_dim": (Width | None, None),
    "time_cond_proj_dim": (Width | None, None), "use_linear_projection": (bool, False),
    "addition_time_embed_dim": (Width | None, None), "projection_class_embeddings_input_dim": (Width | None, None),
}  # fmt: skip
VAE_FIELDS: Schema = {
    "_class_name": (Word, "AutoencoderKL"), "block_out_channels": (Widths, (64,)), "layers_per_block": (Depth, 1),
    "down_block_types": (tuple[Word, ...], ()), "up_block_types": (tuple[Word, ...], ()), "act_fn": (Word, "silu"),
    "in_channels": (Width, 3), "out_channels": (Width, 3), "latent_channels": (Width, 4),
    "norm_num_groups": (Width, 32), "scaling_factor": (Scale, 0.18215), "shift_factor": (float | None, None),
    "latents_mean": (tuple[float, ...] | None, None),
}  # fmt: skip
SCHEDULER_FIELDS: Schema = {  # where old checkpoints leave a value out, it is SD 1.x's own
    "beta_schedule": (Word, "scaled_linear"), "beta_start": (Beta, 0.00085), "beta_end": (Beta, 0.012),
    "num_train_timesteps": (TrainSteps, 1000), "prediction_type": (Word, "epsilon"),
    "trained_betas": (tuple[float, ...] | None, None), "rescale_betas_zero_snr": (bool, False),
}  # fmt: skip
Rule = tuple[Callable[[Any], object], str]  # what must not be, and what it means
UNET: tuple[Rule, ...] = (
    (lambda c: c.in_channels not in (4, INPAINTING), f"the U-Net has other than 4 channels, or {INPAINTING}"),
    (lambda c: c.out_channels != 4, "the U-Net has other than 4 channels"),
    (lambda c: c.class_embed_type or c.num_class_embeds, "this U-Net is conditioned on a class"),
    (lambda c: c.addition_embed_type not in (None, "text_time"), "this U-Net takes inputs that no supported model has"),
    (
        lambda c: c.addition_embed_type and not (c.addition_time_embed_dim and c.projection_class_embeddings_input_dim),
        "the U-Net does not say how wide its pooled vector is",
    ),
    (lambda c: c.encoder_hid_dim or c.time_cond_proj_dim, "this U-Net takes inputs that no supported model has"),
    (lambda c: not 1 <= len(c.block_out_channels) <= 8, "block_out_channels: the U-Net has no or too many blocks"),
)
TEXT: tuple[Rule, ...] = (
    (lambda c: c.model_type != "clip_text_model", "this is no CLIP text encoder"),
    (lambda c: c.max_position_embeddings != TOKENS, f"the text encoder does not read {TOKENS} tokens"),
)
VAE: tuple[Rule, ...] = (
    (lambda c: c._class_name != "AutoencoderKL", "the VAE is no AutoencoderKL"),
    (lambda c: c.latent_channels != 4, "the VAE has other than 4 latent channels"),
    (lambda c: len(c.block_out_channels) != LATENT.bit_length(), f"the VAE does not shrink by {LATENT}"),
    (lambda c: c.shift_factor or c.latents_mean, "the VAE shifts its latents, as SD 3 does"),
)
SCHEDULER: tuple[Rule, ...] = (
    (lambda c: c.beta_schedule != "scaled_linear", "the betas are not scaled-linear"),
    (lambda c: c.trained_betas, "the betas are a list of their own"),
    (lambda c: c.beta_end < c.beta_start, "beta_end is less than beta_start"),
)


@dataclass(frozen=True)
class Encoder:
    """What a family takes of one of its text encoders."""

    normed: bool = True  # its final LayerNorm follows whichever layer is the last
    padding: int | None = None  # the token that fills a chunk behind its first end token; None: that one again
    pooled: bool = False  # it also gives one vector for the whole text, of all its layers


@dataclass(frozen=True)
class Family:
    """What one kind of Stable Diffusion is told by, and all that it does in its own way."""

    name: str  # in manifests
    title: str
    pipelines: str  # a pattern of what diffusers calls its pipelines
    claims: Callable[[Any], object]  # whether a U-Net of this configuration is one
    clip_skips: Callable[[int], tuple[int, ...]]  # layers of the first encoder -> those kept at clip skip 1, 2, ...
    encoders: tuple[Encoder, ...] = (Encoder(),)
    size: Callable[[str], int] = lambda prediction: 64  # of the latents it was trained on, where its U-Net says none
    float_attention: bool = False  # the U-Net's attention overflows in fp16
    inputs: Callable[[Any, str], tuple[Port, ...]] = lambda unet, dtype: ()  # the step's own, in the order of the trace
    conditions: Callable[[Mapping[str, Any], Any], Mapping[str, Any]] = lambda inputs, rows: {}
    """What the U-Net is called with for them, by name; `rows` says which image each of its rows looks at."""


def read(kinds: Schema, config: Mapping[str, Any], path: Path, rules: tuple[Rule, ...]) -> Any:
    """The part of the configuration at `path` that must be known. CheckpointError names the field that is wrong."""
    try:
        found = strict.pick(kinds, config)
    except ManifestError as error:
        raise CheckpointError(f"{path}: {error.message}", path=path, field=error.field) from error
    for broken, meaning in rules:
        if broken(found):
            raise UnsupportedModelError(f"{meaning}; {SUPPORTED} ({path})", path=path)
    return found
