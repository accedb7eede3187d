"""Measures how much of held-out prompts a checkpoint draws, by clip skip: `python export/sample/check.py`."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
from captions import EVERYTHING, Caption, Writer
from checker import check
from drawing import workers
from PIL import Image
from scenes import random_scene

HERE = Path(__file__).parent
PROMPT_SEED, NOISE_SEED = 20_000, 7
GROUPS = {
    "everything": ("",),
    "colours": ("colour",),
    "kinds": ("kind",),
    "sizes": ("size",),
    "places": ("place", "axis"),
    "background": ("background",),
}


def main() -> None:
    """Print a table, and write it as JSON beside the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=HERE, help="the checkpoint, in diffusers' layout")
    parser.add_argument("--prompts", type=int, default=96, help="held-out prompts per depth")
    parser.add_argument("--clip-skip", type=int, nargs="*", default=list(range(1, 14)), help="which depths to measure")
    parser.add_argument("--sheet", type=Path, help="also write the pictures, one row per depth, as a PNG")
    options = parser.parse_args()
    captions = held_out_captions(options.prompts)
    prompts, rows, drawn = [caption.text for caption in captions], list[dict[str, object]](), []
    with workers() as pool:
        from sampling import GUIDANCE, STEPS, load, pictures  # torch: not in the workers
        from training import best_device

        model = load(options.folder, best_device())
        for skip in options.clip_skip:
            drawn.append(pictures(model, prompts, skip, NOISE_SEED))
            rows.append({"clip_skip": skip, "layers": 13 - skip} | fidelity(pool, drawn[-1], captions))
            print(_line(rows[-1]), flush=True)
    if options.sheet:
        sheet(drawn).save(options.sheet)
    setup = {"prompts": options.prompts, "steps": STEPS, "guidance": GUIDANCE, "sampler": "DDIM", "held_out": True}
    (options.folder / "fidelity.json").write_text(json.dumps(setup | {"by_clip_skip": rows}, indent=1) + "\n")


def held_out_captions(count: int) -> list[Caption]:
    """Captions that name everything, of combinations that no training picture shows."""
    rng = np.random.default_rng(PROMPT_SEED)
    writer = Writer(rng, EVERYTHING)
    return [writer.caption(random_scene(rng, held_out=True)) for _ in range(count)]


def fidelity(pool: Pool, drawn: np.ndarray, captions: Sequence[Caption]) -> dict[str, object]:
    """The share of pictures that show all that was named, with its standard error, in all and by attribute group."""
    checked = pool.starmap(check, [(picture, caption.named) for picture, caption in zip(drawn, captions, strict=True)])
    result: dict[str, object] = {}
    for group, prefixes in GROUPS.items():
        result[group] = _share([_all_right(right, prefixes) for right in checked])
    for count in ("one", "two"):
        pairs = zip(checked, captions, strict=True)
        chosen = [all(right.values()) for right, caption in pairs if caption.named["count"] == count]
        result[f"everything, {count}"] = _share(chosen)
    return result


def _all_right(right: dict[str, bool], prefixes: tuple[str, ...]) -> bool:
    return all(value for name, value in right.items() if name.startswith(prefixes))


def _share(right: list[bool]) -> dict[str, float]:
    mean = sum(right) / max(len(right), 1)
    return {"mean": round(mean, 4), "error": round(math.sqrt(mean * (1 - mean) / max(len(right), 1)), 4)}


def _line(row: dict[str, object]) -> str:
    shares = {name: value for name, value in row.items() if isinstance(value, dict)}
    return f"clip skip {row['clip_skip']:>2} | " + " ".join(f"{n} {v['mean']:.2f}" for n, v in shares.items())


def sheet(drawn: Sequence[np.ndarray]) -> Image.Image:
    """All pictures on one: a row per depth, a column per prompt."""
    return Image.fromarray(np.concatenate([np.concatenate(list(row), axis=1) for row in drawn], axis=0))


if __name__ == "__main__":
    main()
