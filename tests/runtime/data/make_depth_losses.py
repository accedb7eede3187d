"""Makes depth_losses.npz: what `recommend` measured on 64 drawn pictures, per picture and clip skip.

`even`: the sample model, whose first depths were all trained; `second`: the same with noise on the weights of its last
text layer, which its U-Net so never saw: as a model that was trained at clip skip 2 looks. Run from the project's root:
python tests/runtime/data/make_depth_losses.py
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import PIL.Image
from safetensors.numpy import load_file, save_file

import clipskip
from clipskip import recommend
from clipskip.export import export

SAMPLE, PICTURES, NOISE = Path(__file__).parents[3] / "export" / "sample", 64, 3.0
sys.path.insert(0, str(SAMPLE))

from captions import Writer  # noqa: E402
from scenes import draw, random_scene  # noqa: E402


def captioned(count: int, seed: int = 5) -> list[tuple[PIL.Image.Image, str]]:
    """Pictures of combinations that the sample model was not trained on."""
    rng = np.random.default_rng(seed)
    scenes = [random_scene(rng, held_out=True) for _ in range(count)]
    writer = Writer(rng)
    return [(PIL.Image.fromarray(draw(scene, rng)), writer.caption(scene).text) for scene in scenes]


def losses(store: Path) -> np.ndarray:
    with clipskip.open(store) as pipe:
        return recommend.recommend(pipe, captioned(PICTURES)).losses


def main(work: Path = Path("build/depth-losses")) -> None:
    recommend.LEAST = PICTURES  # no answer before
    shutil.copytree(SAMPLE, work / "second", dirs_exist_ok=True)
    path, rng = work / "second/text_encoder/model.safetensors", np.random.default_rng(0)
    weights = load_file(path)
    for name, weight in weights.items():
        if "encoder.layers.11." in name and weight.ndim > 1:
            noise = rng.standard_normal(weight.shape) * weight.astype(np.float32).std() * NOISE
            weights[name] = (weight + noise).astype(weight.dtype)
    save_file(weights, path)
    found = {}
    for name, checkpoint in {"even": SAMPLE, "second": work / "second"}.items():
        export(checkpoint, work / f"store-{name}")
        found[name] = losses(work / f"store-{name}").astype(np.float32)
    np.savez_compressed(Path(__file__).with_name("depth_losses.npz"), **found)


if __name__ == "__main__":
    main()
