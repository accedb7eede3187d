"""A LoRA that nobody trained, for measurements: `python -m clipskip.bench.random_lora STORE FILE [--rank 32]`.

It changes every linear layer and every convolution of the U-Net and of the text encoders whose graphs the store has, in
kohya's layout and in fp16. `--size` is the length of a change relative to the weight that it is added to, if that has
the usual variance of 1 / inputs.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np

from clipskip.engines import weights
from clipskip.engines.store import Store
from clipskip.engines.weights import Shape

STARTS = {"unet": "lora_unet_", "text": "lora_te_text_model_", "text2": "lora_te2_text_model_"}


def parameters(root: Path) -> dict[str, Shape]:
    """The layers of all networks of a store that a LoRA may change: name -> shape."""
    artefacts = Store(root).manifest().artefacts
    paths = {path for artefact in artefacts if (path := weights.table_path(artefact, root)) is not None}
    stored = [each for path in sorted(paths) for each in weights.loads(path.read_bytes()).values()]
    shapes = {name: shape for each in stored for name, shape in each.parameters().items()}
    return {name: shape for name, shape in sorted(shapes.items()) if name.partition(".")[0] in STARTS}


def write(path: Path, shapes: dict[str, Shape], rank: int, size: float) -> int:
    """The file, with random numbers for these layers; how many it holds."""
    rng, header, blocks, end = np.random.default_rng(0), {}, [], 0
    for parameter, (outputs, *inputs) in shapes.items():
        network, _, layer = parameter.removesuffix(".weight").partition(".")
        name, scale = STARTS[network] + layer.replace(".", "_"), (size / math.prod(inputs)) ** 0.5 / rank**0.25
        for part, shape in ("down", (rank, *inputs)), ("up", (outputs, rank, *[1] * (len(inputs) - 1))):
            factor = scale if part == "down" else size**0.5 / rank**0.25
            blocks.append((rng.standard_normal(shape, np.float32) * np.float32(factor)).astype(np.float16).tobytes())
            begin, end = end, end + len(blocks[-1])
            header[f"{name}.lora_{part}.weight"] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blocks))
    return end // 2


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--size", type=float, default=0.1)
    args = parser.parse_args()
    layers = parameters(args.store)
    numbers = write(args.file, layers, args.rank, args.size)
    print(f"{args.file}: {len(layers)} layers, rank {args.rank}, {numbers} numbers")
