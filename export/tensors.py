"""A network filled from a safetensors file, with every tensor accounted for. Knows nothing of what it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from clipskip.engines import files
from clipskip.engines.errors import CheckpointError
from clipskip.engines.shapes import Shape
from clipskip.export.parts import Part, Place


def fill(make: Callable[[dict[str, Any]], Any], part: Part) -> Any:
    """The network that `make` gives, with the part's weights in float32; names, shapes and dtypes must fit."""
    try:
        with torch.device("meta"):  # no memory and no random numbers for weights that are replaced at once
            module = make(dict(part.config))
    except Exception as error:  # whatever the libraries make of a configuration that they do not understand
        message = f"no {part.name} can be made from {part.settings} ({type(error).__name__}: {error})"
        raise files.shortage(error) or CheckpointError(message, path=part.settings) from error
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    part.check(expected)
    module.load_state_dict(dict(_read(part, expected)), assign=True)
    return module.eval().requires_grad_(False)


def _read(part: Part, expected: Mapping[str, Shape]) -> Iterator[tuple[str, Tensor]]:
    """The weights one by one: no more than the network and its largest tensor twice are in memory."""
    try:
        with safe_open(part.weights, framework="pt", backend="pread") as file:  # a map would crash if the file shrank
            for name, shape in expected.items():
                tensor = _weight(file, part.places[name]).reshape(shape)
                values = tensor.numpy()  # whose extremes are NaN where one is, and cost no memory
                if values.size and not np.isfinite([values.min(), values.max()]).all():
                    broken = f"{tensor.isnan().sum():d} NaN and {tensor.isinf().sum():d} infinite values"
                    hint = "the file is damaged or the model was saved broken"
                    message = f"{part.weights}: {part.places[name].tensor} has {broken}"
                    raise CheckpointError(message, path=part.weights, hint=hint)
                yield name, tensor
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{part.weights} cannot be read ({error})", path=part.weights) from error


def _weight(file: Any, place: Place) -> Tensor:
    """In float32. A quantised one is what is stored times its scale: one number, or one for each row."""
    rows = place.shape[0]
    begin = rows * (place.third or 0)
    packed = place.third is not None
    stored = file.get_slice(place.tensor)[begin : begin + rows] if packed else file.get_tensor(place.tensor)
    weight: Tensor = stored.float()
    if place.scale is not None:
        scale = file.get_tensor(place.scale).float().flatten()
        scale = scale[begin : begin + rows] if len(scale) > 1 else scale
        weight = weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
    return weight
