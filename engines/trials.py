"""What graphs are tried on: few and small inputs, for an SD 1.5 U-Net is slow on two cores. Knows no graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clipskip.engines.gates import Array, Arrays
from clipskip.engines.manifest import ModelFacts, Port, Role
from clipskip.engines.shapes import LATENT, REMEMBERED, SLOTS, TOKENS


def of(role: Role, facts: ModelFacts, half: bool, ports: Sequence[Port]) -> list[Arrays]:
    """The inputs for a graph with these ports; the step looks at made-up contexts."""
    if role.part == "step":
        return step(np.random.default_rng(4).standard_normal((2, TOKENS, facts.width)), half, ports)
    return {"text": lambda: text(facts), "decode": decode, "decode-tiny": decode, "encode": encode}[role.part]()


def text(facts: ModelFacts) -> list[Arrays]:
    """An empty prompt; a full one with textual inversions in it, and the empty one beside it."""
    rng = np.random.default_rng(0)
    concepts = rng.standard_normal((2, facts.width)).astype(np.float32) * 0.05
    bos, eos = facts.vocabulary - 2, facts.vocabulary - 1  # CLIP's last two tokens
    empty = [bos] + [eos] * (TOKENS - 1)
    words = rng.integers(0, bos, TOKENS - 4).tolist()
    full = [bos, facts.vocabulary, facts.vocabulary + 1, *words, eos]
    return [{"tokens": np.array(rows), "concepts": concepts} for rows in ([empty], [full, empty])]


def step(context: Array, half: bool, ports: Sequence[Port]) -> list[Arrays]:
    """One image at timestep 999; two at 1 and 999, of a size that no block halves evenly, the second of them masked.

    `context`: [2, T, D], what a text encoder made of two texts. What else the ports list is random.
    """
    feeds = [
        _step(context, [999.0], np.ones((1, 1, 8, 8)), half),
        _step(
            np.concatenate([context[[0, 1, 1]]] * 2, axis=1), [1.0, 999.0],
            np.stack([np.ones((1, 17, 9)), np.random.default_rng(0).uniform(0, 1, (1, 17, 9))]), half,
        ),
    ]  # fmt: skip
    rng = np.random.default_rng(5)
    for feed in feeds:
        (images, _, h, w), rows = feed["mask"].shape, len(feed["rows"])
        for port in ports:
            if port.name not in feed:
                sizes = port.sized({"B": images, "N": rows, "h": h, "w": w})
                feed[port.name] = rng.standard_normal(sizes).astype(port.dtype)
    return list(feeds)


def _step(context: Array, timesteps: list[float], mask: Array, half: bool) -> dict[str, Array]:
    """Slot 0 of the next state is the network's output alone: anything added to it would hide an error."""
    rng = np.random.default_rng(1)
    count, rows, (height, width) = len(timesteps), len(context), mask.shape[-2:]
    sigma = np.array([0.03 if timestep < 500 else 14.6 for timestep in timesteps])
    state = rng.standard_normal((count, SLOTS, 4, height, width)) * sigma[:, None, None, None, None]
    update = rng.standard_normal((count, SLOTS, REMEMBERED + 3)) * 0.3
    update[:, 0] = np.eye(REMEMBERED + 3)[REMEMBERED]
    feeds = {
        "state": state, "rows": np.arange(rows) % count, "c_in": (sigma**2 + 1) ** -0.5,
        "timestep": np.array(timesteps), "context": context, "mix": rng.uniform(-0.5, 1, (count, rows)),
        "reference": rng.uniform(-0.5, 1, (count, rows)), "rescale": np.arange(1, count + 1) / 2, "mask": mask,
        "known": rng.standard_normal((count, 4, height, width)), "pull": rng.uniform(0, 0.5, (count, 2)),
        "noise": rng.standard_normal((count, 4, height, width)), "update": update,
    }  # fmt: skip
    types = {"rows": np.int64, "context": np.float16 if half else np.float32}
    return {name: value.astype(types.get(name, np.float32)) for name, value in feeds.items()}


def decode() -> list[Arrays]:
    """Two sizes; and two latents of which one is broken."""
    rng = np.random.default_rng(2)
    feeds = [{"latents": rng.standard_normal((n, 4, 8, w)).astype(np.float32)} for n, w in ((1, 8), (2, 16), (2, 8))]
    feeds[-1]["latents"][1, 0, 0, 0] = np.nan
    return list(feeds)


def encode() -> list[Arrays]:
    """Two sizes."""
    rng = np.random.default_rng(3)
    sizes = (1, 8 * LATENT, 8 * LATENT, 3), (2, 8 * LATENT, 16 * LATENT, 3)
    return [{"image": rng.integers(0, 256, size, dtype=np.uint8)} for size in sizes]
