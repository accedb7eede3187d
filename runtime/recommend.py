"""Which clip skip a model wants: how well its network tells noise from captioned pictures, by depth.

At every depth the same pictures and the same noise, so the losses of two depths are compared picture by picture. It is
the loss that the model was trained on (Ho et al. 2020, eq. 14). Knows nothing of files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageOps

from .basis import Denoised, Stage, out
from .errors import RequestError
from .fields import whole_clip_skip
from .request import Request
from .samplers import Sampler, denoiser, table
from .schedules import Sigmas

if TYPE_CHECKING:
    from .pipeline import Pipeline

Losses = npt.NDArray[np.float64]  # [pictures, clip skips]
SURE = 3.0  # standard errors: of twelve comparisons that should show nothing, one in thirty does
CLOSE = 1.0  # standard errors: nearer to the best there is no telling that another is better
LEAST = 24  # pictures before an answer
ROUND = 8  # pictures between two looks at the losses
LEVELS = 3  # noise levels of each picture, one in each third of the model's timesteps
EDGE = 0.02  # of the timesteps at either end, where depths do not differ


@dataclass(frozen=True)
class Verdict:
    """What the losses say. `losses` is [pictures, clip skips], the mean over the noise levels of each picture."""

    skips: tuple[int, ...]
    losses: Losses = field(repr=False)

    @property
    def best(self) -> int:
        """The clip skip of the least loss."""
        return self.skips[int(self.losses.mean(0).argmin())]

    def worse(self, skip: int) -> tuple[float, float]:
        """By how much this clip skip's loss is above the best one's, paired, and the standard error of that."""
        apart = self.losses[:, self.skips.index(skip)] - self.losses[:, self.skips.index(self.best)]
        return float(apart.mean()), float(apart.std(ddof=1) / math.sqrt(len(apart)))

    @property
    def alike(self) -> tuple[int, ...]:
        """The clip skips that cannot be told from the best one, and that."""
        above = {skip: self.worse(skip) for skip in self.skips}
        return tuple(skip for skip, (mean, error) in above.items() if mean <= SURE * error)

    @property
    def decided(self) -> bool:
        """Whether every other clip skip is surely worse than the best one."""
        return self.alike == (self.best,) != self.skips and len(self.losses) >= LEAST

    @property
    def recommended(self) -> int | None:
        """The clip skip that this model wants: of those that are alike the least if it is close, where 1 is worse."""
        if not self.decided and (1 not in self.skips or 1 in self.alike or len(self.losses) < LEAST):
            return None
        above, error = self.worse(least := min(self.alike))
        return least if above <= CLOSE * error else None

    @property
    def evidence(self) -> str:
        """The verdict in one line."""
        pictures = f"on {len(self.losses)} captioned pictures"
        listed = ", ".join(map(str, self.alike))
        if self.recommended is None:
            return f"cannot tell: {pictures} clip skips {listed} are alike"
        others = {skip: self.worse(skip) for skip in self.skips if skip not in self.alike}
        surely, nearest = min((above / error, skip) for skip, (above, error) in others.items())
        least = f"{surely:.1f} standard errors below that of {nearest}"
        alike = "" if self.decided else f"; {listed} are alike"
        return f"clip skip {self.recommended}: {pictures} the least loss is {least}{alike}"


def recommend(
    pipe: Pipeline,
    captioned: Iterable[tuple[PIL.Image.Image, str]],
    skips: Sequence[int] | None = None,
    progress: Callable[[Verdict], None] = lambda verdict: None,
) -> Verdict:
    """Compare clip skips (by default all that the store has) on pictures with captions, until the answer is clear.

    Of clip skips that mean one layer the least is compared. Pictures are cut to a square of the model's own size.
    RequestError for what is no caption or clip skip, for a single layer, and for no pictures.
    """
    kept, asked = pipe.model.kept, sorted(pipe.clip_skips if skips is None else skips)
    layers = {kept[whole_clip_skip("skips", skip, len(kept) - 1) - 1]: skip for skip in reversed(asked)}
    if len(layers) < 2:
        message = f"clip skip {', '.join(map(str, asked))} is one layer of this model: nothing to compare it with"
        raise RequestError(message, field="skips", hint="name others, of a store that has them")
    skips = tuple(sorted(layers.values()))
    pictures = enumerate(captioned)
    return settle(skips, (losses(pipe, *pair, skips, number) for number, pair in pictures), progress)


def settle(
    skips: Sequence[int], pictures: Iterable[Losses], progress: Callable[[Verdict], None] = lambda verdict: None
) -> Verdict:
    """The verdict on these clip skips: after each ROUND of pictures, given by their losses, it may be clear."""
    rows = list[Losses]()
    for row in pictures:
        rows.append(row)
        if len(rows) % ROUND == 0:
            progress(verdict := Verdict(tuple(skips), np.stack(rows)))
            if verdict.decided:
                return verdict
    if len(rows) < 2:
        raise RequestError(
            f"{len(rows)} captioned pictures are too few: at least {LEAST} give an answer", field="pictures"
        )
    return Verdict(tuple(skips), np.stack(rows))


def losses(pipe: Pipeline, picture: PIL.Image.Image, caption: str, skips: Sequence[int], number: int) -> Losses:
    """The loss of one picture at each clip skip; its noise and its noise levels follow from its number alone."""
    model, side, draw = pipe.noise_model, pipe.model.default_size, np.random.default_rng(number)
    square = PIL.ImageOps.fit(picture.convert("RGB"), (side, side), PIL.Image.Resampling.LANCZOS)
    clean, _ = pipe.encode(np.asarray(square))
    asked = [Request(prompt=caption, emphasis="None", clip_skip=skip, cfg=1, width=side, height=side) for skip in skips]
    third, mean = model.steps * (1 - 2 * EDGE) / LEVELS, np.zeros(len(skips))
    for level in range(LEVELS):
        sigma = float(model.sigma(np.array(model.steps * EDGE + third * (level + draw.uniform()))))
        noisy = clean + np.float32(sigma) * draw.standard_normal(clean.shape).astype(np.float32)
        rows = table(ESTIMATE, np.array([sigma]), model)
        weight = (denoiser(model)(sigma) @ out) ** -2  # from the error of the picture to that of the network's output
        given = pipe.evaluate(asked, noisy, rows)
        mean += [weight * np.square(latents - clean).mean(dtype=np.float64) / LEVELS for latents in given]
    return mean


def _estimate(sigmas: Sigmas, D: Denoised) -> Iterator[Stage]:
    """One call, and the picture as the network sees it in the noise."""
    yield float(sigmas[0]), [D(float(sigmas[0]))]


ESTIMATE = Sampler("estimate", (), _estimate, 1)
