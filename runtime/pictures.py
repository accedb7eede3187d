"""Pictures that a request brings: read, told apart, brought to size, and what of them is painted anew.

The rules are AUTOMATIC1111's (1.10). Knows nothing of latents, samplers and engines.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
import PIL.ImageOps

from clipskip.engines.shapes import LATENT

from . import enlarge, files
from .errors import ClipskipError, RequestError
from .fields import shown
from .request import RECALLED, Request

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Box = tuple[int, int, int, int]  # left, top, right, bottom

LARGEST, MOST_PIXELS = 256 << 20, 1 << 26  # bytes of a file, pixels of a picture
MOST = f"at most {MOST_PIXELS // 10**6} million are read"
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
NOT_IN_PNG = {**dict.fromkeys(("CMYK", "YCbCr", "HSV", "LAB", "RGBX"), "RGB"), "RGBa": "RGBA", "PA": "RGBA", "La": "LA"}
LANCZOS, BICUBIC = PIL.Image.Resampling.LANCZOS, PIL.Image.Resampling.BICUBIC


@dataclass(frozen=True)
class Source:
    """A picture that another is made from, at the size of the encoder, and how the finished one is laid onto it.

    `mask` [h,w] is 1 where latents are made anew, 0 elsewhere; None is everywhere. The finished picture lies in `box`
    of `under`, and shows as far as `cover` is white. `digests`: SHA-256 of what was given, by field.
    """

    pixels: Pixels
    digests: dict[str, str]
    mask: Floats | None = None
    hidden: Pixels | None = None  # the same at the size of `pixels`: 0 to 255
    under: PIL.Image.Image | None = None
    cover: PIL.Image.Image | None = None
    box: Box = (0, 0, 0, 0)

    def onto(self, made: PIL.Image.Image) -> PIL.Image.Image:
        """The finished picture on the one it was made from; byte for byte that one where nothing is painted anew."""
        if self.under is None or self.cover is None:
            return made
        laid = self.under.copy()
        left, top, right, bottom = self.box
        laid.paste(_stretched(made, (right - left, bottom - top)), (left, top))
        return PIL.Image.composite(laid, self.under, self.cover)

    def painted(self) -> tuple[Floats, Pixels]:
        """For models that see what is hidden: that [1,h,w] at latent size, and the picture with grey in its place."""
        assert self.hidden is not None
        anew = self.hidden > 127
        return anew[None, ::LATENT, ::LATENT].astype(np.float32), np.where(anew[..., None], np.uint8(128), self.pixels)


def data_url(picture: Any) -> str | None:
    """A PIL image, an array [h,w] or [h,w,3 or 4] of uint8, or the file at a path, as a data URL; None for others."""
    if isinstance(picture, str):
        return f"data:;base64,{base64.b64encode(files.read(picture, LARGEST)).decode()}"
    try:
        image = picture if isinstance(picture, PIL.Image.Image) else PIL.Image.fromarray(np.asarray(picture))
        image = image.convert(NOT_IN_PNG.get(image.mode, image.mode))
        image.save(encoded := BytesIO(), "PNG", compress_level=1)
    except (TypeError, ValueError, OSError):
        return None
    return f"data:image/png;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def opened(name: str, picture: str) -> PIL.Image.Image:
    """The picture of a field, upright, in RGB, RGBA or L. RequestError for what cannot be read."""
    try:
        data = _decoded(picture) if picture.startswith("data:") else files.read(picture, LARGEST)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of large pictures and of what is odd in Exif
            image = PIL.Image.open(BytesIO(data), formats=FORMATS)
            if image.width * image.height > MOST_PIXELS:
                raise RequestError(f"it has {image.width}x{image.height} pixels; {MOST}")
            if image.mode.startswith(("I", "F")):
                raise RequestError("it has more than 8 bits per channel: save it with 8")
            image.load()
            upright = PIL.ImageOps.exif_transpose(image)
    except PIL.Image.DecompressionBombError as error:  # so large that Pillow does not tell its size
        raise RequestError(f"cannot use {name}: it has far too many pixels; {MOST}", field=name) from error
    except ClipskipError as error:
        raise RequestError(f"cannot use {name}: {error.message}", field=name, hint=error.hint) from error
    except Exception as error:  # Pillow raises anything, from SyntaxError to struct.error, on broken files
        where = "the data URL" if picture.startswith("data:") else shown(picture)
        message = f"cannot use {name}: {where} is no sound {', '.join(FORMATS)} ({type(error).__name__})"
        raise RequestError(message, field=name) from error
    transparent = "A" in upright.getbands() or "transparency" in upright.info
    return upright.convert("RGBA" if transparent else "L" if upright.mode in ("1", "L") else "RGB")


def _decoded(url: str) -> bytes:
    head, comma, body = url.partition(",")
    try:
        if not comma or not head.endswith(";base64"):
            raise ValueError
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError("a data URL is written data:image/png;base64,...") from error


def _stretched(image: PIL.Image.Image, size: tuple[int, int]) -> PIL.Image.Image:
    return image if image.size == size else image.resize(size, LANCZOS)


def _bordered(image: PIL.Image.Image, size: tuple[int, int]) -> PIL.Image.Image:
    """The whole picture within the size; its outermost pixels are continued to the border."""
    whole = np.asarray(PIL.ImageOps.contain(image, size, LANCZOS))
    missing = [size[1] - whole.shape[0], size[0] - whole.shape[1]]
    sides = [(each // 2, each - each // 2) for each in missing] + [(0, 0)] * (whole.ndim - 2)
    return PIL.Image.fromarray(np.pad(whole, sides, mode="edge"))


def enlarged(image: PIL.Image.Image, size: tuple[int, int], upscaler: str) -> Pixels:
    """A picture at a larger size; what is too much of one side is cut off at both ends."""
    how = LANCZOS if upscaler == "Lanczos" else PIL.Image.Resampling.NEAREST
    return np.asarray(PIL.ImageOps.fit(image, size, how))


RESIZE: Mapping[str, Callable[..., PIL.Image.Image]] = {
    "Just resize": _stretched,
    "Crop and resize": partial(PIL.ImageOps.fit, method=LANCZOS),
    "Resize and fill": _bordered,
}


def prepared(image: PIL.Image.Image, mask: PIL.Image.Image | None, request: Request, size: tuple[int, int]) -> Source:
    """What a request makes of its pictures at a working size. RequestError for a mask that does not fit."""
    digests = {"image": _digest(image)} | ({} if mask is None else {"mask": _digest(mask)})
    picture = flat(image)
    if mask is None:
        return Source(np.asarray(RESIZE.get(request.resize_mode, _stretched)(picture, size)), digests)
    if mask.size != image.size:
        sizes = f"{mask.width}x{mask.height}, and image {image.width}x{image.height}"
        raise RequestError(f"mask is {sizes}: both must have one size", field="mask")
    anew = _blurred(_white(mask, request.mask_invert), request.mask_blur)
    if mask.mode == "L" and int(np.asarray(mask).max()) == 1:
        message = "the brightest value of mask is 1 of 255: it would paint next to nothing anew"
        raise RequestError(message, field="mask", hint="multiply an array of 0 and 1 by 255, or give it as bool")
    if (around := anew.getbbox()) is None:
        raise RequestError("nothing of mask is white: there is nothing to paint anew", field="mask")
    if request.inpaint_area == "Only masked":
        box = region(around, request.mask_padding, size, image.size)
        under, cover, parts = picture, anew, [_stretched(each.crop(box), size) for each in (picture, anew)]
    else:
        parts = [RESIZE[request.resize_mode](each, size) for each in (picture, anew)]
        under, cover, box = parts[0], parts[1].point(lambda value: min(2 * value, 255)), (0, 0, *size)
    pixels, hidden = map(np.asarray, parts)
    small = parts[1].resize((size[0] // LATENT, size[1] // LATENT), BICUBIC)
    latent = np.rint(np.asarray(small, np.float32) / 255)
    pixels = filled(pixels, hidden) if request.fill == "fill" else pixels
    return Source(pixels, digests, latent, hidden, under, cover, box)


def flat(image: PIL.Image.Image) -> PIL.Image.Image:
    """A picture in RGB; what is transparent is white."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    return PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _white(mask: PIL.Image.Image, invert: bool) -> PIL.Image.Image:
    """How white a mask is; of one that is somewhere transparent, where it is opaque."""
    white = mask.convert("L")
    if mask.mode == "RGBA" and (alpha := mask.getchannel("A")).getextrema() != (255, 255):
        white = alpha.point(lambda value: 255 * (value > 128))
    return PIL.ImageOps.invert(white) if invert else white


def _digest(image: PIL.Image.Image) -> str:
    """SHA-256 of the mode, the size and the pixels: the same for equal pictures in different files."""
    head = f"{image.mode} {image.width}x{image.height} "
    return RECALLED + hashlib.sha256(head.encode() + image.tobytes()).hexdigest()


def _blurred(mask: PIL.Image.Image, sigma: float) -> PIL.Image.Image:
    """A Gaussian blur that ends at 2.5 sigma, with the border mirrored and 8 bits after each direction."""
    radius = int(2.5 * sigma + 0.5)
    if not radius:
        return mask
    kernel = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2)).astype(np.float32)
    kernel /= kernel.sum()
    lines = np.asarray(mask)
    for _ in range(2):
        wide = np.pad(lines, ((0, 0), (radius, radius)), mode="reflect").astype(np.float32)
        blurred = sum(weight * wide[:, i : i + lines.shape[1]] for i, weight in enumerate(kernel))
        lines = np.rint(blurred).astype(np.uint8).T
    return PIL.Image.fromarray(np.ascontiguousarray(lines))


def region(around: Box, padding: int, size: tuple[int, int], whole: tuple[int, int]) -> Box:
    """What is cut out around a mask: its box and the padding, widened to the shape of `size` where there is room."""
    left, top = max(around[0] - padding, 0), max(around[1] - padding, 0)
    right, bottom = min(around[2] + padding, whole[0]), min(around[3] + padding, whole[1])
    width = max(right - left, round((bottom - top) * size[0] / size[1]))
    height = max(bottom - top, round((right - left) * size[1] / size[0]))
    (left, right), (top, bottom) = _widened(left, right, width, whole[0]), _widened(top, bottom, height, whole[1])
    return left, top, right, bottom


def _widened(low: int, high: int, length: int, most: int) -> tuple[int, int]:
    length = min(length, most)
    low = min(max(low - (length - (high - low)) // 2, 0), most - length)
    return low, low + length


def filled(pixels: Pixels, hidden: Pixels) -> Pixels:
    """The picture with what is hidden (255) replaced by the colours around it."""
    weight = np.asarray((255 - hidden[None]) / 255, np.float32)
    colours = _spread(np.asarray(pixels.transpose(2, 0, 1) * weight, np.float32), weight)
    return np.rint(np.clip(colours, 0, 255)).astype(np.uint8).transpose(1, 2, 0)


def _spread(colours: Floats, weight: Floats) -> Floats:
    """Colours [3,h,w] times weight [1,h,w], completed where the weight is below 1 from halves of the picture.

    The pull-push algorithm (Gortler et al. 1996, "The lumigraph").
    """
    height, width = weight.shape[1:]
    if height == width == 1 or weight.min() == 1:
        return np.asarray(colours / np.maximum(weight, 1e-6))
    halves = []
    for each in (colours, weight):
        even = np.pad(each, ((0, 0), (0, height % 2), (0, width % 2)))
        halves.append(even.reshape(len(each), even.shape[1] // 2, 2, even.shape[2] // 2, 2).sum((2, 4)))
    full = np.maximum(halves[1], 1)
    coarse = _spread(halves[0] / full, halves[1] / full)
    return np.asarray(colours + (1 - weight) * enlarge.resized(coarse, (height, width), "Latent"))
