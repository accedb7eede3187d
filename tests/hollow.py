"""Files of weights of any size that take no room on the disk: a header, and a hole where the tensors would be."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

SIZES = {"F8_E4M3": 1, "F16": 2, "BF16": 2, "F32": 4, "I64": 8}
Shapes = Mapping[str, tuple[int, ...]]
SD15: Shapes = {  # one tensor of each part, with about as many numbers as the part has
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (160_000, 768),
    "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (1_119_000, 768),
    "first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3),
    "first_stage_model.encoder.down.0.block.0.conv1.weight": (72_600, 128, 3, 3),
}


def hollow(path: Path, shapes: Shapes, dtype: str = "F16", metadata: Mapping[str, str] | None = None) -> Path:
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with path.open("r+b") as file:
        file.truncate(8 + len(text) + end)
    return path
