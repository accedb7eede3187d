"""Makes depth_losses.npz: what `recommend` measured on 64 drawn pictures, per picture and clip skip.

`second`: the sample model, trained at clip skip 2; `even`: the one before it (of commit a1369b5), whose first depths
were all trained, and which stays as it is. Run from the project's root: python tests/runtime/data/make_depth_losses.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import PIL.Image

import clipskip
from clipskip import recommend
from clipskip.export import export

SAMPLE, PICTURES = Path(__file__).parents[3] / "export" / "sample", 64
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
    export(SAMPLE, work)
    kept = Path(__file__).with_name("depth_losses.npz")
    even = np.load(kept)["even"]
    np.savez_compressed(kept, even=even, second=losses(work).astype(np.float32))


if __name__ == "__main__":
    main()
