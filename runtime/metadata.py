"""A picture's two texts, written into PNGs and read from PNG, JPEG and WEBP: `parameters`, A1111's, and `clipskip`.

The first is ambiguous where a prompt has lines that look like it, the other the request as JSON. Trusts no file.
"""

from __future__ import annotations

import errno
import json
import os
import re
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

from . import files
from .errors import CheckpointError, ManifestError, RequestError, StorageError
from .fields import written
from .request import FIELDS, Request
from .resolve import split_schedule

SCHEMA = 1
FORMATS = ("PNG", "JPEG", "WEBP")
LARGEST_TEXT = 1 << 20  # what readers, Pillow among them, accept of one text
LARGEST_FILE = 256 << 20
MOST_PIXELS = 1 << 25
NEGATIVE = "Negative prompt:"

Engines = Mapping[str, str]  # role -> key of the engine that was used

_EXIF_IFD, _USER_COMMENT = 0x8769, 0x9286
_PLAIN = {field.infotext: name for name, field in FIELDS.items() if field.infotext}
_KNOWN = {*_PLAIN, "Size", "Sampler", "Schedule type", "RNG"}
_RNGS = {"nv": "nv", "gpu": "nv", "cuda": "nv"}  # all others: "cpu"
_CAPITALS = {"sgm": "SGM", "kl": "KL", "ddim": "DDIM"}
_SETTING = re.compile(r'(?:^|,) *([A-Za-z][\w /-]{0,60}): *("(?:[^"\\]|\\.)*"(?= *(?:,|$))|[^,]*)')


def save(
    image: PIL.Image.Image, path: Path, request: Request, model: ModelFacts, engines: Engines, overwrite: bool = True
) -> None:
    """Write a PNG with its texts, in one step: `path` never holds half a picture.

    Without `overwrite`, FileExistsError where something is there, also when it came while the picture was made.
    StorageError for everything else that fails.
    """
    if overwrite and path.exists() and not path.is_file():
        raise StorageError(f"{path} is there and is no file", path=path)
    encoded = BytesIO()
    image.save(encoded, "PNG", pnginfo=pnginfo(request, model, engines))
    draft = path.with_name(f".clipskip-{secrets.token_hex(8)}.tmp")
    try:
        draft.write_bytes(encoded.getbuffer())
        if overwrite:
            os.replace(draft, path)
        else:
            _create(draft, path)
    except FileExistsError as error:
        raise FileExistsError(errno.EEXIST, "is there already", str(path)) from error
    except OSError as error:
        if overwrite and isinstance(error, PermissionError) and draft.exists():  # Windows keeps files that are open
            message = f"{path} is there and cannot be replaced ({error.strerror})"
            raise StorageError(message, path=path, hint="close it in other programs, or use another name") from error
        raise storage_error(OSError(error.errno, error.strerror), path) from error  # not about the draft's name
    finally:
        with suppress(OSError):
            draft.unlink()


def _create(draft: Path, path: Path) -> None:
    """Give the draft its name if nothing has it. Where files have one name only, its bytes are written once more."""
    try:
        os.link(draft, path)
    except OSError:  # also where something is there: opening says so as well
        file = path.open("xb")
        try:
            with file:
                file.write(draft.read_bytes())
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def pnginfo(request: Request, model: ModelFacts, engines: Engines) -> PngInfo:
    """The texts of one picture, made by a resolved request with the picture's own seed. RequestError above 1 MiB."""
    named = {"name": model.name, "sha256": model.model_sha256}
    truth = {"schema": SCHEMA, "request": json.loads(request.to_json()), "model": named, "engines": dict(engines)}
    texts = {"parameters": parameters(request, model), "clipskip": json.dumps(truth)}
    info = PngInfo()
    for name, text in texts.items():
        if len(text.encode()) > LARGEST_TEXT:
            raise RequestError(f"the text {name!r} of the picture would have more than 1 MiB", field="prompt")
        info.add_text(name, text)
    return info


def parameters(request: Request, model: ModelFacts) -> str:
    """A1111's text (1.10) for one picture of a resolved request; as there, defaults are left out from subseed on."""
    plain = {name: (field.infotext, written(getattr(request, name))) for name, field in FIELDS.items()}
    sources = list(model.sources.values())
    schedule = " ".join(_CAPITALS.get(word, word.capitalize()) for word in request.schedule.split("_"))
    digest = (sources[0] if len(sources) == 1 else model.model_sha256)[:10]
    settings = [plain["steps"], ("Sampler", request.sampler), ("Schedule type", schedule), plain["cfg"], plain["seed"]]
    settings += [("Size", f"{request.width}x{request.height}"), ("Model hash", digest), ("Model", model.name)]
    if request.subseed_strength:
        settings += [plain["subseed"], plain["subseed_strength"]]
    if request.clip_skip is not None and request.clip_skip > 1:
        settings.append(plain["clip_skip"])
    if request.negative_clip_skip not in (None, request.clip_skip):
        settings.append(plain["negative_clip_skip"])
    rare = ["emphasis", "pad_cond_uncond", "eta_noise_seed_delta"]
    rare = [name for name in rare if getattr(request, name) != FIELDS[name].default]
    settings += [("RNG", request.rng.upper()), *(plain[name] for name in rare), ("Version", "clipskip")]
    quoted = {
        name: json.dumps(text, ensure_ascii=False) if set(text) & set(',:\n"') else text for name, text in settings
    }
    lines = [request.prompt, *([f"{NEGATIVE} {request.negative_prompt}"] if request.negative_prompt else [])]
    return "\n".join([*lines, ", ".join(f"{name}: {text}" for name, text in quoted.items())]).strip()


def read_parameters(text: str) -> Request:
    """The request that A1111's text means; settings that clipskip has not are ignored.

    A missing `Clip skip` is 1, a missing `RNG` a GPU's. A DPM sampler without a schedule is from before A1111 1.9 and
    ran on the uniform one. CheckpointError without a line of settings, RequestError for values of a wrong type.
    """
    lines = [line.strip() for line in text.strip().split("\n")]
    last = max((i for i, line in enumerate(lines) if line.startswith("Steps:")), default=None)
    if last is None:
        raise CheckpointError("the text `parameters` has no line of settings (Steps: ..., Sampler: ...)")
    known = {name: value.strip() for name, value in _SETTING.findall(lines[last]) if name in _KNOWN}
    for name, value in known.items():
        with suppress(ValueError):  # such as a quote that does not end
            known[name] = str(json.loads(value)) if value.startswith('"') else value
    first = next((i for i, line in enumerate(lines[:last]) if line.startswith(NEGATIVE)), last)
    negative = "\n".join(line.removeprefix(NEGATIVE).strip() for line in lines[first:last])
    fields = {"prompt": "\n".join(lines[:first]), "negative_prompt": negative, "clip_skip": "1"}
    fields |= {_PLAIN[name]: value for name, value in known.items() if name in _PLAIN}
    if (sampler := known.get("Sampler")) is not None:
        schedule = known.get("Schedule type")
        if schedule is None:  # as before 1.9
            sampler, suffix = split_schedule(sampler)
            schedule = suffix or ("uniform" if "dpm" in sampler.lower() else "automatic")
        fields |= {"sampler": sampler, "schedule": "_".join(schedule.lower().split())}
    if "Size" in known:
        fields["width"], _, fields["height"] = known["Size"].partition("x")
    fields["rng"] = _RNGS.get(known.get("RNG", "GPU").lower(), "cpu")
    return Request.from_text(fields)


def read_request(image: str | os.PathLike[str] | bytes | PIL.Image.Image) -> Request:
    """The request that made a picture, from its path, its bytes or an opened image.

    Those of clipskip give exactly what they were made with, those of A1111 what clipskip has of their settings. Ranges
    are checked when it meets a model. CheckpointError for another or damaged file, and no or broken settings.
    """
    path = None if isinstance(image, (bytes, PIL.Image.Image)) else os.fspath(image)
    try:
        texts = _texts(image if isinstance(image, PIL.Image.Image) else _opened(image))
        if "clipskip" in texts:
            return read_truth(texts["clipskip"])
        if "parameters" in texts:
            return read_parameters(texts["parameters"])
        others = f"; it has {', '.join(repr(name[:40]) for name in sorted(texts)[:5])}" if texts else ""
        raise CheckpointError(f"no settings are in this picture: neither text `clipskip` nor `parameters`{others}")
    except (RequestError, CheckpointError) as error:
        message = error.message if path is None or path in error.message else f"{path}: {error.message}"
        raise CheckpointError(message, path=path, hint=error.hint) from error


def _opened(image: str | os.PathLike[str] | bytes) -> PIL.Image.Image:
    data = image if isinstance(image, bytes) else files.read(image, LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        raise CheckpointError(f"the file has more than {LARGEST_FILE >> 20} MiB")
    try:
        opened = PIL.Image.open(BytesIO(data), formats=FORMATS)
        if small := opened.width * opened.height <= MOST_PIXELS:
            opened.load()  # texts may follow the pixels, and a damaged file shows itself
    except Exception as error:  # Pillow raises anything, from SyntaxError to struct.error, on broken files
        raise CheckpointError(f"no sound PNG, JPEG or WEBP ({type(error).__name__})") from error
    if not small:
        raise CheckpointError(f"{opened.width}x{opened.height} pixels are more than a picture to read back has")
    return opened


def _texts(image: PIL.Image.Image) -> dict[str, str]:
    """All texts of an image, by name; Exif's UserComment counts as `parameters`."""
    texts = {str(name): str(value) for name, value in image.info.items() if isinstance(value, str)}
    try:
        comment = None if "parameters" in texts else image.getexif().get_ifd(_EXIF_IFD).get(_USER_COMMENT)
    except Exception as error:  # as above
        raise CheckpointError(f"its Exif data is broken ({type(error).__name__})") from error
    if isinstance(comment, bytes):
        encoding = "utf-8"  # the comment's first eight bytes name it
        if comment.startswith(b"UNICODE\0"):  # UTF-16, big-endian in A1111's, mostly little-endian elsewhere
            encoding = "utf-16-le" if comment[8:9] and comment[9:10] == b"\0" else "utf-16-be"
        comment = comment[8:].decode(encoding, "replace")
    if comment and isinstance(comment, str):
        texts["parameters"] = comment
    if large := [name for name, text in texts.items() if len(text) > LARGEST_TEXT]:
        raise CheckpointError(f"the text {large[0][:40]!r} has more than 1 MiB")
    return texts


def read_truth(text: str) -> Request:
    """The request in clipskip's own text. CheckpointError for a broken one, or one of another schema."""
    try:
        truth: Any = strict.parse(text.encode("utf-8", "replace"))
    except ManifestError as error:
        raise CheckpointError(f"the text `clipskip` is broken: {error.message[:200]}") from error
    if not isinstance(truth, dict) or type(truth.get("schema")) is not int:
        raise CheckpointError("the text `clipskip` is broken: it is no object with a schema")
    if truth["schema"] != SCHEMA:
        hint = "a newer clipskip may have written it: upgrade"
        raise CheckpointError(f"the text `clipskip` has schema {truth['schema']}; {SCHEMA} is known", hint=hint)
    if not isinstance(truth.get("request"), dict):
        raise CheckpointError("the text `clipskip` is broken: its request is missing")
    return Request.from_json(truth["request"])
