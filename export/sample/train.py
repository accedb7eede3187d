"""Makes the sample checkpoint: `python export/sample/train.py --out DIR`. Run again, it goes on where it stopped.

With `--start FOLDER` it takes a finished checkpoint and trains its U-Net and text encoder further. It uses a GPU where
there is one. This file loads no torch, so that pictures are drawn in other processes while torch is loaded here.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

from drawing import drawings
from words import write_tokenizer

SEED = 1


def main() -> None:
    """Begin to draw, then train or resume every phase and write the folder."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint, in diffusers' layout")
    parser.add_argument("--work", type=Path, help="folder for what can be resumed (default: OUT/work)")
    parser.add_argument("--start", type=Path, help="a finished checkpoint that is to be trained further")
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="how long the U-Net is trained, its data and (with --start) the "
        "program's start included; the learning rate falls over this time (default: %(default)s)",
    )  # fmt: skip
    options = parser.parse_args()
    work = options.work or options.out / "work"
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = options.out / "tokenizer"
    if options.start:
        shutil.copytree(options.start / "tokenizer", tokenizer, dirs_exist_ok=True)
    elif not tokenizer.exists():
        write_tokenizer(work / "tokenizer", SEED + 1)
        (work / "tokenizer").rename(tokenizer)
    parts = drawings(tokenizer, SEED)

    from recipe import Run, go_on, make

    run = Run(SEED, options.out, work, began, 60 * options.minutes)
    if options.start:
        go_on(run, options.start, parts)
    else:
        make(run, parts)


if __name__ == "__main__":
    main()
