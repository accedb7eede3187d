"""A LoRA that nobody trained, for measurements: `python tests/random_lora.py STORE FILE [--rank 32]`.

It changes every linear layer and every convolution of the U-Net and of the text encoders whose graphs the store has, in
kohya's layout and in fp16. `--size` is the length of a change relative to the weight that it is added to, if that has
the usual variance of 1 / inputs.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from clipskip.engines import variants
from clipskip.engines.store import Store
from clipskip.engines.weights import Shape

STARTS = {"unet": "lora_unet_", "text": "lora_te_text_model_", "text2": "lora_te2_text_model_"}


def write(path: Path, shapes: Mapping[str, Shape], rank: int, size: float) -> int:
    """The file, with random numbers for these layers; how many it holds."""
    rng, arrays = np.random.default_rng(0), {}
    for parameter, (outputs, *inputs) in sorted(shapes.items()):
        network, _, layer = parameter.removesuffix(".weight").partition(".")
        down, up = (rank, *inputs), (outputs, rank, *[1] * len(inputs[1:]))
        for part, shape, spread in ("down", down, size / math.prod(inputs)), ("up", up, size):
            numbers = rng.standard_normal(shape, np.float32) * np.float32(spread**0.5 / rank**0.25)
            arrays[f"{STARTS[network]}{layer.replace('.', '_')}.lora_{part}.weight"] = numbers.astype(np.float16)
    save_file(arrays, path)
    return sum(array.size for array in arrays.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--size", type=float, default=0.1)
    args = parser.parse_args()
    store = Store(args.store)
    layers = variants.changeable(store, store.manifest().artefacts[0].precision)
    numbers = write(args.file, layers, args.rank, args.size)
    print(f"{args.file}: {len(layers)} layers, rank {args.rank}, {numbers} numbers")
