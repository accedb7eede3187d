"""img2img, inpainting and the second pass of hires against an independent chain in torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import reference
from reference import Wanted
from reference_img2img import Img2Img, interpolated

import clipskip
from clipskip import pictures

LIMIT = 2  # of 255, anywhere
STAR = Wanted(prompt="a large blue star on a green background", clip_skip=2, seed=3, steps=5, width=96, height=64)
SAMPLERS = [("Euler", "karras"), ("Heun", "uniform"), ("DPM++ 2M", "karras")]
SAMPLERS += [("DPM++ 2M SDE", "exponential"), ("DDIM", "uniform")]


@pytest.fixture(scope="module")
def pipe(sample_store: Path) -> Iterator[clipskip.Pipeline]:
    with clipskip.open(sample_store) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def truth(sample_checkpoint: Path) -> Img2Img:
    return Img2Img(reference.load(sample_checkpoint))


@pytest.fixture(scope="module")
def photo() -> PIL.Image.Image:
    """A red disc on yellow, 96x64."""
    y, x = np.mgrid[:64, :96]
    inside = (x - 40) ** 2 + (y - 32) ** 2 < 400
    return PIL.Image.fromarray(np.where(inside[..., None], (200, 20, 30), (220, 200, 40)).astype(np.uint8))


@pytest.fixture(scope="module")
def mask() -> np.ndarray:
    """White where latents 6 to 10 and 1 to 5 are."""
    white = np.zeros((64, 96), np.uint8)
    white[8:48, 48:88] = 255
    return white


def asked(one: Wanted, **fields: object) -> clipskip.Request:
    names = ["prompt", "clip_skip", "seed", "steps", "cfg", "sampler", "schedule", "width", "height"]
    return clipskip.Request(**{**{name: getattr(one, name) for name in names}, **fields})  # type: ignore[arg-type]


def distance(made: PIL.Image.Image, expected: np.ndarray) -> int:
    assert expected.std() > 3, "a picture without content proves nothing"
    return int(np.abs(np.asarray(made).astype(int) - expected).max())


@pytest.mark.parametrize(("sampler", "schedule"), SAMPLERS)
def test_a_picture_from_a_picture_equals_the_reference(
    sampler: str, schedule: str, pipe: clipskip.Pipeline, truth: Img2Img, photo: PIL.Image.Image
) -> None:
    one = replace(STAR, sampler=sampler, schedule=schedule)
    made = pipe(asked(one, image=photo, strength=0.7)).images[0]
    assert distance(made, truth.picture(truth.latents(one, truth.encoded(np.asarray(photo)), 5, 4))) <= LIMIT


def test_exact_steps_are_the_end_of_a_longer_schedule(
    pipe: clipskip.Pipeline, truth: Img2Img, photo: PIL.Image.Image
) -> None:
    made = pipe(asked(STAR, image=photo, strength=0.6, exact_steps=True)).images[0]
    assert distance(made, truth.picture(truth.latents(STAR, truth.encoded(np.asarray(photo)), 8, 5))) <= LIMIT


def test_latents_are_resized_as_torch_does(pipe: clipskip.Pipeline, truth: Img2Img, photo: PIL.Image.Image) -> None:
    one = replace(STAR, width=128, height=128)
    made = pipe(asked(one, image=photo, strength=0.7, resize_mode="Just resize (latent upscale)"))
    known = interpolated(truth.encoded(np.asarray(photo)), (16, 16))
    assert distance(made.images[0], truth.picture(truth.latents(one, known, 5, 4))) <= LIMIT


def test_strength_0_is_the_picture_through_the_vae_and_strength_1_is_text_to_picture(
    pipe: clipskip.Pipeline, truth: Img2Img, photo: PIL.Image.Image
) -> None:
    kept, forgotten, alone = pipe.run(
        [asked(STAR, image=photo, strength=0), asked(STAR, image=photo, strength=1), asked(STAR)]
    )
    assert distance(kept.images[0], truth.picture(truth.encoded(np.asarray(photo)))) <= 1
    np.testing.assert_array_equal(forgotten.images[0], alone.images[0])


@pytest.mark.parametrize("fill", ["original", "fill", "latent noise", "latent nothing"])
def test_an_inpainted_picture_equals_the_reference(
    fill: str, pipe: clipskip.Pipeline, truth: Img2Img, photo: PIL.Image.Image, mask: np.ndarray
) -> None:
    one = replace(STAR, sampler="Euler a")
    made = pipe(asked(one, image=photo, mask=mask, mask_blur=0, fill=fill, strength=0.8))
    latent = np.zeros((1, 1, 8, 12))
    latent[..., 1:6, 6:11] = 1
    pixels = pictures.filled(np.asarray(photo), mask) if fill == "fill" else np.asarray(photo)
    expected = truth.picture(truth.latents(one, truth.encoded(pixels), 5, 5, latent, fill))
    white = mask > 0
    inside = np.abs(np.asarray(made.images[0]).astype(int) - expected)[white]
    assert inside.max() <= LIMIT
    np.testing.assert_array_equal(np.asarray(made.images[0])[~white], np.asarray(photo)[~white])


def test_only_masked_paints_at_the_size_of_the_request_and_lays_it_back(
    pipe: clipskip.Pipeline, photo: PIL.Image.Image, mask: np.ndarray
) -> None:
    request = asked(STAR, image=photo, mask=mask, inpaint_area="Only masked", mask_padding=8, fill="latent noise")
    made = pipe(replace(request, width=64, height=64)).images[0]
    untouched = np.zeros((64, 96), bool)
    untouched[:, :38] = True  # the blur ends 10 pixels from the white
    assert made.size == photo.size
    np.testing.assert_array_equal(np.asarray(made)[untouched], np.asarray(photo)[untouched])
    assert np.abs(np.asarray(made).astype(int) - np.asarray(photo))[12:44, 52:84].mean() > 20


@pytest.mark.parametrize("upscaler", ["Latent", "Lanczos"])
def test_a_second_pass_equals_the_reference(upscaler: str, pipe: clipskip.Pipeline, truth: Img2Img) -> None:
    made = pipe(asked(STAR, hires_scale=1.5, hires_steps=4, hires_upscaler=upscaler, strength=0.5))
    first = truth.truth.latents(STAR)
    larger = replace(STAR, width=144, height=96)
    if upscaler == "Latent":
        known = interpolated(first, (12, 18))
    else:
        known = truth.encoded(np.asarray(PIL.Image.fromarray(truth.picture(first)).resize((144, 96), 1)))
    assert distance(made.images[0], truth.picture(truth.latents(larger, known, 8, 4))) <= LIMIT


def test_pictures_from_pictures_equal_those_made_alone(
    pipe: clipskip.Pipeline, photo: PIL.Image.Image, mask: np.ndarray
) -> None:
    requests = [
        asked(replace(STAR, sampler="Euler a"), image=photo, strength=0.5, batch=2),
        asked(replace(STAR, sampler="DPM++ SDE", steps=5), image=photo, mask=mask, fill="latent noise"),
        asked(STAR, hires_size="144x96", strength=0.6),
        asked(replace(STAR, width=144, height=96)),
    ]
    for together, request in zip(pipe.run(requests), requests, strict=True):
        alone = [pipe(together.alone(index)).images[0] for index in range(request.batch)]
        for one, other in zip(together.images, alone, strict=True):
            np.testing.assert_array_equal(one, other)
