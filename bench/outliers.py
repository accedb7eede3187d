"""A copy of a checkpoint whose activations have outliers, as those of large models do: for the gates of fp16.

A few channels of every residual stream are made many times as large. Knows nothing of what the copy is exported to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipskip.engines.shapes import TOKENS
from clipskip.export import models
from clipskip.export.checkpoint import open_checkpoint

CHANNELS = 2
TABLES = ("token_embedding", "position_embedding")
WRITERS = ("conv_in", "conv2", "proj_out", "to_out.0", "net.2", "out_proj", "fc2")  # whose rows are a stream's channels
Activations = dict[str, dict[str, float]]  # network -> the largest activation, and the largest relative to its tensor


@torch.no_grad()
def copy(checkpoint: Path, folder: Path, factor: float) -> Activations:
    """Write the copy in diffusers' layout and in fp16; its activations on random inputs, in fp32."""
    source = open_checkpoint(checkpoint)
    networks = models.load(source)
    for network in (*networks.texts, networks.unet):
        for name, module in network.named_modules():
            weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
            if isinstance(weight, Tensor) and name.endswith(TABLES):
                weight[:, :CHANNELS] *= factor
            elif isinstance(weight, Tensor) and name.endswith(WRITERS):
                weight[:CHANNELS] *= factor
                if bias is not None:
                    bias[:CHANNELS] *= factor
    found = activations(networks)
    folders = ("text_encoder", "text_encoder_2")[: len(networks.texts)]
    for name, network in zip((*folders, "unet", "vae"), (*networks.texts, networks.unet, networks.vae), strict=True):
        network.half().save_pretrained(folder / name)
    files = {f"tokenizer/{name}": content for name, content in source.tokenizer.items()}
    files["scheduler/scheduler_config.json"] = json.dumps(dict(source.scheduler)).encode()
    for name, content in {**files, "model_index.json": json.dumps(dict(source.index)).encode()}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return found


def activations(networks: models.Networks) -> Activations:
    """On a text of random tokens and on noise; of the U-Net only where it takes nothing else."""
    torch.manual_seed(0)
    found, contexts = Activations(), list[Tensor]()
    tokens = torch.randint(0, networks.end - 1, (1, TOKENS))
    for text in networks.texts:
        with watched(text, found.setdefault("text", {"largest": 0.0, "times_rms": 0.0})):
            contexts.append(text(input_ids=tokens).last_hidden_state)
    unet: Any = networks.unet
    if unet.config.addition_embed_type is None:
        latents = torch.randn(1, unet.config.in_channels, *[min(64, unet.config.sample_size)] * 2)
        with watched(unet, found.setdefault("unet", {"largest": 0.0, "times_rms": 0.0})):
            unet(latents, 500, torch.cat(contexts, dim=-1))
    return found


@contextmanager
def watched(network: nn.Module, worst: dict[str, float]) -> Iterator[None]:
    """Note in `worst` how large the outputs of its layers become."""

    def note(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.is_floating_point():
            largest = float(output.abs().max())
            rms = float(output.square().mean().sqrt())
            worst.update(largest=max(worst["largest"], largest), times_rms=max(worst["times_rms"], largest / rms))

    hooks = [module.register_forward_hook(note) for module in network.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
