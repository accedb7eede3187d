"""The inputs of the gates and what torch makes of them.

With `half`, torch's own float16 is asked too, and the network is left in it: a copy of a U-Net would be gigabytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from clipskip.engines import trials
from clipskip.engines.gates import Array, Arrays, Case
from clipskip.engines.manifest import ModelFacts
from clipskip.export.graphs import Decode, Encode, Step


def text(encoder: CLIPTextModel, facts: ModelFacts, half: bool) -> list[list[Case]]:
    """For each depth its cases: transformers' own hidden states, LayerNormed, with textual inversions in the prompt."""
    feeds = trials.text(facts)
    exact = [_depths(encoder, **feed) for feed in feeds]
    none: list[Arrays] = [{}] * (facts.layers + 1)
    halves = [_depths(encoder.half(), **feed) if half else none for feed in feeds]
    runs = list(zip(feeds, exact, halves, strict=True))
    return [[Case(feed, wide[depth], low[depth]) for feed, wide, low in runs] for depth in range(facts.layers + 1)]


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
    return _cases(Step(unet), half, ["next_state"], trials.step(context, half))


def decode(vae: AutoencoderKL | AutoencoderTiny) -> list[Case]:
    """Pictures are judged by the float32 ones alone."""
    return _cases(Decode(vae), False, ["image", "finite"], trials.decode())


def encode(vae: AutoencoderKL, half: bool) -> list[Case]:
    return _cases(Encode(vae), half, ["mean", "std"], trials.encode())


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
