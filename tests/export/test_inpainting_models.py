"""A U-Net of nine channels also sees a mask and what it leaves of a picture; here it makes a whole one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reference
import tiny_families
import torch
from reference import Wanted
from reference_img2img import Img2Img

import clipskip
from clipskip.export import export


class Inpainting(torch.nn.Module):
    """diffusers' U-Net beside a mask of ones and the latents of mid-grey, in diffusers' order."""

    def __init__(self, unet: torch.nn.Module, grey: torch.Tensor) -> None:
        super().__init__()
        self.unet, self.grey, self.mask = unet, grey, torch.ones(1)

    def forward(self, latents: torch.Tensor, *others: torch.Tensor) -> object:
        mask = torch.ones_like(latents[:, :1]) * self.mask
        return self.unet(torch.cat([latents, mask, self.grey.expand(len(latents), -1, -1, -1)], dim=1), *others)


@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
def test_a_whole_picture_is_made_with_everything_masked_and_grey_behind_it(
    size: tuple[int, int], opened: tuple[clipskip.Pipeline, Path]
) -> None:
    pipe, folder = opened
    right, (width, height) = reference.load(folder), size
    with torch.no_grad():
        grey = right.vae.encode(torch.full((1, 3, height, width), 128 / 127.5 - 1)).latent_dist.mean
    unet = Inpainting(right.unet, grey * right.vae.config.scaling_factor)
    right = replace(right, text=replace(right.text, padding=0), unet=unet)
    wanted = Wanted(prompt="a cat", negative="b", seed=3, steps=4, cfg=4.0, width=width, height=height)
    fields = {"seed": 3, "steps": 4, "cfg": 4.0, "rng": "cpu", "sampler": "Euler", "schedule": "uniform"}
    made = pipe("a cat", negative_prompt="b", width=width, height=height, **fields)
    exact = right.pictures([wanted])[0]
    assert np.abs(np.asarray(made.images[0], dtype=float) - exact).max() <= 2
    assert exact.std() > 10
    unet.grey = unet.grey * 0
    assert np.abs(right.pictures([wanted])[0].astype(float) - exact).max() > 2  # the network sees it


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> object:
    root = tmp_path_factory.mktemp("nine")
    folder = tiny_families.sd2(root / "checkpoint", channels=9)
    export(folder, root / "store", skips=[1])
    with clipskip.open(root / "store") as pipe:
        names = [port.name for port in pipe._engines.artefact(clipskip.pipeline.STEP).inputs]
        assert names[-2:] == ["inpaint_mask", "inpaint_latents"]
        yield pipe, folder


def test_with_a_mask_it_sees_the_mask_and_the_picture_with_grey_in_its_place(
    opened: tuple[clipskip.Pipeline, Path],
) -> None:
    pipe, folder = opened
    picture, mask = np.random.default_rng(2).integers(0, 255, (64, 64, 3), np.uint8), np.zeros((64, 64), np.uint8)
    mask[16:48, 8:40] = 255
    fields = {"negative_prompt": "b", "seed": 3, "steps": 5, "cfg": 4.0, "sampler": "Euler", "schedule": "uniform"}
    made = pipe("a cat", image=picture, mask=mask, mask_blur=0, strength=0.8, **fields).images[0]
    right = reference.load(folder)
    right = replace(right, text=replace(right.text, padding=0))
    hidden = torch.from_numpy(mask[::8, ::8] / 255).float()[None, None]
    seen = Img2Img(right).encoded(np.where(mask[..., None] > 0, 128, picture))
    unet = Inpainting(right.unet, torch.from_numpy(seen).float())
    unet.mask = hidden
    truth = Img2Img(replace(right, unet=unet))
    wanted = Wanted(prompt="a cat", negative="b", seed=3, steps=5, cfg=4.0, width=64, height=64)
    known = truth.encoded(picture)
    expected = truth.picture(truth.latents(wanted, known, 5, 5, hidden.numpy()))
    inside = mask > 0
    assert np.abs(np.asarray(made)[inside].astype(float) - expected[inside]).max() <= 2
    np.testing.assert_array_equal(np.asarray(made)[~inside], picture[~inside])
    unet.mask = torch.ones(1)
    blind = truth.picture(truth.latents(wanted, known, 5, 5, hidden.numpy()))
    assert np.abs(blind[inside].astype(float) - expected[inside]).max() > 2
