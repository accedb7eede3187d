"""What a picture made from a picture must be: torch's VAE and `interpolate`, A1111's steps, the solvers there are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from reference import Reference, Wanted, motion_of, noise_of
from reference_solvers import SCHEDULES, SOLVERS, Array, Denoiser, ddim_levels


@dataclass(frozen=True)
class Img2Img:
    """Pictures from latents by the networks of `truth`."""

    truth: Reference

    def encoded(self, picture: np.ndarray) -> Array:
        """[1,4,h,w]: the mean of the posterior, scaled."""
        pixels = torch.from_numpy(picture.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        with torch.no_grad():
            mean = self.truth.vae.encode(pixels).latent_dist.mean
        return (mean * self.truth.vae.config.scaling_factor).double().numpy()

    def latents(
        self, one: Wanted, known: Array, steps: int, made: int, mask: Array | None = None, fill: str = "original"
    ) -> Array:
        """The last `made` of `steps` steps from `known` and noise; with a mask (1: anew) the rest is denoised to it."""
        own = one.sampler in ("DDIM", "PLMS")
        levels = (ddim_levels if own else SCHEDULES[one.schedule])(self.truth.diffusion, steps)
        draw = noise_of([one])
        noise = draw()
        start = known if mask is None else known * (1 - mask) + {"latent noise": noise}.get(fill, known) * mask
        start = start * (1 - mask) if fill == "latent nothing" and mask is not None else start
        if own:  # t_enc is made - 1: the lowest so many timesteps, from noise of the one above
            left, s = levels[1 - made :], levels[-made]
            x = (start + s * noise) / np.sqrt(s**2 + 1)
        else:
            left = levels[steps - made :]
            x = start + left[0] * noise
        if "SDE" in one.sampler:
            full = motion_of([one], np.stack([levels], axis=1))
            for _ in range(steps - made):
                full()
            draw = full
        denoise = self.truth.denoiser([one])
        if mask is not None:
            denoise = blended(denoise, known, mask)
        return SOLVERS[one.sampler](denoise, x, left, draw)

    def picture(self, latents: Array) -> np.ndarray:
        return self.truth.decode(latents)[0]


def blended(denoise: Denoiser, known: Array, mask: Array) -> Denoiser:
    return lambda x, s: denoise(x, s) * mask + known * (1 - mask)


def interpolated(latents: Array, size: tuple[int, int]) -> Array:
    return torch.nn.functional.interpolate(torch.from_numpy(latents), size=size, mode="bilinear").numpy()
