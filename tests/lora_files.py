"""LoRA files with random numbers, as kohya's trainer lays them out, for whatever parameters a store holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

RANK, ALPHA = 4, 2.0


def layer_of(parameter: str) -> str:
    """What kohya calls the layer of a parameter."""
    network, _, rest = parameter.removesuffix(".weight").partition(".")
    return ("lora_unet_" if network == "unet" else "lora_te_text_model_") + rest.replace(".", "_")


def write(
    path: Path,
    parameters: Mapping[str, tuple[int, ...]],
    pick: Callable[[str], bool] = lambda name: True,
    *,
    seed: int = 0,
    scale: float = 0.1,
    metadata: dict[str, str] | None = None,
) -> Path:
    """A LoRA of rank 4, alpha 2, for those parameters that are picked."""
    rng, arrays = np.random.default_rng(seed), dict[str, np.ndarray]()
    for name, (outputs, *inputs) in parameters.items():
        if pick(name):
            down, up = (RANK, *inputs), (outputs, RANK, *[1] * (len(inputs) - 1))
            for part, shape in (("down", down), ("up", up)):
                values = rng.standard_normal(shape) * scale
                arrays[f"{layer_of(name)}.lora_{part}.weight"] = values.astype(np.float32)
            arrays[f"{layer_of(name)}.alpha"] = np.array(ALPHA, np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(arrays, path, metadata)
    return path


def merge(path: Path, modules: Mapping[str, Any], weights: Mapping[str, float]) -> None:
    """Add a file's deltas to torch's modules, {"text": ..., "unet": ...}, in float64, with no code of ours."""
    import torch

    arrays = load_file(path)
    for network, module in modules.items():
        for name, parameter in module.named_parameters():
            short = name.removeprefix("text_model.").removesuffix(".weight")
            layer = layer_of(f"{network}.{short}.weight")
            if f"{layer}.lora_up.weight" in arrays:
                up, down = (arrays[f"{layer}.lora_{part}.weight"].astype(np.float64) for part in ("up", "down"))
                product = np.tensordot(up.reshape(len(up), RANK), down.reshape(RANK, -1), 1).reshape(parameter.shape)
                delta = torch.from_numpy(product * weights[network] * ALPHA / RANK)
                parameter.data += delta.to(parameter.dtype)
