"""Pictures that a request brings: what is read and refused, how they are brought to size, and masks."""

from __future__ import annotations

import base64
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import resolving
from facts import step_artefact
from resolving import ROOMY

from clipskip import pictures
from clipskip.errors import RequestError
from clipskip.ledger import of_truth
from clipskip.render import parse_render, render_line
from clipskip.request import Request, check_types
from clipskip.resolve import Limits

RED = PIL.Image.new("RGB", (64, 64), "red")


def saved(image: PIL.Image.Image, path: Path, **how: Any) -> str:
    image.save(path, **how)
    return str(path)


def resolved(**fields: Any) -> Any:
    return resolving.resolved(Request(prompt="a cat", seed=1, **fields))


def test_a_path_an_image_and_an_array_are_one_picture(tmp_path: Path) -> None:
    path = saved(RED, tmp_path / "red.png")
    found = [resolved(image=image).source for image in (path, Path(path), RED, np.asarray(RED))]
    assert {source.digests["image"] for source in found} == {found[0].digests["image"]}
    assert all((source.pixels == (255, 0, 0)).all() for source in found)


def test_a_request_in_json_has_the_picture_itself(tmp_path: Path) -> None:
    request = Request(prompt="", image=saved(RED, tmp_path / "red.png"))
    again = Request.from_json(request.to_json())
    assert str(again.image).startswith("data:")
    assert pictures.opened("image", str(again.image)).tobytes() == RED.tobytes()
    assert check_types(again) == again


def test_a_line_has_the_picture_itself(tmp_path: Path) -> None:
    request = Request(prompt="a cat", image=saved(RED, tmp_path / "red.png"), mask=RED)
    again = parse_render(render_line(request))
    assert again == Request.from_json(request.to_json())
    assert pictures.opened("image", str(again.image)).tobytes() == RED.tobytes()


def test_a_request_from_elsewhere_opens_no_file_here() -> None:
    for name, made in {
        "image": lambda: Request.from_json({"prompt": "", "image": "/etc/x.png"}),
        "mask": lambda: parse_render("/render /mask:x.png a cat"),
    }.items():
        with pytest.raises(RequestError, match="must be a data URL here") as caught:
            made()
        assert caught.value.field == name


def test_what_metadata_know_of_a_picture_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="SHA-256 0123456789ab") as caught:
        resolved(image="sha256:0123456789abcdef")
    assert caught.value.hint == "give the picture itself as image"


def test_a_repeat_says_that_another_picture_was_given() -> None:
    ledger = of_truth('{"schema": 1, "request": {"prompt": "", "image": "sha256:00"}}')
    assert ledger.about_pictures({"image": "sha256:00"}) == []
    (note,) = ledger.over({"image": RED}).about_pictures({"image": "sha256:01"})
    assert note == "another picture is given as image than the one that this was made from"
    _, refused = ledger.checked()
    assert list(refused) == ["image"]


@pytest.mark.parametrize("value", [3, b"x", [], np.zeros((2, 2, 7), np.uint8), np.array(["x"])], ids=str)
def test_what_is_no_picture_is_refused(value: Any) -> None:
    with pytest.raises(RequestError, match="image must be a picture") as caught:
        check_types(Request(prompt="", image=value))
    assert caught.value.field == "image"


def wide() -> PIL.Image.Image:
    return PIL.Image.new("I;16", (8, 8))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: str(path / "missing.png"), "is missing"),
        (lambda path: str(path), "is not a regular file"),
        (lambda path: (path / "x.png").write_bytes(b"no picture") and str(path / "x.png"), "is no sound PNG"),
        (lambda path: saved(wide(), path / "16.png"), "more than 8 bits"),
        (lambda path: saved(PIL.Image.new("1", (8200, 8200)), path / "l.png"), "8200x8200 pixels"),
        (lambda path: "data:image/png;base64,@@", "a data URL is written"),
        (lambda path: "data:image/png,abc", "a data URL is written"),
        (lambda path: "data:;base64," + base64.b64encode(b"no picture").decode(), "the data URL is no sound"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_name(make: Any, why: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=why) as caught:
        resolved(image=make(tmp_path))
    assert caught.value.field == "image"


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV", "RGBX", "RGBa", "PA", "La"])
def test_pictures_in_memory_in_modes_that_png_has_not_are_converted(mode: str) -> None:
    blank = PIL.Image.new("RGBA", (64, 64), "white")
    step = {"RGBa": "RGBA", "PA": "P", "La": "LA"}.get(mode, "RGB")
    found = resolved(image=blank.convert(step).convert(mode)).source
    assert (found.pixels == 255).all()


def test_pictures_in_memory_of_more_than_8_bits_are_refused() -> None:
    for mode in ("F", "I", "I;16", "I;16B"):
        with pytest.raises(RequestError, match=r"8 bits (a|per) channel") as caught:
            resolved(image=PIL.Image.new(mode, (64, 64)))
        assert caught.value.field == "image"


def test_latents_are_resized_from_a_size_that_the_encoder_takes() -> None:
    small = PIL.Image.new("RGB", (5, 30), "red")
    how: dict[str, Any] = {"resize_mode": "Just resize (latent upscale)", "width": 64, "height": 64}
    assert resolved(image=small, **how).source.pixels.shape == (24, 8, 3)
    built = Limits.of(step_artefact(h=(8, 16), w=(8, 16)), 2**30, None, "clipskip build")
    for image, why in ((PIL.Image.new("L", (2049, 2056)), "above the limit"), (small, "width 8 is outside 64..128")):
        with pytest.raises(RequestError, match=f"latent upscale.*encodes image at its own size: .*{why}") as caught:
            resolving.resolved(Request(prompt="", image=image, **how), limits=built if image is small else ROOMY)
        assert caught.value.field == "resize_mode"
    assert caught.value.hint == "clipskip build --sizes ..."


def test_photos_are_turned_upright_and_what_is_transparent_is_white(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    path = saved(PIL.Image.new("RGB", (64, 96), "blue"), tmp_path / "turned.jpg", exif=exif)
    assert resolved(image=path).source.pixels.shape == (64, 96, 3)
    clear = PIL.Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    assert (resolved(image=clear).source.pixels == 255).all()


def test_a_picture_has_its_own_size_or_one_in_proportion() -> None:
    photo = PIL.Image.new("RGB", (130, 65))
    assert (resolved(image=photo).width, resolved(image=photo).height) == (128, 64)
    assert resolved(image=photo).notes[-1] == "image has 130x65 pixels: it is made anew at 128x64"
    assert (resolved(image=photo, width=256).width, resolved(image=photo, width=256).height) == (256, 128)
    assert resolved(image=photo, width=256, height=256).notes == ()


def halves() -> PIL.Image.Image:
    """Black at the left, white at the right, 64x32."""
    image = PIL.Image.new("L", (64, 32))
    image.paste(255, (32, 0, 64, 32))
    return image.convert("RGB")


@pytest.mark.parametrize("mode", pictures.RESIZE)
def test_pictures_are_brought_to_size(mode: str) -> None:
    pixels = resolved(image=halves(), width=64, height=64, resize_mode=mode).source.pixels
    assert pixels.shape == (64, 64, 3)
    assert [int(value) > 127 for value in pixels[2, 4::8, 0]] == [False] * 4 + [True] * 4


def test_fill_keeps_the_whole_picture_and_crop_its_middle() -> None:
    top = PIL.Image.new("RGB", (64, 128), "white")
    top.paste("black", (0, 0, 64, 24))
    cropped = resolved(image=top, width=64, height=64, resize_mode="Crop and resize").source.pixels
    whole = resolved(image=top, width=64, height=64, resize_mode="Resize and fill").source.pixels
    assert cropped.min() == 255
    assert [int(whole[4, 32, 0]), int(whole[60, 32, 0])] == [0, 255]


def white(left: int, top: int, right: int, bottom: int, size: tuple[int, int] = (64, 64)) -> PIL.Image.Image:
    image = PIL.Image.new("L", size)
    image.paste(255, (left, top, right, bottom))
    return image


def test_a_mask_is_white_where_latents_are_made_anew() -> None:
    source = resolved(image=RED, mask=white(16, 8, 40, 24), mask_blur=0).source
    expected = np.zeros((8, 8))
    expected[1:3, 2:5] = 1
    np.testing.assert_array_equal(source.mask, expected)
    inverted = resolved(image=RED, mask=white(16, 8, 40, 24), mask_blur=0, mask_invert=True).source
    np.testing.assert_array_equal(inverted.mask, 1 - expected)


def test_a_transparent_mask_is_what_is_opaque_of_it() -> None:
    mask = PIL.Image.merge("RGBA", [white(0, 0, 64, 64)] * 3 + [white(16, 8, 40, 24)])
    assert resolved(image=RED, mask=mask, mask_blur=0).source.mask.sum() == 6


def test_the_edge_of_a_mask_is_blurred_to_both_sides() -> None:
    source = resolved(image=RED, mask=white(32, 0, 64, 64), mask_blur=4, inpaint_area="Only masked").source
    row = np.asarray(source.cover)[32]
    assert row[:22].max() == 0
    assert row[42:].min() == 255
    assert (np.diff(row[22:42].astype(int)) >= 0).all()
    assert int(row[31]) + int(row[32]) == pytest.approx(255, abs=1)


@pytest.mark.parametrize(
    ("around", "padding", "size", "box"),
    [
        ((20, 20, 40, 40), 4, (64, 64), (16, 16, 44, 44)),
        ((20, 20, 40, 30), 0, (64, 64), (20, 15, 40, 35)),
        ((0, 0, 10, 30), 0, (64, 64), (0, 0, 30, 30)),
        ((90, 50, 100, 60), 8, (64, 64), (82, 42, 100, 60)),
        ((10, 0, 20, 60), 0, (128, 64), (0, 0, 100, 60)),
    ],
)
def test_the_region_around_a_mask_has_the_shape_of_the_request_where_there_is_room(
    around: pictures.Box, padding: int, size: tuple[int, int], box: pictures.Box
) -> None:
    assert pictures.region(around, padding, size, (100, 60)) == box


def test_what_is_hidden_is_filled_from_around() -> None:
    photo = np.zeros((30, 50, 3), np.uint8)
    photo[:, :25], photo[:, 25:] = (200, 0, 0), (0, 100, 0)
    hidden = np.asarray(white(5, 5, 45, 25, (50, 30)))
    filled = pictures.filled(photo, hidden)
    np.testing.assert_array_equal(filled[hidden == 0], photo[hidden == 0])
    assert filled[15, 8, 0] > 150
    assert filled[15, 42, 1] > 75
    np.testing.assert_array_equal(pictures.filled(photo, np.zeros_like(hidden)), photo)


REFUSED = [
    ({"mask": RED}, "mask", "there is no image"),
    ({"image": RED, "mask": PIL.Image.new("L", (64, 65), 255)}, "mask", "mask is 64x65, and image 64x64"),
    ({"image": RED, "mask": PIL.Image.new("L", (64, 64))}, "mask", "nothing of mask is white"),
    ({"image": RED, "mask": np.ones((64, 64), np.uint8)}, "mask", "the brightest value of mask is 1 of 255"),
    ({"image": RED, "hires_scale": 2}, "hires_scale", "there is an image"),
    ({"image": RED, "mask": RED, "resize_mode": "Just resize (latent upscale)"}, "resize_mode", "own pixels"),
    ({"hires_scale": 2, "hires_size": "256x256"}, "hires_size", "give one of them"),
    ({"hires_size": "256"}, "hires_size", "must be width x height"),
    ({"hires_size": "0x0"}, "hires_size", "must be width x height"),
    ({"hires_size": "4096x4096"}, "hires_size", "above the limit"),
    ({"hires_scale": 8, "width": 512, "height": 512}, "hires_scale", "above the limit"),
    ({"hires_scale": 2, "hires_upscaler": "R-ESRGAN 4x+"}, "hires_upscaler", "must be one of Latent"),
    ({"image": RED, "strength": 1.5}, "strength", "must be 0..1"),
    ({"image": RED, "strength": 0.001, "exact_steps": True}, "strength", "a schedule of 20000"),
    ({"image": RED, "strength": 0.01, "exact_steps": True, "sampler": "DDIM"}, "strength", "DDIM takes 2..1000"),
]


@pytest.mark.parametrize(("fields", "field", "message"), REFUSED, ids=[message for _, _, message in REFUSED])
def test_what_cannot_be_done_is_refused_by_name(fields: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        resolved(**fields)
    assert caught.value.field == field


def test_what_does_nothing_is_noted_and_left_out() -> None:
    found = resolved(strength=0.5, exact_steps=True, mask_blur=8, hires_steps=3, mask_padding=1)
    assert found.notes == (
        "strength 0.5 is not used without image, hires_scale or hires_size",
        "exact_steps True is not used without image",
        "mask_blur 8 is not used without mask",
        "mask_padding 1 is not used without mask",
        "hires_steps 3 is not used without hires_scale or hires_size",
    )
    assert found.request == replace(resolved().request, clip_skip=found.request.clip_skip)


def test_what_noise_levels_or_a_strength_of_1_leave_no_work_is_noted_and_left_out() -> None:
    levels = (14.0, 3.0, 0.5)
    found = resolved(image=RED, sigmas=levels, exact_steps=True)
    assert "exact_steps True is not used with sigmas" in found.notes
    assert not found.request.exact_steps
    found = resolved(hires_scale=2, sigmas=levels, hires_steps=9)
    assert "hires_steps 9 is not used with sigmas" in found.notes
    assert (found.request.hires_steps, found.passes[1].steps) == (0, 3)
    found = resolved(image=RED, mask=white(0, 0, 32, 32), strength=1, fill="latent nothing")
    assert "fill latent nothing is not used at strength 1, which starts from noise alone" in found.notes
    assert found.request.fill == "original"
    assert resolved(image=RED, mask=white(0, 0, 32, 32), fill="latent nothing").request.fill == "latent nothing"


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"hires_scale": 1.5}, (192, 192)),
        ({"hires_scale": 1.3}, (160, 160)),
        ({"hires_size": "256x192"}, (256, 192)),
        ({"hires_size": "256x0", "height": 64}, (256, 128)),
    ],
)
def test_the_second_pass_has_a_size_of_whole_latents(fields: dict[str, Any], size: tuple[int, int]) -> None:
    _, second = resolved(**fields).passes
    assert (second.width, second.height, second.strength) == (*size, 0.7)
    assert (second.steps, second.made) == (28, 20)


def test_a_picture_that_was_made_from_others_has_their_digests(tmp_path: Path) -> None:
    buffer = BytesIO()
    RED.save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    digests = resolved(image=url, mask=white(0, 0, 32, 32)).source.digests
    assert list(digests) == ["image", "mask"]
    assert all(len(digest) == len("sha256:") + 64 for digest in digests.values())
