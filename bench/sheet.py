"""What a sheet of every depth takes, of the time of its pictures one by one: alternating, in one process.

Run as `python -m clipskip.bench.sheet STORE`; ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import clipskip


def main() -> None:
    """Measure both in turn, and print the median of the rounds' ratios."""
    parser = argparse.ArgumentParser(description="Measure a sheet against its pictures.")
    parser.add_argument("store", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    args, rounds = parser.parse_args(), []
    with clipskip.open(args.store) as pipe:
        for seed in range(args.rounds + 1):  # the first opens the engines
            start = time.perf_counter()
            sheet = pipe.grid("a red circle", f"clip_skip=1-{pipe.clip_skips[-1]}", seed=seed, steps=args.steps)
            middle = time.perf_counter()
            for result in sheet.made:
                assert pipe(result.request).images[0].tobytes() == result.images[0].tobytes()
            rounds.append((middle - start, time.perf_counter() - middle))
            print("sheet {:.2f} s, its pictures one by one {:.2f} s".format(*rounds[-1]), sheet.made[0].timings)
    ratios = [sheet / alone for sheet, alone in rounds[1:]]
    print(json.dumps({"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}))


if __name__ == "__main__":
    main()
