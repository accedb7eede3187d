"""Shapes: the sizes that all parts agree on, the ranges that an engine is built for, and from them its profiles.

Knows nothing of TensorRT.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real

from clipskip.engines.errors import RequestError
from clipskip.engines.manifest import Artefact, AxisRange, Dim, ModelFacts, Port

LATENT = 8  # pixels per latent
TOKENS = 77  # per chunk
SLOTS = 6  # K of the step graph: the point that the network looks at, what samplers remember, and one for previews
REMEMBERED = SLOTS - 1  # of them that a step reads: all but the last
CONCEPT_ROWS = 1024  # of textual inversions in one request
LEAST_SIZE = 64  # pixels, unless the model's own is smaller: no layer may see a single latent
MOST = {"max_batch": 1000, "max_chunks": 1000, "workspace": 1 << 50}  # graphs take less, but say so only once read

Shape = tuple[int, ...]


@dataclass(frozen=True)
class BuildOptions:
    """The shapes that the engines will serve, and the GPUs.

    `sizes`: heights and widths in pixels; `max_batch`: images at once, with two U-Net rows each (engines for one image
    know no other number of rows: with one size and one chunk nothing is left to choose, and they are static);
    `max_chunks`: prompt length in chunks of 77 tokens; `layers`: which text engines, by default all that were exported;
    `compute_capabilities`: such as "8.9", TensorRT-RTX only, by default what `default_capabilities` says; `workspace`:
    bytes.
    """

    sizes: AxisRange | None = None  # half, once and one and a half times the model's own size
    max_batch: int | None = None  # 4
    max_chunks: int | None = None  # 3
    layers: Sequence[int] | None = None
    compute_capabilities: tuple[str, ...] = ()
    workspace: int | None = None

    @property
    def shapeless(self) -> bool:
        """Whether nothing is said of sizes, images and chunks."""
        return self.sizes is None and self.max_batch is None and self.max_chunks is None


def parse_sizes(text: str) -> AxisRange:
    """Heights and widths as people write them: "512", "256-768" (tuned for the largest) or "256-512-768"."""
    parts = text.split("-")
    if not 1 <= len(parts) <= 3 or not all(part.isascii() and part.isdecimal() and len(part) < 6 for part in parts):
        raise RequestError(f"sizes {text!r}: write 512, 256-768 or 256-512-768", field="sizes")
    numbers = [int(part) for part in parts]
    return AxisRange(numbers[0], numbers[len(numbers) // 2], numbers[-1])


def compute_capability(text: str) -> str:
    """ "8.9", also where it is written 89, sm_89 or SM89; RequestError for what is none."""
    if (match := re.fullmatch(r"(?:sm_?)?([1-9]\d?)\.?(\d)", text.strip(), re.IGNORECASE | re.ASCII)) is None:
        message = f"compute capability {text!r:.40}: write it as 8.9"
        raise RequestError(message, field="compute_capability")
    return f"{match[1]}.{match[2]}"


def axis_ranges(model: ModelFacts, options: BuildOptions) -> dict[str, AxisRange]:
    """The range of every dynamic axis of design.md's four graphs. RequestError for sizes that the model cannot do."""
    for field, most in MOST.items():
        if (value := getattr(options, field)) is not None and not 1 <= value <= most:
            limit = "least 1" if value < 1 else f"most {most}"
            raise RequestError(f"{field} must be at {limit}, not {value}", field=field)
    batch = 4 if options.max_batch is None else options.max_batch
    chunks = 3 if options.max_chunks is None else options.max_chunks
    own, step = model.default_size, model.size_step
    least = max(own // 2 // step * step, min(LEAST_SIZE, own), step)
    sizes = options.sizes or AxisRange(least, own, own * 3 // 2 // step * step)
    edges = (sizes.minimum, sizes.optimum, sizes.maximum)
    if not 0 < edges[0] <= edges[1] <= edges[2] or any(edge % step for edge in edges):
        message = f"sizes {'-'.join(map(str, edges))}: three multiples of {step} that do not fall are needed"
        raise RequestError(message, field="sizes")
    latent = AxisRange(*(edge // LATENT for edge in edges))
    least, rows = 2 if batch == 1 else 1, 2 * batch  # who has fewer fills up
    return {
        "B": AxisRange(1, 1, batch),
        "N": AxisRange(least, 2, rows),
        "R": AxisRange(least, 2, rows * chunks),
        "T": AxisRange(TOKENS, TOKENS, TOKENS * longest_common(chunks)),
        "E": AxisRange(1, 1, CONCEPT_ROWS),
        "h": latent,
        "w": latent,
    }


def check_within(ranges: Mapping[str, AxisRange], graph: Artefact) -> None:
    """RequestError for ranges beyond those of the graph that an engine is to be built from."""
    for axis in ranges.keys() & graph.axes.keys():
        wanted, own = ranges[axis], graph.axes[axis]
        if not own.minimum <= wanted.minimum <= wanted.maximum <= own.maximum:
            option = {"T": "max_chunks", "h": "sizes", "w": "sizes"}.get(axis, "max_batch")
            asked, there = (f"{each.minimum} to {each.maximum}" for each in (wanted, own))
            message = f"{option}: the graph of {graph.role} takes {axis} {there}, not {asked} (h and w count 8 pixels)"
            raise RequestError(message, field=option)


def kept_layers(skips: Iterable[float], kept: Sequence[int]) -> list[int]:
    """The numbers of layers that text engines for these clip skips keep; a fraction counts as the number below it.

    `kept`: how many clip skip 1, 2, ... of the model leaves. RequestError for what is none of these.
    """
    for skip in skips:
        if isinstance(skip, bool) or not isinstance(skip, Real) or not 1 <= skip < len(kept) + 1:
            raise no_clip_skip("clip_skip", reprlib.repr(skip), len(kept) - 1)
    return sorted({kept[math.floor(skip) - 1] for skip in skips})


def no_clip_skip(field: str, shown: str, layers: int) -> RequestError:
    """The RequestError for a value, as `shown`, that is no clip skip of `layers` layers in the field's numbering."""
    first, meaning = 1, "it counts from 1 (the last layer, diffusers' None or 0); 2 is the penultimate (diffusers' 1)"
    hint = f"clip_skip_diffusers takes diffusers' own numbers, 0..{layers}"
    if field == "clip_skip_diffusers":
        first, meaning = 0, "it counts from 0 (the last layer, clip_skip 1); 1 is the penultimate (clip_skip 2)"
        hint = f"clip_skip is the same setting counted from 1: 1..{layers + 1}"
    message = f"{field} must be {first}..{layers + first}, not {shown}: {meaning}"
    return RequestError(message, field=field, hint=hint)


def longest_common(chunks: int) -> int:
    """The longest context of prompts of up to so many chunks: the largest least common multiple that is at most 2n.

    Prompts of different length share a call of the U-Net by repetition, which changes nothing in cross-attention.
    """
    lengths = range(1, chunks + 1)
    return max(common for a in lengths for b in lengths if (common := math.lcm(a, b)) <= 2 * chunks)


def axes_of(ports: Sequence[Port], ranges: Mapping[str, AxisRange]) -> dict[str, AxisRange]:
    """The ranges of the dynamic axes that these inputs have."""
    names = {dimension.axis for port in ports for dimension in port.shape if isinstance(dimension, Dim)}
    return {name: ranges[name] for name in sorted(names)}


def profiles(ports: Sequence[Port], axes: Mapping[str, AxisRange]) -> dict[str, tuple[Shape, Shape, Shape]]:
    """Smallest, usual and largest shape of each input that has a dynamic axis."""
    lowest = {name: axis.minimum for name, axis in axes.items()}
    usual = {name: axis.optimum for name, axis in axes.items()}
    largest = {name: axis.maximum for name, axis in axes.items()}
    dynamic = [port for port in ports if any(isinstance(dimension, Dim) for dimension in port.shape)]
    return {port.name: (port.sized(lowest), port.sized(usual), port.sized(largest)) for port in dynamic}
