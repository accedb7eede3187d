"""Inputs for the gates and what torch makes of them: few and small, for an SD 1.5 U-Net is slow on two cores.

With `half`, torch's own float16 is asked too, and the network is left in it: a copy of a U-Net would be gigabytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from clipskip.engines.manifest import ModelFacts
from clipskip.engines.shapes import SLOTS, TOKENS
from clipskip.export.gates import Array, Arrays, Case
from clipskip.export.graphs import Decode, Encode, Step


def text(encoder: CLIPTextModel, facts: ModelFacts, vocabulary: Mapping[str, int], half: bool) -> list[list[Case]]:
    """For each depth its cases: transformers' own hidden states, LayerNormed, with textual inversions in the prompt."""
    rng = np.random.default_rng(0)
    concepts = rng.standard_normal((2, facts.width)).astype(np.float32) * 0.05
    bos, eos = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    empty = [bos] + [eos] * (TOKENS - 1)
    words = rng.integers(0, min(bos, eos), TOKENS - 4).tolist()
    full = [bos, facts.vocabulary, facts.vocabulary + 1, *words, eos]
    feeds = [{"tokens": np.array(rows), "concepts": concepts} for rows in ([empty], [full, empty])]
    exact = [_depths(encoder, **feed) for feed in feeds]
    none: list[Arrays] = [{}] * (facts.layers + 1)
    halves = [_depths(encoder.half(), **feed) if half else none for feed in feeds]
    trials = list(zip(feeds, exact, halves, strict=True))
    return [[Case(feed, wide[depth], low[depth]) for feed, wide, low in trials] for depth in range(facts.layers + 1)]


def _depths(encoder: CLIPTextModel, tokens: Array, concepts: Array) -> list[Arrays]:
    """What each text graph is to give: transformers runs with the concepts appended to its table of embeddings."""
    name = "embeddings.token_embedding.weight"
    table = encoder.state_dict()[name]
    longer = torch.cat([table, torch.from_numpy(concepts).to(table.dtype)])
    arguments = {"input_ids": torch.from_numpy(tokens), "output_hidden_states": True}
    with torch.no_grad():
        hidden = torch.func.functional_call(encoder, {name: longer}, (), arguments).hidden_states
        return [{"context": encoder.final_layer_norm(state).float().numpy()} for state in hidden]


def step(unet: UNet2DConditionModel, context: Array, half: bool) -> list[Case]:
    """One image at timestep 999; two at 1 and 999, of a size that no block halves evenly, the second of them masked."""
    return _cases(Step(unet), half, ["next_state"], [
        _step_feeds(context, [999.0], np.ones((1, 1, 8, 8)), half),
        _step_feeds(
            np.concatenate([context[[0, 1, 1]]] * 2, axis=1), [1.0, 999.0],
            np.stack([np.ones((1, 17, 9)), np.random.default_rng(0).uniform(0, 1, (1, 17, 9))]), half,
        ),
    ])  # fmt: skip


def _step_feeds(context: Array, timesteps: list[float], mask: Array, half: bool) -> dict[str, Array]:
    """Slot 0 of the next state is the network's output alone: anything added to it would hide an error."""
    rng = np.random.default_rng(1)
    count, rows, (height, width) = len(timesteps), len(context), mask.shape[-2:]
    sigma = np.array([0.03 if timestep < 500 else 14.6 for timestep in timesteps])
    state = rng.standard_normal((count, SLOTS, 4, height, width)) * sigma[:, None, None, None, None]
    update = rng.standard_normal((count, SLOTS, SLOTS + 2)) * 0.3
    update[:, 0] = np.eye(SLOTS + 2)[SLOTS]
    feeds = {
        "state": state, "rows": np.arange(rows) % count, "c_in": (sigma**2 + 1) ** -0.5,
        "timestep": np.array(timesteps), "context": context, "mix": rng.uniform(-0.5, 1, (count, rows)), "mask": mask,
        "known": rng.standard_normal((count, 4, height, width)), "pull": rng.uniform(0, 0.5, (count, 2)),
        "noise": rng.standard_normal((count, 4, height, width)), "update": update,
    }  # fmt: skip
    types = {"rows": np.int64, "context": np.float16 if half else np.float32}
    return {name: value.astype(types.get(name, np.float32)) for name, value in feeds.items()}


def decode(vae: AutoencoderKL) -> list[Case]:
    """Two sizes; and two latents of which one is broken. Pictures are judged by the float32 ones alone."""
    rng = np.random.default_rng(2)
    sizes = (1, 4, 8, 8), (2, 4, 8, 16), (2, 4, 8, 8)
    feeds = [{"latents": rng.standard_normal(size).astype(np.float32)} for size in sizes]
    feeds[-1]["latents"][1, 0, 0, 0] = np.nan
    return _cases(Decode(vae), False, ["image", "finite"], feeds)


def encode(vae: AutoencoderKL, half: bool) -> list[Case]:
    rng = np.random.default_rng(3)
    feeds = [{"image": rng.integers(0, 256, size, dtype=np.uint8)} for size in ((1, 64, 64, 3), (2, 64, 128, 3))]
    return _cases(Encode(vae), half, ["mean", "std"], feeds)


def _cases(module: nn.Module, half: bool, names: list[str], feeds: Sequence[Arrays]) -> list[Case]:
    exact = [_run(module, names, feed, widen=True) for feed in feeds]
    halves = [_run(module.half(), names, feed) if half else {} for feed in feeds]
    return [Case(*trial) for trial in zip(feeds, exact, halves, strict=True)]


def _run(module: nn.Module, names: list[str], feeds: Arrays, widen: bool = False) -> dict[str, Array]:
    inputs = [torch.from_numpy(value) for value in feeds.values()]
    if widen:
        inputs = [value.float() if value.dtype == torch.float16 else value for value in inputs]
    with torch.no_grad():
        outputs = module(*inputs)
    tensors = (outputs,) if isinstance(outputs, Tensor) else outputs
    return {name: value.numpy() for name, value in zip(names, tensors, strict=True)}
