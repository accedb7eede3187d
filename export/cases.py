"""The inputs of the gates and what torch makes of them.

With `half`, torch's own float16 is asked too, and the network is left in it: a copy of a U-Net would be gigabytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn
from transformers import CLIPTextModel

from clipskip.engines import trials
from clipskip.engines.gates import Array, Arrays, Case
from clipskip.engines.manifest import ModelFacts
from clipskip.export import graphs
from clipskip.export.graphs import Decode, Encode, Graph
from clipskip.export.models import Networks


def text(networks: Networks, facts: ModelFacts, half: bool) -> dict[int, list[Case]]:
    """For each depth its cases: transformers' own hidden states, with textual inversions in the prompt."""
    feeds = trials.text(facts)
    exact = [_depths(networks, facts, **feed) for feed in feeds]
    for encoder in networks.texts if half else ():
        encoder.half()
    halves = [_depths(networks, facts, **feed) if half else {} for feed in feeds]
    runs = list(zip(feeds, exact, halves, strict=True))
    return {depth: [Case(feed, wide[depth], low.get(depth, {})) for feed, wide, low in runs] for depth in exact[0]}


def _depths(networks: Networks, facts: ModelFacts, tokens: Array, concepts: Array) -> dict[int, Arrays]:
    """What each text graph is to give, by the layers that it keeps."""
    contexts: dict[int, list[Array]] = {depth: [] for depth in graphs.depths(facts)}
    pooled: dict[str, Array] = {}
    parts = np.split(concepts, np.cumsum([encoder.config.hidden_size for encoder in networks.texts])[:-1], axis=1)
    for encoder, use, learnt in zip(networks.texts, networks.family.encoders, parts, strict=True):
        rows, ends = tokens.tolist(), []
        for row in rows:
            ends.append(row.index(networks.end) if networks.end in row else None)
            if use.padding is not None and ends[-1] is not None:
                row[ends[-1] + 1 :] = [use.padding] * (len(row) - ends[-1] - 1)
        with torch.no_grad():
            hidden = _hidden(encoder, torch.tensor(rows), torch.from_numpy(learnt))
            normed = [encoder.final_layer_norm(state) for state in hidden]
            for depth, context in contexts.items():
                context.append((normed if use.normed else hidden)[depth - facts.layers - 1].float().numpy())
            if use.pooled:
                last = [
                    state[end] if end is not None else state[0] * 0 for state, end in zip(normed[-1], ends, strict=True)
                ]
                pooled["pooled"] = encoder.text_projection(torch.stack(last)).float().numpy()
    return {depth: {"context": np.concatenate(context, axis=-1), **pooled} for depth, context in contexts.items()}


def _hidden(encoder: CLIPTextModel, tokens: Tensor, concepts: Tensor) -> tuple[Tensor, ...]:
    """transformers' hidden states, with the concepts appended to the table of embeddings."""
    name = "embeddings.token_embedding.weight"
    table = encoder.state_dict()[name]
    longer = torch.cat([table, concepts.to(table.dtype)])
    arguments = {"input_ids": tokens, "output_hidden_states": True}
    states: tuple[Tensor, ...] = torch.func.functional_call(encoder, {name: longer}, (), arguments).hidden_states
    return states


def step(graph: Graph, context: Array, half: bool) -> list[Case]:
    return _cases(graph.module, half, ["next_state"], trials.step(context, half, graph.inputs))


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
