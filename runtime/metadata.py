"""What a picture's file says about how it was made: written into PNGs, read back from PNG, JPEG and WEBP.

Two texts: `parameters`, which other programs read, and `clipskip`, the whole request as JSON, which is the truth.
Nothing in a file is trusted. Knows nothing of pipelines.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import PIL.Image
from PIL.PngImagePlugin import PngInfo

from clipskip.engines import strict
from clipskip.engines.files import storage_error
from clipskip.engines.manifest import ModelFacts

from . import infotext, inputs
from .errors import CheckpointError, ManifestError, RequestError, StorageError
from .request import Request

SCHEMA = 1
FORMATS = ("PNG", "JPEG", "WEBP")
LARGEST_TEXT = 1 << 20  # what readers, Pillow among them, accept of one text
LARGEST_FILE = 256 << 20
MOST_PIXELS = 1 << 25

_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286


def parameters(request: Request, model: ModelFacts) -> str:
    """A1111's text for a resolved request of one picture."""
    return infotext.write(request, model)


def pnginfo(request: Request, model: ModelFacts, engines: Mapping[str, str]) -> PngInfo:
    """The texts for the PNG of one picture: a resolved request with the picture's own seed, and the engines' keys.

    RequestError if they would be larger than readers accept (1 MiB), which no request below the prompt's limit is.
    """
    truth = {
        "schema": SCHEMA,
        "request": json.loads(request.to_json()),
        "model": {"name": model.name, "sha256": model.model_sha256},
        "engines": dict(engines),
    }
    texts = {"parameters": parameters(request, model), "clipskip": json.dumps(truth)}
    info = PngInfo()
    for name, text in texts.items():
        if len(text.encode()) > LARGEST_TEXT:
            raise RequestError(f"the text {name!r} of the picture would have more than 1 MiB", field="prompt")
        info.add_text(name, text)
    return info


def save(image: PIL.Image.Image, path: Path, request: Request, model: ModelFacts, engines: Mapping[str, str]) -> None:
    """Write a PNG with its texts; what was at `path` is replaced in one step. StorageError if that fails."""
    if path.exists() and not path.is_file():
        raise StorageError(f"{path} is there and is no file", path=path)
    encoded = BytesIO()
    image.save(encoded, "PNG", pnginfo=pnginfo(request, model, engines))
    draft = path.with_name(f".clipskip-{secrets.token_hex(8)}.tmp")
    try:
        draft.write_bytes(encoded.getbuffer())
        os.replace(draft, path)
    except OSError as error:
        raise storage_error(OSError(error.errno, error.strerror), path) from error  # not about the draft's name
    finally:
        with suppress(OSError):
            draft.unlink()


def read_request(image: str | os.PathLike[str] | bytes | PIL.Image.Image) -> Request:
    """The request that made a picture, from its path, its bytes or an opened image.

    Pictures of clipskip give exactly what they were made with; those of A1111 (PNG, or JPEG and WEBP with an Exif
    comment) what clipskip has of their settings. Ranges are checked when the request meets a model.

    Raises CheckpointError for what is no PNG, JPEG or WEBP, is damaged, carries no settings or broken ones.
    """
    path = None if isinstance(image, (bytes, PIL.Image.Image)) else os.fspath(image)
    try:
        texts = _texts(image if isinstance(image, PIL.Image.Image) else _opened(image))
        return _request(texts)
    except (RequestError, CheckpointError) as error:
        message = error.message if path is None or path in error.message else f"{path}: {error.message}"
        raise CheckpointError(message, path=path, hint=error.hint) from error


def _opened(image: str | os.PathLike[str] | bytes) -> PIL.Image.Image:
    data = image if isinstance(image, bytes) else inputs.read(image, LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        raise CheckpointError(f"the file has more than {LARGEST_FILE >> 20} MiB")
    try:
        opened = PIL.Image.open(BytesIO(data), formats=FORMATS)
        if opened.width * opened.height > MOST_PIXELS:
            raise CheckpointError(f"{opened.width}x{opened.height} pixels are more than a picture to read back has")
        opened.load()  # texts may follow the pixels, and a damaged file shows itself
    except CheckpointError:
        raise
    except Exception as error:  # Pillow raises anything, from SyntaxError to struct.error, on broken files
        raise CheckpointError(f"no sound PNG, JPEG or WEBP ({type(error).__name__})") from error
    return opened


def _texts(image: PIL.Image.Image) -> dict[str, str]:
    """All texts of an image, by name; an Exif comment counts as `parameters`."""
    texts = {str(name): str(value) for name, value in image.info.items() if isinstance(value, str)}
    if "parameters" not in texts and (comment := _comment(image)):
        texts["parameters"] = comment
    for name, text in texts.items():
        if len(text) > LARGEST_TEXT:
            raise CheckpointError(f"the text {name[:40]!r} has more than 1 MiB")
    return texts


def _comment(image: PIL.Image.Image) -> str | None:
    """Exif's UserComment: eight bytes name the encoding. UTF-16 is big-endian in A1111's, mostly little elsewhere."""
    try:
        value = image.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    except Exception as error:  # as above
        raise CheckpointError(f"its Exif data is broken ({type(error).__name__})") from error
    if not isinstance(value, bytes):
        return value if isinstance(value, str) else None
    kind, text = value[:8], value[8:]
    if kind == b"UNICODE\0":
        return text.decode("utf-16-le" if text[:1] and text[1:2] == b"\0" else "utf-16-be", "replace")
    return text.decode("utf-8", "replace")


def _request(texts: Mapping[str, str]) -> Request:
    if "clipskip" in texts:
        return _truth(texts["clipskip"])
    if "parameters" in texts:
        return infotext.read(texts["parameters"])
    others = f"; it has {', '.join(repr(name[:40]) for name in sorted(texts)[:5])}" if texts else ""
    raise CheckpointError(f"no settings are in this picture: neither text `clipskip` nor `parameters`{others}")


def _truth(text: str) -> Request:
    try:
        found: Any = strict.parse(text.encode("utf-8", "replace"))
    except ManifestError as error:
        raise CheckpointError(f"the text `clipskip` is broken: {error.message[:200]}") from error
    if not isinstance(found, dict) or type(found.get("schema")) is not int:
        raise CheckpointError("the text `clipskip` is broken: it is no object with a schema")
    if found["schema"] != SCHEMA:
        hint = "a newer clipskip may have written it: upgrade"
        raise CheckpointError(f"the text `clipskip` has schema {found['schema']}; {SCHEMA} is known", hint=hint)
    if not isinstance(found.get("request"), dict):
        raise CheckpointError("the text `clipskip` is broken: its request is missing")
    return Request.from_json(found["request"])
