"""LoRAs merged into a checkpoint's networks before they are traced; also those kinds that no runtime merges.

The sums are those of `engines.lora`, so that a merge here and one for a request give the same bytes in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from clipskip.engines import lora
from clipskip.engines.errors import UnsupportedModelError
from clipskip.engines.lora import Choice, Floats, Lora, product
from clipskip.engines.weights import Shape
from clipskip.export.models import Networks


def merge(networks: Networks, choices: Sequence[Choice], say: Callable[[str], None]) -> None:
    """Change the networks, which are in float32, in place; says of each LoRA how much of it was used.

    CheckpointError, UnsupportedModelError.
    """
    tensors = {name: tensor for tensor, name in networks.parameters.items() if not name.startswith("vae.")}
    arrays = {name: tensor.detach().numpy() for name, tensor in tensors.items()}
    shapes: dict[str, Shape] = {name: array.shape for name, array in arrays.items()}
    adapters = [Adapter(**vars(lora.read(choice.path, shapes, lora.EXPORTED)), base=arrays) for choice in choices]
    for adapter, choice in zip(adapters, choices, strict=True):
        say(_used(adapter, choice))
    for name in sorted({name for adapter in adapters for name in adapter.layers}):
        weights = [choice.unet if name.startswith("unet.") else choice.text for choice in choices]
        total = lora.merged(arrays[name], name, list(zip(adapters, weights, strict=True)))
        tensors[name].data.copy_(torch.from_numpy(total))


def _used(adapter: Lora, choice: Choice) -> str:
    unet = sum(name.startswith("unet.") for name in adapter.layers)
    line = f"merging {choice}: {unet} layers of the U-Net, {len(adapter.layers) - unet} of text encoders"
    if not adapter.unknown:
        return line
    more = ", ..." if len(adapter.unknown) > 3 else ""
    return f"{line}; {len(adapter.unknown)} tensors are unknown ({', '.join(adapter.unknown[:3])}{more})"


@dataclass(frozen=True)
class Adapter(Lora):
    """A LoRA, LoHa, LoKr or DoRA; `base` holds the parameters before any is merged."""

    base: Mapping[str, Floats]

    def delta(self, parameter: str) -> Floats:
        """What is added to the parameter at weight 1. UnsupportedModelError where the tensors do not fit it."""
        layer = self.layers[parameter]
        tensors = {part: self.tensor(name) for part, name in layer.tensors.items()}
        make = next((make for mark, make in _KINDS.items() if any(part.startswith(mark) for part in tensors)), None)
        try:
            change = make(tensors, layer.alpha).reshape(layer.shape) if make else super().delta(parameter)
            for part in tensors.keys() & {"dora_scale", "lora_magnitude_vector"}:
                change = _rescaled(self.base[parameter] + change, tensors[part]) - self.base[parameter]
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:  # one is missing, or shapes do not fit
            message = f"{self.name}: the tensors for {parameter} make no layer of {list(layer.shape)}"
            raise UnsupportedModelError(message) from error
        return change


def _loha(tensors: Mapping[str, Floats], alpha: float | None) -> Floats:
    """Two low-rank products, multiplied number by number (Hyeon-Woo et al. 2021, "FedPara")."""
    pairs = []
    for which in "12":
        first, second, core = tensors[f"hada_w{which}_a"], tensors[f"hada_w{which}_b"], tensors.get(f"hada_t{which}")
        pairs.append(product(first if core is None else first.T, second, core))
    return pairs[0] * pairs[1] * _strength(alpha, len(tensors["hada_w1_b"]))


def _lokr(tensors: Mapping[str, Floats], alpha: float | None) -> Floats:
    """The Kronecker product of a small matrix and a larger one, each whole or low-rank (Yeh et al. 2023, "LyCORIS")."""
    rank, factors = 0, []
    for which in "12":
        whole, core = tensors.get(f"lokr_w{which}"), tensors.get(f"lokr_t{which}")
        if whole is None:
            first, second = tensors[f"lokr_w{which}_a"], tensors[f"lokr_w{which}_b"]
            whole, rank = product(first if core is None else first.T, second, core), len(second)
        factors.append(whole.reshape(len(whole), -1))
    return np.kron(*factors) * _strength(alpha if rank else None, rank)


def _strength(alpha: float | None, rank: int) -> np.float32:
    return np.float32(1 if alpha is None else alpha / rank)


def _rescaled(weight: Floats, magnitude: Floats) -> Floats:
    """The weight with the magnitudes that were learnt, one per output or one per input (Liu et al. 2024, "DoRA")."""
    axis = 1 if magnitude.ndim > 1 and magnitude.shape[0] == 1 and magnitude.shape[1] == weight.shape[1] else 0
    others = tuple(each for each in range(weight.ndim) if each != axis)
    length = np.sqrt(np.square(weight).sum(others, keepdims=True))
    scaled: Floats = weight / length * magnitude.reshape(length.shape)
    return scaled


_KINDS = {"hada_": _loha, "lokr_": _lokr}
