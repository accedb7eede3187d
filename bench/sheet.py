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
    args = parser.parse_args()
    rounds = []
    with clipskip.open(args.store) as pipe:
        axis = f"clip_skip={pipe.clip_skips[0]}-{pipe.clip_skips[-1]}"
        for seed in range(args.rounds + 1):  # the first opens the engines
            start = time.perf_counter()
            sheet = pipe.grid("a large red circle", axis, seed=seed, steps=args.steps)
            middle = time.perf_counter()
            alone = [pipe(result.request) for result in sheet.made]
            end = time.perf_counter()
            assert [each.images[0].tobytes() for each in alone] == [each.images[0].tobytes() for each in sheet.made]
            rounds.append((middle - start, end - middle))
            print(f"sheet {middle - start:.2f} s, {len(alone)} pictures {end - middle:.2f} s, {sheet.made[0].timings}")
    ratios = [sheet / alone for sheet, alone in rounds[1:]]
    figures = {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios), "seconds": rounds[1:]}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
