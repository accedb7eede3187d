"""Inputs for the step engine of `tiny_graphs`, and a loop that rewrites them as a sampler does."""

from __future__ import annotations

from collections.abc import Iterator

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
        "reference": normal(batch, rows),
        "rescale": np.abs(normal(batch)) / 4,
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


def newcomer(slot: int, inputs: dict[str, Array]) -> Iterator[tuple[str, int, Array]]:
    """Input, slot and value of all that changes when another image takes a slot of the batch, its rows included."""
    new = feeds(100 + slot, *inputs["mix"].shape, inputs["state"].shape[-1], inputs["context"].shape[1] // 77)
    rows = [row for row, image in enumerate(inputs["rows"]) if image == slot]
    yield from (("context", row, new["context"][row]) for row in rows)
    yield from ((name, slot, new[name][slot]) for name in new if name not in ("context", "rows"))


def joined(engine: Engine, inputs: dict[str, Array]) -> Array:
    """The state after six steps in a loop, before two of which an image is replaced."""
    loop = engine.loop(inputs, FEEDBACK)
    for step in range(6):
        if step in (2, 5):
            for name, slot, array in newcomer(step % 3, inputs):
                loop.write(name, slot, array)
        loop.run({})
    state = loop.read("state")
    assert all(np.array_equal(loop.read("state", slot), state[slot]) for slot in range(len(state)))
    loop.close()
    return state


def joined_by_hand(engine: Engine, inputs: dict[str, Array]) -> Array:
    """The same without a loop."""
    held = {name: array.copy() for name, array in inputs.items()}
    for step in range(6):
        if step in (2, 5):
            for name, slot, array in newcomer(step % 3, inputs):
                held[name][slot] = array
        held["state"] = engine.run(held)["next_state"]
    return held["state"]
