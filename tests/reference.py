"""What a picture must be: transformers' and diffusers' networks in fp32, and everything around them from the papers.

Scalars, guidance and solver steps in float64; noise from torch.Generator. Shares no code with the runtime, Brownian
motions excepted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from reference_solvers import SCHEDULES, SOLVERS, Array, Denoiser, Diffusion, ddim_levels
from reference_text import Part, TextReference, plain
from transformers import CLIPTextModel, CLIPTokenizer

from clipskip.noise import BrownianTree


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One picture, with its prompt already parsed by hand."""

    prompt: str | Sequence[Part]
    negative: str | Part = ""
    clip_skip: int = 1
    negative_clip_skip: int | None = None
    seed: int = 0
    ensd: int = 0
    steps: int = 20
    cfg: float = 7.0
    sampler: str = "Euler"
    schedule: str = "uniform"
    width: int = 128
    height: int = 128
    emphasis: str = "Original"

    @property
    def parts(self) -> Sequence[Part]:
        """The sides of the AND."""
        return [plain(self.prompt)] if isinstance(self.prompt, str) else self.prompt

    @property
    def group(self) -> tuple[str, int, int, int]:
        """What pictures must share to be made in one batch here."""
        return self.sampler, self.steps, self.width, self.height


@dataclass(frozen=True)
class Reference:
    """A checkpoint in diffusers' layout, opened with the original libraries."""

    text: TextReference
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    diffusion: Diffusion

    def latents(self, wanted: Wanted | Sequence[Wanted]) -> Array:
        """[B, 4, h, w] at the end of the loop, for pictures of one group."""
        batch = [wanted] if isinstance(wanted, Wanted) else list(wanted)
        own = batch[0].sampler == "DDIM"
        levels = [(ddim_levels if own else SCHEDULES[one.schedule])(self.diffusion, one.steps) for one in batch]
        sigmas = np.stack(levels, axis=1)[:, :, None, None, None]
        noise = noise_of(batch)
        start = noise() * (1 if own else sigmas[0])
        if "SDE" in batch[0].sampler:
            noise = motion_of(batch, np.stack(levels, axis=1))
        return SOLVERS[batch[0].sampler](self.denoiser(batch), start, sigmas, noise)

    def pictures(self, wanted: Iterable[Wanted]) -> list[np.ndarray]:
        """[height, width, 3] uint8 of each, in order."""
        numbered = sorted(enumerate(wanted), key=lambda pair: pair[1].group)
        made: dict[int, np.ndarray] = {}
        for _, group in groupby(numbered, key=lambda pair: pair[1].group):
            numbers, batch = zip(*group, strict=True)
            made.update(zip(numbers, self.decode(self.latents(batch)), strict=True))
        return [made[number] for number in range(len(made))]

    def decode(self, latents: Array) -> np.ndarray:
        """[B, 8h, 8w, 3] uint8: unscale, decode, [-1, 1] to [0, 255], clamp, round."""
        with torch.no_grad():
            scaled = torch.from_numpy(latents).float() / self.vae.config.scaling_factor
            image = self.vae.decode(scaled).sample.double().numpy()
        return np.rint(np.clip(image / 2 + 0.5, 0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)

    def denoiser(self, batch: Sequence[Wanted]) -> Denoiser:
        """Guided predictions for the whole batch; counts its calls, because prompt schedules follow them."""
        sides = [self.sides(one) for one in batch]
        calls = iter(range(10**9))

        def denoise(x: Array, sigma: Array) -> Array:
            call = next(calls)
            rows = [(i, w, pick(call)) for i, side in enumerate(sides) for w, pick in side]
            scaled = x / np.sqrt(sigma**2 + 1)
            times = self.diffusion.timestep(sigma).reshape(-1)
            output = np.zeros_like(x)
            for length in {context.shape[0] for _, _, context in rows}:
                alike = [row for row in rows if row[2].shape[0] == length]
                images = [i for i, _, _ in alike]
                predicted = self.network(scaled[images], times[images], np.stack([c for _, _, c in alike]))
                for (i, weight, _), one in zip(alike, predicted, strict=True):
                    output[i] += weight * one
            return self.diffusion.denoised(x, sigma, output)

        return denoise

    def network(self, x: Array, timesteps: Array, contexts: Array) -> Array:
        inputs = (torch.from_numpy(one).float() for one in (x, timesteps, contexts))
        with torch.no_grad():
            return self.unet(*inputs).sample.double().numpy()

    def sides(self, one: Wanted) -> list[tuple[float, Callable[[int], np.ndarray]]]:
        """(weight, call -> context) of each U-Net row, of its own length: guided = u + sum of w * cfg * (c - u)."""
        if one.cfg == 1:
            return [(part.weight, self._picker(part, one.clip_skip, one.emphasis)) for part in one.parts]
        negative = plain(one.negative) if isinstance(one.negative, str) else one.negative
        skip = one.negative_clip_skip or one.clip_skip
        scaled = [(one.cfg * part.weight, part, one.clip_skip) for part in one.parts]
        scaled.append((1 - sum(scale for scale, _, _ in scaled), negative, skip))
        return [(scale, self._picker(part, k, one.emphasis)) for scale, part, k in scaled]

    def _picker(self, part: Part, clip_skip: int, emphasis: str) -> Callable[[int], np.ndarray]:
        contexts = self.text.contexts([text for _, text in part.texts], clip_skip, emphasis)
        return lambda call: contexts[part.at(call)]


def noise_of(batch: Sequence[Wanted]) -> Callable[[], Array]:
    """Draws for the batch, each image from its own torch generator; all but the first from that of seed + ensd."""
    generators = [torch.Generator("cpu").manual_seed(one.seed) for one in batch]
    later = [
        torch.Generator("cpu").manual_seed(one.seed + one.ensd) if one.ensd else g
        for one, g in zip(batch, generators, strict=True)
    ]
    shape = (4, batch[0].height // 8, batch[0].width // 8)
    turns = iter([generators])
    return lambda: np.stack([torch.randn(shape, generator=g).double().numpy() for g in next(turns, later)])


def motion_of(batch: Sequence[Wanted], levels: Array) -> Callable[[], Array]:
    """Draws for the batch, each image from its own Brownian motion: the runtime's, which equals torchsde's."""
    trees = [BrownianTree(one.seed, "cpu", own[own > 0][-1], own[0]) for one, own in zip(batch, levels.T, strict=True)]
    shape = (4, batch[0].height // 8, batch[0].width // 8)
    steps = iter(pairwise(levels))

    def draw() -> Array:
        ends = zip(trees, *next(steps), strict=True)
        return np.stack([tree.normal(shape, s, t).astype(np.float64) for tree, s, t in ends])

    return draw


def load(checkpoint: Path) -> Reference:
    """Open a checkpoint in diffusers' layout, in fp32."""
    text = TextReference(
        CLIPTokenizer.from_pretrained(checkpoint / "tokenizer"),
        CLIPTextModel.from_pretrained(checkpoint / "text_encoder", dtype=torch.float32).eval(),
    )
    unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet", dtype=torch.float32).eval()
    vae = AutoencoderKL.from_pretrained(checkpoint / "vae", dtype=torch.float32).eval()
    facts = json.loads((checkpoint / "scheduler" / "scheduler_config.json").read_text())
    betas = facts["beta_start"], facts["beta_end"], facts["num_train_timesteps"]
    return Reference(text, unet, vae, Diffusion.scaled_linear(*betas, facts["prediction_type"]))
