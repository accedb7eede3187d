"""Which images run together in one call of the network. Knows nothing of how anything is computed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from .denoise import Image
from .resolve import Limits, Resolved


@dataclass(frozen=True)
class Job:
    """Image number `index` of all that were asked for at once, ready to be denoised."""

    index: int
    wanted: Resolved
    image: Image

    @property
    def shape(self) -> tuple[int, int, int]:
        """Images whose shapes are equal can share a batch."""
        return self.wanted.height, self.wanted.width, self.image.conditioning.chunks


def batches(jobs: Sequence[Job], limits: Limits) -> list[list[Job]]:
    """The jobs in groups that the step engine runs at once. A picture does not depend on its group."""
    groups: dict[tuple[int, int, int], list[Job]] = defaultdict(list)
    for job in jobs:
        groups[job.shape].append(job)
    return [batch for group in groups.values() for batch in _split(group, limits)]


def _split(group: Sequence[Job], limits: Limits) -> list[list[Job]]:
    height, width, _ = group[0].shape
    most = min(limits.batch, limits.pixels // (height * width))
    batches: list[list[Job]] = [[]]
    for job in group:
        rows = sum(other.image.network_rows for other in (*batches[-1], job))
        if batches[-1] and (len(batches[-1]) >= most or rows > limits.rows):
            batches.append([])
        batches[-1].append(job)
    return batches
