"""Which images run together, and what the engines can take. Knows nothing of how anything is computed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from clipskip.engines.manifest import Artefact, AxisRange

from .denoise import Image
from .errors import RequestError
from .resolve import Resolved

UNBOUNDED = AxisRange(1, 1, 2**31 - 1)
PIXELS_PER_LATENT = 8
TOKENS_PER_CHUNK = 77


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


@dataclass(frozen=True)
class Limits:
    """What one call of the step engine takes. `batch` and `pixels` count images, `rows` rows of the U-Net."""

    height: AxisRange
    width: AxisRange
    batch: int
    pixels: int
    rows: int
    chunks: int
    build_command: str

    @classmethod
    def of(cls, step: Artefact, batch_pixels: int, max_batch: int | None, build_command: str) -> Limits:
        """The limits of a step artefact, its backend, and the caller's wish for at most `max_batch` images at once."""
        axes = {name: step.axes.get(name, UNBOUNDED) for name in ("h", "w", "B", "N", "T")}
        return cls(
            height=axes["h"],
            width=axes["w"],
            batch=min(max_batch or axes["B"].maximum, axes["B"].maximum),
            pixels=batch_pixels,
            rows=axes["N"].maximum,
            chunks=axes["T"].maximum // TOKENS_PER_CHUNK,
            build_command=build_command,
        )

    def check_size(self, wanted: Resolved) -> None:
        """Refuse a size that the engines were not built for, naming what they take."""
        for field, pixels, axis in (("height", wanted.height, self.height), ("width", wanted.width, self.width)):
            low, high = axis.minimum * PIXELS_PER_LATENT, axis.maximum * PIXELS_PER_LATENT
            if not low <= pixels <= high:
                message = f"{field} {pixels} is outside {low}..{high}, which the engines were built for"
                raise RequestError(message, field=field, hint=f"{self.build_command} --sizes ...")

    def check_rows(self, jobs: Sequence[Job]) -> None:
        """Refuse an image that needs more rows of the U-Net than the engine takes (many AND parts)."""
        for job in jobs:
            if job.image.network_rows > self.rows:
                raise RequestError(
                    f"the prompt has {job.image.network_rows} parts with its negative; the engines take {self.rows}",
                    field="prompt",
                    hint=f"{self.build_command} --max-batch {-(-job.image.network_rows // 2)}",
                )

    def batches(self, jobs: Sequence[Job]) -> list[list[Job]]:
        """The jobs in groups that the step engine runs at once. A picture does not depend on its group."""
        groups: dict[tuple[int, int, int], list[Job]] = defaultdict(list)
        for job in jobs:
            groups[job.shape].append(job)
        return [batch for group in groups.values() for batch in self._split(group)]

    def _split(self, group: Sequence[Job]) -> list[list[Job]]:
        height, width, _ = group[0].shape
        most = min(self.batch, self.pixels // (height * width))
        batches: list[list[Job]] = [[]]
        for job in group:
            rows = sum(other.image.network_rows for other in (*batches[-1], job))
            if batches[-1] and (len(batches[-1]) >= most or rows > self.rows):
                batches.append([])
            batches[-1].append(job)
        return batches
