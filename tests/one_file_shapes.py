"""The recipe of export/shapes.json.gz: `python tests/one_file_shapes.py` writes what diffusers and transformers make.

It holds the shape of every weight of the models that come in one file, so that a header can be judged without torch.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from clipskip.export.onefile import LAYOUTS, Layout

PATH = Path(__file__).parents[1] / "export" / "shapes.json.gz"


def made(layout: Layout) -> dict[str, torch.nn.Module]:
    """The networks, with random weights."""
    return {
        "text_encoder": CLIPTextModel(CLIPTextConfig.from_dict(dict(layout.text))),
        "unet": UNet2DConditionModel.from_config(dict(layout.unet)),
        "vae": AutoencoderKL.from_config(dict(layout.vae)),
    }


def networks(layout: Layout) -> dict[str, torch.nn.Module]:
    """Without memory for their weights."""
    with torch.device("meta"):
        return made(layout)


def shapes(layout: Layout) -> dict[str, dict[str, tuple[int, ...]]]:
    """Of every weight, by part and name."""
    return {
        part: {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        for part, network in networks(layout).items()
    }


def tree() -> dict[str, Any]:
    return {layout.family: shapes(layout) for layout in LAYOUTS}


if __name__ == "__main__":
    PATH.write_bytes(gzip.compress(json.dumps(tree(), sort_keys=True).encode(), mtime=0))
