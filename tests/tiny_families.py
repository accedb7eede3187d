"""Folders of tiny random models of the families, in diffusers' layout, as diffusers itself saves them."""

from __future__ import annotations

import json
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

MERGES = ["c a", "ca t</w>"]
LETTERS = [*ascii_lowercase, *(f"{letter}</w>" for letter in ascii_lowercase)]
VOCABULARY = ["!", *LETTERS, ",</w>", "ca", "cat</w>", "<|startoftext|>", "<|endoftext|>"]  # 0 is "!", as in CLIP's
END = len(VOCABULARY) - 1


def _text(kind: type[torch.nn.Module], width: int, layers: int, **config: Any) -> torch.nn.Module:
    return kind(
        CLIPTextConfig(
            vocab_size=len(VOCABULARY), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
            num_attention_heads=2, bos_token_id=END - 1, eos_token_id=END, pad_token_id=0, **config,
        )
    )  # fmt: skip


def _unet(context: int, **config: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 16), layers_per_block=0, norm_num_groups=4, cross_attention_dim=context,
        attention_head_dim=(2, 4), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), use_linear_projection=True, **config,
    )  # fmt: skip


def _save(root: Path, scale: float, **parts: torch.nn.Module) -> Path:
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), layers_per_block=0, norm_num_groups=2, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, scaling_factor=scale,
    )  # fmt: skip
    for name, network in {**parts, "vae": vae}.items():
        network.save_pretrained(root / name)
    EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(
        root / "scheduler"
    )
    for name in ("tokenizer", *(["tokenizer_2"] if "text_encoder_2" in parts else [])):
        (root / name).mkdir()
        (root / name / "vocab.json").write_text(json.dumps({token: place for place, token in enumerate(VOCABULARY)}))
        (root / name / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    return root


def sd2(root: Path, channels: int = 4) -> Path:
    """SD 2.x: gelu, and a U-Net with linear projections; with 9 channels one for inpainting."""
    torch.manual_seed(0)
    text = _text(CLIPTextModel, 32, 3, hidden_act="gelu")
    return _save(root, 0.18215, text_encoder=text, unet=_unet(32, in_channels=channels))


def sdxl(root: Path) -> Path:
    """SDXL: encoders of different width and depth, of which the second is projected."""
    torch.manual_seed(0)
    first = _text(CLIPTextModel, 32, 3)
    second = _text(CLIPTextModelWithProjection, 16, 5, hidden_act="gelu", projection_dim=24)
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    unet = _unet(48, projection_class_embeddings_input_dim=24 + 6 * 8, **added)
    return _save(root, 0.13025, text_encoder=first, text_encoder_2=second, unet=unet)
