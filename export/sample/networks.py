"""The three networks' shapes, their first weights, and the folder they are saved in. Knows nothing of training."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

LAYERS = 12
WIDTH = 64
POSITIONS = 77
# What pictures are trained on: the hidden state before the last layer, as with clip skip 2.
USED = LAYERS - 1


def new_vae() -> AutoencoderKL:
    """An autoencoder of factor 8; two norm groups, since eight were stuck in the first steps."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=2,
        sample_size=128,
    )


def new_text_encoder(tokens: int) -> CLIPTextModel:
    """SD 1.x's twelve layers at width 64, started so that the residual stream is not drowned by its branches."""
    config = CLIPTextConfig(
        vocab_size=tokens,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        projection_dim=WIDTH,
        hidden_act="quick_gelu",
        bos_token_id=tokens - 2,
        eos_token_id=tokens - 1,
        pad_token_id=tokens - 1,
    )
    text = CLIPTextModel(config)
    for name, value in text.named_parameters():
        if name.endswith("weight") and value.dim() == 2 and "embedding" not in name:
            scale = 0.3 if ("out_proj" in name or "fc2" in name) else 1.0
            nn.init.normal_(value, std=scale * value.shape[1] ** -0.5)
    nn.init.normal_(text.embeddings.token_embedding.weight, std=0.1)
    nn.init.normal_(text.embeddings.position_embedding.weight, std=0.05)
    return text


def hidden_states(text: CLIPTextModel, ids: Tensor) -> Tensor:
    """The hidden states after 0..12 layers, [13, n, tokens, 64], before the final LayerNorm."""
    return torch.stack(text(input_ids=ids, output_hidden_states=True).hidden_states)


def new_unet() -> UNet2DConditionModel:
    """SD 1.x's U-Net with a tenth of its channels and one layer per block."""
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64, 128, 128),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=8,
    )


def new_scheduler() -> DDIMScheduler:
    """SD 1.x's noise schedule."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def save_pipeline(out: Path, parts: dict[str, Any]) -> None:
    """Write text_encoder, unet and vae as fp16 safetensors, the scheduler and the index, in diffusers' layout."""
    for name in ("unet", "vae"):
        copy.deepcopy(parts[name]).half().cpu().save_pretrained(out / name)
    # Trainers of checkpoints note the clip skip so; diffusers' own way of saving can note nothing.
    unet, note = copy.deepcopy(parts["unet"]).half().cpu(), {"ss_clip_skip": str(LAYERS + 1 - USED)}
    save_file(unet.state_dict(), out / "unet/diffusion_pytorch_model.safetensors", {"format": "pt", **note})
    _save_text_encoder(out / "text_encoder", parts["text_encoder"])
    new_scheduler().save_pretrained(out / "scheduler")
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": diffusers.__version__}
    index |= {name: [None, None] for name in ("feature_extractor", "image_encoder", "safety_checker")}
    index |= {"requires_safety_checker": False, "scheduler": ["diffusers", "DDIMScheduler"]}
    index |= {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}
    index |= {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    (out / "model_index.json").write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")


def _save_text_encoder(folder: Path, text: CLIPTextModel) -> None:
    """SD 1.x's files name the weights `text_model.*`; transformers 5 has dropped the prefix in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    config = text.config.to_dict() | {"architectures": ["CLIPTextModel"], "dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    weights = {
        f"text_model.{name}": value.detach().half().cpu().contiguous() for name, value in text.named_parameters()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
