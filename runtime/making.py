"""The pictures of requests in the making: passes down the noise levels, each with a table, inputs and first latents.

Knows what the inputs of step engines mean, by their names, and nothing of who runs with whom.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from clipskip.engines.manifest import STEP
from clipskip.engines.shapes import LATENT
from clipskip.engines.variants import Mix

from . import enlarge, img2img, pictures
from .backends import Array
from .batch import Image
from .conditioning import NetworkRow
from .driver import Driver
from .engine_cache import EngineCache
from .errors import NumericalError
from .img2img import Pass
from .noise import LARGEST_SEED, SOURCES, BrownianTree, initial
from .request import OWN
from .resolve import Resolved
from .samplers import Plan
from .schedules import NoiseModel
from .vae import Vae

LATENT_CHANNELS = 4
NOT_MASKED = {"mask": 1.0, "known": 0.0, "pull": 0.0}  # inpainting's inputs where the whole picture is made


@dataclass(frozen=True)
class Stage:
    """What the images of one pass share."""

    resolved: Resolved
    run: Pass
    plan: Plan
    rows: Sequence[NetworkRow]
    inputs: Mapping[str, Any]
    mix: Mix

    def image(self, seeds: tuple[int, int | None], origin: Array | None = None) -> Image:
        """The image of a seed and subseed, from noise and from the latents that `origin` is."""
        request, made, seed = self.resolved.request, self.plan, seeds[0]
        shape = LATENT_CHANNELS, self.run.height // LATENT, self.run.width // LATENT
        start, noise = initial(seed, shape, request.rng, seeds[1], request.subseed_strength)
        if request.eta_noise_seed_delta:
            noise = SOURCES[request.rng]((seed + request.eta_noise_seed_delta) & LARGEST_SEED)
        latents = start * np.float32(made.scale)
        if origin is not None and made.picture:
            source = self.resolved.source
            if source is not None and source.mask is not None:
                origin = img2img.content(origin, source.mask, start, request.fill)
            latents += np.float32(made.picture) * origin
        if made.churn is not None:
            latents += np.float32(made.churn) * noise.normal(shape)
        tree = BrownianTree(seed, request.rng, *made.span) if made.span else None
        return Image(made.rows, self.rows, latents, tree or noise, self.resolved.chunks, self.inputs, mix=self.mix)


@dataclass(eq=False)
class Making:
    """One picture in the making: its image in the batch, and what makes the next one of its latents.

    It takes `calls` calls in all; `past` are those of images before this one.
    """

    image: Image
    then: list[partial[Image]]
    calls: int
    past: int = 0
    stretched: bool = False

    def follow(self, driver: Driver, priority: int = 0) -> None:
        """Let the next image take the place of one that is done."""
        self.stretched |= self.image.stretched
        if self.image.done and self.then:
            self.past += self.image.call
            self.image = self.then.pop(0)(self.image.latents)
            if not self.image.done:
                driver.add([self.image], priority)


@dataclass(frozen=True)
class Passes:
    """How one model's pictures are made, pass after pass."""

    engines: EngineCache
    vae: Vae
    noise_model: NoiseModel

    def of(self, resolved: Resolved, rows: Sequence[NetworkRow]) -> Iterator[Making]:
        """The pictures of one request: they share everything but their noise."""
        known = self._known(resolved) if resolved.source else None
        last = tuple(replace(row, ends=row.ends[-1:], which=row.which[-1:]) for row in rows)
        first, *later = [
            self._stage(resolved, run, texts, known) for run, texts in zip(resolved.passes, (rows, last), strict=False)
        ]
        calls = len(first.plan.rows) + sum(len(stage.plan.rows) for stage in later)
        for seeds in resolved.seeds:
            follow = [partial(self._enlarged, stage, seeds) for stage in later]
            yield Making(first.image(seeds, known), follow, calls)

    def _stage(self, resolved: Resolved, run: Pass, rows: Sequence[NetworkRow], known: Array | None) -> Stage:
        request, sampler, source = resolved.request, resolved.sampler, resolved.source
        given = {name: value for name in OWN if (value := getattr(request, name)) is not None}
        levels = request.sigmas or ()
        made = img2img.plan_of(run, sampler, resolved.schedule, self.noise_model, given, levels)
        inputs = {**NOT_MASKED, "rescale": request.cfg_rescale, **self.inputs(run, source)}
        if source is not None and source.mask is not None:
            made = img2img.masked(made, sampler, self.noise_model)
            inputs |= {"mask": source.mask[None], "known": known}
        return Stage(resolved, run, made, rows, inputs, self.engines.mix(STEP, resolved.loras))

    def _known(self, resolved: Resolved) -> Array:
        """The latents [4,h,w] of the picture that another is made from."""
        assert resolved.source is not None
        known = self.vae.encode(resolved.source.pixels)[0]
        if not np.isfinite(known).all():
            raise NumericalError("the latents of image are not finite", hint="try engines at fp32")
        size = resolved.height // LATENT, resolved.width // LATENT
        return known if known.shape[1:] == size else enlarge.resized(known, size, "Latent")

    def _enlarged(self, stage: Stage, seeds: tuple[int, int | None], latents: Array) -> Image:
        """The image of the second pass, made from the finished latents of the first."""
        upscaler, run = stage.resolved.request.hires_upscaler, stage.run
        if upscaler in enlarge.LATENT:
            return stage.image(seeds, enlarge.covering(latents, (run.height // LATENT, run.width // LATENT), upscaler))
        (picture,) = self.vae.decode([latents], "the latents of the first pass")
        pixels = pictures.enlarged(picture, (run.width, run.height), upscaler)
        return stage.image(seeds, self.vae.encode(pixels)[0])

    def takes(self, name: str) -> bool:
        """Whether the step engine has an input of this name."""
        return any(port.name == name for port in self.engines.artefact(STEP).inputs)

    def inputs(self, run: Pass, source: pictures.Source | None) -> dict[str, Any]:
        """What the step engine of some models takes for each image, by name."""
        height, width = run.height, run.width
        inputs: dict[str, Any] = {}
        if self.takes("size_ids"):  # as if the picture had had this size and been cut nowhere
            inputs["size_ids"] = np.array([height, width, 0, 0, height, width], np.float32)
        if not self.takes("inpaint_mask"):
            return inputs
        if source is None or source.hidden is None:  # as A1111: everything is to be made, of a picture that is mid-grey
            return inputs | {"inpaint_mask": 1.0, "inpaint_latents": self.vae.mid_grey(height, width)}
        mask, painted = source.painted()
        return inputs | {"inpaint_mask": mask, "inpaint_latents": self.vae.encode(painted)[0]}
