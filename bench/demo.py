"""`make demo`, after the export: a picture, and a sheet of prompts by clip skip, made by engines without torch.

Run as `python -m clipskip.bench.demo STORE --out FOLDER`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import clipskip
from clipskip.axes import Axis

PICTURE = "a large red circle on a green background"
PROMPTS = (
    PICTURE,
    "a small red square on a blue background",
    "a large purple ring on a striped yellow background",
    "a large green triangle on a white background",
)
SKIPS = (1, 2, 3, 5, 8, 12, 13)
LOCKED = clipskip.Request(prompt=PICTURE, seed=2, cfg=3, steps=12)


def main() -> None:
    """Make the picture and the sheet on top of the README, and say what to try next."""
    parser = argparse.ArgumentParser(description="Make the demo's pictures.")
    parser.add_argument("store", type=Path)
    parser.add_argument("--out", type=Path, default=Path("build/demo"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with clipskip.open(args.store) as pipe:
        pipe(LOCKED, steps=20).save(args.out / "picture.png")
        told = time.perf_counter()
        print(f"one picture, opening the store included: {told - start:.1f} s -> {args.out / 'picture.png'}")
        sheet = pipe.grid(LOCKED, Axis("clip_skip", SKIPS), Axis("prompt", PROMPTS))
        sheet.save(args.out / "clip-skip.png")
        seconds = time.perf_counter() - told
        print(f"{len(sheet.results)} pictures by clip skip: {seconds:.1f} s -> {args.out / 'clip-skip.png'}")
    assert "torch" not in sys.modules, "the runtime must not load torch"
    line = f"/render /clipskip:2 /seed:2 /guidance:3 {PROMPTS[1]}"
    print(
        f"no torch was loaded. Next: look at the pictures, then try\n"
        f'  .venv/bin/clipskip generate {args.store} "{line}" --out {args.out}\n'
        f"  .venv/bin/clipskip inspect {args.store}\n"
        f"  make export MODEL=path/to/your/checkpoint"
    )


if __name__ == "__main__":
    main()
