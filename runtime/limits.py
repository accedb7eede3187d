"""What one call of the step engine takes: shapes that it was built for, and what its device likes. Refuses the rest."""

from __future__ import annotations

from dataclasses import dataclass

from clipskip.engines.manifest import Artefact, AxisRange
from clipskip.engines.shapes import LATENT, TOKENS

from .errors import RequestError
from .resolve import Resolved

UNBOUNDED = AxisRange(1, 1, 2**31 - 1)


@dataclass(frozen=True)
class Limits:
    """What one call of the step engine takes. `batch` and `pixels` count images, `rows` rows of the U-Net."""

    height: AxisRange
    width: AxisRange
    batch: int
    pixels: int
    rows: int
    chunks: int
    build_command: str | None  # None: the graphs are exported without a choice of shapes

    @classmethod
    def of(cls, step: Artefact, batch_pixels: int, max_batch: int | None, build_command: str | None) -> Limits:
        """The limits of a step artefact, its backend, and the caller's wish for at most `max_batch` images at once."""
        axes = {name: step.axes.get(name, UNBOUNDED) for name in ("h", "w", "B", "N", "T")}
        return cls(
            height=axes["h"],
            width=axes["w"],
            batch=min(max_batch or axes["B"].maximum, axes["B"].maximum),
            pixels=batch_pixels,
            rows=axes["N"].maximum,
            chunks=axes["T"].maximum // TOKENS,
            build_command=build_command,
        )

    def check_size(self, wanted: Resolved) -> None:
        """Refuse a size that the engines were not built for, naming what they take."""
        for field, pixels, axis in (("height", wanted.height, self.height), ("width", wanted.width, self.width)):
            low, high = axis.minimum * LATENT, axis.maximum * LATENT
            if not low <= pixels <= high:
                message = f"{field} {pixels} is outside {low}..{high}, which the engines were built for"
                raise RequestError(message, field=field, hint=self._rebuild("--sizes ..."))

    def check_text(self, parts: int, chunks: int) -> None:
        """Refuse a prompt of more parts (AND, and the negative) or more chunks than the engines take."""
        if parts > self.rows:
            raise RequestError(
                f"the prompt has {parts} parts with its negative; the engines take {self.rows}",
                field="prompt",
                hint=self._rebuild(f"--max-batch {-(-parts // 2)}"),
            )
        if chunks > self.chunks:
            raise RequestError(
                f"the prompt needs {chunks} chunks of 75 tokens; the engines take {self.chunks}",
                field="prompt",
                hint=self._rebuild(f"--max-chunks {chunks}") or "shorten it",
            )

    def _rebuild(self, option: str) -> str | None:
        return None if self.build_command is None else f"{self.build_command} {option}"
