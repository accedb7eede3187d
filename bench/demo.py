"""`make demo`, after the export: one picture and a sheet of prompts by clip skip, made by exported engines without torch.

Run as `python -m clipskip.bench.demo STORE --out FOLDER`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import clipskip
from clipskip import sheet, terminal

PICTURE = "a large red circle on a green background"
PROMPTS = (
    PICTURE,
    "a small blue star to the left of a large yellow square on a white background",
    "a large purple ring on a striped yellow background",
    "a large orange cross above a small green circle on a black background",
)
SKIPS = (1, 2, 3, 5, 8, 12, 13)
STEPS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the demo's pictures.")
    parser.add_argument("store", type=Path)
    parser.add_argument("--out", type=Path, default=Path("build/demo"))
    args = parser.parse_args()
    start = time.perf_counter()
    with clipskip.open(args.store) as pipe:
        picture(pipe, args.out)
        told = time.perf_counter()
        print(f"one picture, opening the store included: {told - start:.1f} s -> {args.out / 'picture.png'}")
        skip_sheet(pipe, args.out)
        count = len(PROMPTS) * len(SKIPS)
        print(f"{count} pictures by clip skip: {time.perf_counter() - told:.1f} s -> {args.out / 'clip-skip.png'}")
    assert "torch" not in sys.modules, "the runtime must not load torch"
    print(
        f"no torch was loaded. Next: look at the pictures, then try\n"
        f'  .venv/bin/clipskip generate {args.store} "/render /clipskip:2 /seed:1 {PROMPTS[1]}" --out {args.out}\n'
        f"  .venv/bin/clipskip inspect {args.store}\n"
        f"  make export MODEL=path/to/your/checkpoint"
    )


def picture(pipe: clipskip.Pipeline, out: Path) -> None:
    """The picture on top of the README."""
    out.mkdir(parents=True, exist_ok=True)
    pipe(PICTURE, clip_skip=1, seed=1).save(out / "picture.png")


def skip_sheet(pipe: clipskip.Pipeline, out: Path) -> None:
    """Several prompts at several depths, everything else locked."""
    x, y = sheet.Axis("clip_skip", SKIPS), sheet.Axis("prompt", PROMPTS)
    base = clipskip.Request(prompt="", seed=1, steps=STEPS)
    results = terminal.steps(pipe.steps(*sheet.requests(base, x, y)))
    sheet.draw(results, x, y).save(out / "clip-skip.png")


if __name__ == "__main__":
    main()
