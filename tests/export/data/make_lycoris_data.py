"""Write lycoris.npz: layers of LyCORIS with random weights, and the matrix of each as its own forward pass shows it.

    pip install lycoris-lora==4.1.3 einops toml tqdm
    python tests/export/data/make_lycoris_data.py

The matrix is read off what the layer makes of unit inputs, with a multiplier of 1. (`get_merged_weight` of LoHa and
LoKr multiplies by alpha / rank twice in that version; the forward pass, which is what they are trained with, does not.)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from lycoris.modules.locon import LoConModule  # type: ignore[import-not-found]
from lycoris.modules.loha import LohaModule  # type: ignore[import-not-found]
from lycoris.modules.lokr import LokrModule  # type: ignore[import-not-found]
from torch import nn

CASES = {
    "locon": (LoConModule, {}), "locon_tucker": (LoConModule, {"use_tucker": True}),
    "dora": (LoConModule, {"weight_decompose": True}),
    "dora_inputs": (LoConModule, {"weight_decompose": True, "wd_on_out": False}),
    "loha": (LohaModule, {}), "loha_tucker": (LohaModule, {"use_tucker": True}),
    "loha_dora": (LohaModule, {"weight_decompose": True}), "lokr": (LokrModule, {"factor": 2}),
    "lokr_both": (LokrModule, {"factor": 4, "decompose_both": True}),
    "lokr_tucker": (LokrModule, {"factor": 2, "use_tucker": True}),
    "lokr_whole": (LokrModule, {"factor": 2, "full_matrix": True}),
}  # fmt: skip


def seen(layer: nn.Module, shape: torch.Size) -> torch.Tensor:
    """The matrix, row by row of its inputs."""
    outputs, *inputs = shape
    units = torch.eye(int(np.prod(inputs))).reshape(-1, *inputs)
    made: torch.Tensor = layer(units)
    if len(inputs) > 1:
        made = made[:, :, inputs[1] // 2, inputs[2] // 2]
    return made.T.reshape(outputs, *inputs)


if __name__ == "__main__":
    torch.manual_seed(0)
    arrays = {}
    for case, (kind, settings) in CASES.items():
        for original in (nn.Linear(12, 16, bias=False), nn.Conv2d(12, 16, 3, padding=1, bias=False)):
            layer = kind("layer", original, multiplier=1.0, lora_dim=2, alpha=1.5, **settings).eval()
            own = {name: tensor for name, tensor in layer.named_parameters() if not name.startswith("org")}
            with torch.no_grad():
                for name, tensor in own.items():
                    tensor.copy_(tensor * (1 + torch.rand_like(tensor)) if "dora" in name else torch.randn_like(tensor))
                stem = f"{case}/{'linear' if original.weight.ndim == 2 else 'conv'}"
                arrays[f"{stem}/base"] = original.weight.numpy().copy()
                arrays[f"{stem}/merged"] = seen(layer, original.weight.shape).numpy()
            state = {name: each.detach() for name, each in layer.state_dict().items() if not name.startswith("org")}
            arrays |= {f"{stem}/tensor/{name}": tensor.numpy() for name, tensor in state.items()}
    np.savez_compressed(Path(__file__).with_name("lycoris.npz"), **arrays)
