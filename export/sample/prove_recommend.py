"""Is `recommend` right? `make prove-recommend`, or `python export/sample/prove_recommend.py [--out FOLDER]`.

Three toy models, whose U-Nets were trained at clip skip 1, at 2 and at all in turn, are asked twenty times each, every
time with other pictures of combinations that they have not seen. An answer is false where its true loss, on a larger
set of pictures, is above the least by more than two standard errors. Checkpoints, stores and losses stay in FOLDER
and are used again. Prints a table for people and ends with one JSON line for machines.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import toys

import clipskip
from clipskip.backends.onnxruntime import OnnxRuntime
from clipskip.cli import output
from clipskip.engines import report
from clipskip.recommend import Losses, Verdict, losses, settle

TRAINED_AT = {"first": "1", "second": "2", "mixed": "all"}
ASKS, ASKED, TRUE = 20, 40, 512  # times, pictures each time, and others for the truth
FALSE_ABOVE = 2.0  # standard errors
MOST_FALSE, LEAST_ANSWERS = 3, 15  # of all, and of each model that was trained at one depth


def measured(store: Path, say: Callable[[str], None]) -> Losses:
    """The loss of every picture at every clip skip, [ASKS * ASKED + TRUE, skips]; the noise is another each time."""
    rng, rows = np.random.default_rng(7), list[Losses]()
    count = ASKS * ASKED + TRUE
    with clipskip.open(store, backend=OnnxRuntime(threads=1)) as pipe:  # so small that a second one would only wait
        for number, (picture, caption) in enumerate(toys.captioned(rng, count, held_out=True)):
            rows.append(losses(pipe, picture, caption, pipe.clip_skips, number))
            if number % 200 == 199:
                say(f"{store.name}: {number + 1} of {count} pictures")
    return np.stack(rows)


def judged(found: Losses) -> dict[str, Any]:
    """What was answered, on how many pictures, and how often falsely."""
    skips = tuple(range(1, found.shape[1] + 1))
    asked, truth = found[: ASKS * ASKED].reshape(ASKS, ASKED, -1), Verdict(skips, found[ASKS * ASKED :])
    verdicts = [settle(skips, rows) for rows in asked]
    answers = Counter(verdict.recommended for verdict in verdicts)
    above = {skip: truth.worse(skip) for skip in skips}
    false = {skip for skip, (mean, error) in above.items() if mean > FALSE_ABOVE * error}
    return {
        "answers": {str(skip or "cannot tell"): count for skip, count in answers.most_common()},
        "answered": ASKS - answers[None],
        "false": sum(answers[skip] for skip in false),
        "pictures": float(np.mean([len(verdict.losses) for verdict in verdicts])),
        "truth": {skip: {"above": mean, "standard_error": error} for skip, (mean, error) in above.items()},
    }


def summary(found: dict[str, Losses]) -> dict[str, Any]:
    """All models' answers, and whether there are enough of them and few enough false ones."""
    models = {name: judged(rows) for name, rows in found.items()}
    false = sum(model["false"] for model in models.values())
    answered = all(model["answered"] >= LEAST_ANSWERS for name, model in models.items() if TRAINED_AT[name] != "all")
    held = false <= MOST_FALSE and answered
    return {"bench": "prove-recommend", "asks": ASKS, "models": models, "false": false, "held": held}


def table(proof: dict[str, Any]) -> str:
    """The figures for people."""
    rows = [("trained at", "answers of " + str(ASKS), "false", "pictures", "true loss above the least, by clip skip")]
    for name, model in proof["models"].items():
        answers = ", ".join(f"{skip}: {count}" for skip, count in model["answers"].items())
        truth = (f"{each['above']:.5f} +- {each['standard_error']:.5f}" for each in model["truth"].values())
        rows.append((TRAINED_AT[name], answers, str(model["false"]), f"{model['pictures']:.0f}", ", ".join(truth)))
    goal = (
        f"at most {MOST_FALSE} false of {ASKS * len(rows) - ASKS}, and {LEAST_ANSWERS} answers where there is one depth"
    )
    return "\n".join([report.table(rows), "", f"{goal}: {'held' if proof['held'] else 'NOT HELD'}"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing, measure, judge; the status is 1 where the goal is missed."""
    from clipskip.export import export

    parser = argparse.ArgumentParser(description="Is recommend right?")
    parser.add_argument("--out", type=Path, default=Path("build/prove-recommend"), help="where to work (0.3 GB)")
    args = parser.parse_args(arguments)
    with output.stages() as say:
        toys.make(args.out)
        for name in TRAINED_AT:
            if not (kept := args.out / f"{name}.npy").exists():
                say(f"exporting {name}")
                export(args.out / name, store := args.out / f"store-{name}")
                np.save(kept, measured(store, say).astype(np.float32))
    found: dict[str, Any] = {name: np.load(args.out / f"{name}.npy") for name in TRAINED_AT}
    np.savez_compressed(args.out / "losses.npz", **found)
    proof = summary(found)
    print(table(proof))
    print(json.dumps(proof))
    return 0 if proof["held"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
