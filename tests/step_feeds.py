"""Inputs for the step engine of `tiny_graphs`, and a loop that rewrites them as a sampler does."""

from __future__ import annotations

import numpy as np
from tiny_graphs import WIDTH

from clipskip.backends import Array, Engine

FEEDBACK = {"next_state": "state"}
STEPS = 20


def feeds(seed: int = 0, batch: int = 1, rows: int = 2, side: int = 8, chunks: int = 1) -> dict[str, Array]:
    """Arbitrary inputs of the step engine."""
    draw = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return draw.standard_normal(shape).astype(np.float32)

    return {
        "state": normal(batch, 6, 4, side, side),
        "rows": np.arange(rows) % batch,
        "c_in": normal(batch),
        "timestep": normal(batch) * 100,
        "context": normal(rows, 77 * chunks, WIDTH).astype(np.float16),
        "mix": normal(batch, rows),
        "mask": np.ones((batch, 1, side, side), np.float32),
        "known": normal(batch, 4, side, side),
        "pull": normal(batch, 2),
        "noise": normal(batch, 4, side, side),
        "update": normal(batch, 6, 8) / 8,
    }


def changes(seed: int, step: int, inputs: dict[str, Array]) -> dict[str, Array]:
    """What a sampler rewrites for a step; noise every third time, and the context once."""
    new = feeds(1000 * seed + step, *inputs["mix"].shape, inputs["state"].shape[-1], inputs["context"].shape[1] // 77)
    names = ["c_in", "timestep", "update"] + ["noise"] * (step % 3 == 0) + ["context"] * (step == 7)
    return {name: new[name] for name in names}


def denoised(engine: Engine, inputs: dict[str, Array], seed: int = 0, steps: int = STEPS) -> Array:
    """The state after some steps in a loop, the first of them with the inputs as they are."""
    loop = engine.loop(inputs, FEEDBACK)
    try:
        for step in range(steps):
            loop.run(changes(seed, step, inputs) if step else {})
        return loop.read("state")
    finally:
        loop.close()
