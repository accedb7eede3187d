"""Pictures as files: PNG, JPEG and WEBP with the request that made them, and what is read back from any of them.

Two texts: `parameters`, A1111's, and `clipskip`, the whole as JSON, which is the truth. In JPEG and WEBP they are
Exif's UserComment and ImageDescription. Trusts no file, and knows nothing of what texts mean.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO, TextIOBase
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import PIL.Image
from PIL.PngImagePlugin import PngInfo, iTXt

from clipskip.engines.files import storage_error
from clipskip.engines.manifest import ModelFacts

from . import cells, files, infotext, ledger
from .cells import Cells
from .errors import CheckpointError, RequestError, StorageError
from .fields import TEXT, location, shown, written
from .ledger import Ledger
from .prompt.parts import last
from .request import FIELDS, Request, changed

Target = str | os.PathLike[str] | BinaryIO  # of a picture: a path, or an open binary file
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
LARGEST_TEXT = 1 << 20  # what readers, Pillow among them, accept of one text
LARGEST_FILE = 256 << 20
MOST_PIXELS = 1 << 25
MOST = f"a picture to read back has at most {MOST_PIXELS // 10**6} million"

NEGATIVE = "Negative prompt:"

_QUOTED = set(',:\n"')
_CAPITALS = {"sgm": "SGM", "kl": "KL", "ddim": "DDIM"}
_FILTERS = threading.Lock()  # of warnings: they are the process's
_SIGNATURES = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF")
_EXIF_IFD, _USER_COMMENT, _DESCRIPTION, _XP_COMMENT = 0x8769, 0x9286, 0x010E, 0x9C9C
_MARKS = (b"UNICODE\0", b"ASCII\0\0\0", bytes(8))  # before a UserComment
_OURS = "clipskip: "  # before our JSON, in a description
_QUALITY: dict[str, dict[str, Any]] = {"PNG": {}, "JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}


@dataclass(frozen=True)
class Origin:
    """What made one picture: the resolved request with the picture's own seed, and what it ran on."""

    request: Request
    model: ModelFacts
    engines: Mapping[str, str]  # role -> key of the engine that was used
    inversions: Mapping[str, str] = field(default_factory=dict)  # those that its prompts used: name -> SHA-256
    loras: Mapping[str, str] = field(default_factory=dict)  # likewise
    lora_hashes: Mapping[str, str] = field(default_factory=dict)  # name -> A1111's hash of it

    @property
    def digest(self) -> str:
        """SHA-256 of what makes the picture, on whatever engines: the same on every machine.

        Fields with their defaults are not in it, so that fields of later versions leave it as it is.
        """
        made_of = changed(self.request), self.model.model_sha256, dict(self.inversions), dict(self.loras)
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()

    def texts(self) -> dict[str, str]:
        """The texts of the picture. RequestError above 1 MiB."""
        model = {"name": self.model.name, "sha256": self.model.model_sha256}
        made_with = {"model": model, "engines": dict(self.engines), "inversions": dict(self.inversions)}
        made_with |= {"loras": dict(self.loras)}
        truth = {"schema": ledger.SCHEMA, "request": json.loads(self.request.to_json()), **made_with}
        texts = {"parameters": parameters(self), "clipskip": json.dumps(truth)}
        for name, text in texts.items():
            if len(text.encode()) > LARGEST_TEXT:
                raise RequestError(f"the text {name!r} of the picture would have more than 1 MiB", field="prompt")
        return texts


def parameters(origin: Origin) -> str:
    """A1111's text (1.10) for one picture of a resolved request; as there, defaults are left out from subseed on."""
    request, model = origin.request, origin.model
    sources = list(model.sources.values())
    digest = (sources[0] if len(sources) == 1 else model.model_sha256)[:10]
    skips = {name: last(getattr(request, name), request.steps) for name in ("clip_skip", "negative_clip_skip")}
    values = {name: skips.get(name, getattr(request, name)) for name in FIELDS}
    plain = {name: (field.infotext, written(values[name])) for name, field in FIELDS.items()}
    plain["decoder"] = plain["decoder"][0], ledger.DECODERS.get(request.decoder, request.decoder)
    if request.sampler in ("DDIM", "DDIM CFG++"):
        plain["eta"] = f"{plain['eta'][0]} DDIM", plain["eta"][1]
    settings = [
        plain["steps"],
        ("Sampler", request.sampler),
        ("Schedule type", label(request.schedule)),
        plain["cfg"],
        plain["seed"],
    ]
    settings += [("Size", f"{request.width}x{request.height}"), ("Model hash", digest)]
    left_out = {"steps", "cfg", "seed"} | {name for name in FIELDS if getattr(request, name) == FIELDS[name].default}
    left_out |= set() if request.subseed_strength else {"subseed"}
    kept = {name: model.kept[int(skip or 1) - 1 : int(skip or 1)] or skip for name, skip in skips.items()}
    left_out |= {"clip_skip"} if kept["clip_skip"] == model.kept[:1] else set()
    left_out |= {"negative_clip_skip"} if kept["negative_clip_skip"] == kept["clip_skip"] else set()
    plain["mask_invert"] = "Mask mode", "Inpaint not masked"
    left_out -= {"mask_blur"} if request.mask else set()  # A1111 writes these always
    left_out -= {"mask_padding"} if request.inpaint_area == "Only masked" else set()
    left_out -= {"hires_upscaler"} if request.hires_scale or request.hires_size else set()
    rest = [plain[name] for name, field in FIELDS.items() if field.infotext and name not in left_out]
    rest.append(("RNG", request.rng.upper()))
    for name, digests in (("Lora hashes", origin.lora_hashes), ("TI hashes", origin.inversions)):
        listed = (
            f"{re.sub('[:,]', '', each).strip()}: {digest[: infotext.DIGEST]}" for each, digest in digests.items()
        )
        rest += [(name, ", ".join(listed))] if digests else []
    rest.append(("Version", "clipskip"))
    quoted = [
        f"{name}: {json.dumps(text, ensure_ascii=False) if set(text) & _QUOTED else text}"
        for name, text in [*settings, ("Model", model.name), *rest]
    ]
    prompt = " ".join([request.prompt, *(f"<lora:{each}>" for each in request.loras or ())])
    lines = [prompt, *([f"{NEGATIVE} {request.negative_prompt}"] if request.negative_prompt else [])]
    return "\n".join([*lines, ", ".join(quoted)]).strip()


def label(schedule: str) -> str:
    """What A1111 calls a schedule where people read it."""
    return " ".join(_CAPITALS.get(word, word.capitalize()) for word in schedule.split("_"))


def format_of(path: Path, option: str = "out") -> str:
    """Pillow's name of the format that a path's suffix means. RequestError for another suffix, or none."""
    if (found := FORMATS.get(path.suffix.lower())) is None:
        message = f"pictures are written as {', '.join(FORMATS)}, not {path.suffix or 'without a suffix'}"
        raise RequestError(message, field=option)
    return found


class Described(Protocol):
    """What a picture's file tells of it: the texts by name."""

    def texts(self) -> dict[str, str]: ...


def encode(image: PIL.Image.Image, origin: Described | None, format: str = "PNG", quality: int | None = None) -> bytes:
    """The bytes of a picture's file; without an origin it has no texts.

    JPEG is of quality 95, and WEBP lossless, where no `quality` (0..100) is given; PNG has none.
    """
    if (format := str(TEXT.check("format", format)).upper().replace("JPG", "JPEG")) not in _QUALITY:
        raise RequestError(f"format must be one of {', '.join(_QUALITY)}, not {format!r}", field="format")
    texts, encoded, extra = origin.texts() if origin else {}, BytesIO(), dict(_QUALITY[format])
    extra = extra if quality is None or format == "PNG" else {"quality": quality}
    if format == "PNG":
        extra["pnginfo"] = info = PngInfo()
        for name, text in texts.items():
            (info.add_text if text.isascii() else info.add_itxt)(name, text)
    elif texts:
        extra["exif"] = exif = PIL.Image.Exif()
        exif[_DESCRIPTION] = _OURS + texts["clipskip"]
        if "parameters" in texts:  # a sheet has none
            exif[_EXIF_IFD] = {_USER_COMMENT: _MARKS[0] + texts["parameters"].encode("utf-16-be", "replace")}
    try:
        image.save(encoded, format, **extra)
    except (ValueError, OSError) as error:  # JPEG has 64 KiB for texts and 65500 pixels a side, WEBP 16383
        message = f"this picture cannot be written as {format}: {error}"
        raise RequestError(message, field="format", hint="write a .png") from error
    return encoded.getvalue()


def save(
    image: PIL.Image.Image, target: Target, origin: Described | None, overwrite: bool = True, format: str | None = None
) -> None:
    """Write a picture with its texts, in one step: a path never holds half of one. The suffix says the format.

    An open file gets a PNG. Without `overwrite`, FileExistsError where something is there, also when it came while the
    picture was made. RequestError for an unknown suffix, StorageError for everything else that fails.
    """
    if hasattr(target, "write") and not isinstance(target, TextIOBase):
        target.write(encode(image, origin, format or "PNG"))
        return
    if not isinstance(target, (str, os.PathLike)):
        raise RequestError(f"target must be a path or an open binary file, not {shown(target)}", field="target")
    path = Path(location("target", target))
    write(path, encode(image, origin, format or format_of(path)), overwrite)


def write(path: Path, encoded: bytes, overwrite: bool) -> None:
    """Write a file in one step; errors as in `save`."""
    if overwrite and path.exists() and not path.is_file():
        raise StorageError(f"{path} is there and is no file", path=path)
    draft = path.with_name(f".clipskip-{secrets.token_hex(8)}.tmp")
    try:
        draft.write_bytes(encoded)
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


def read_request(image: str | os.PathLike[str] | bytes | PIL.Image.Image) -> Request:
    """The request that made a picture: `read_ledger` without the account of what it leaves out."""
    return read_ledger(image).request


def read_ledger(image: str | os.PathLike[str] | bytes | PIL.Image.Image, cell: Sequence[int] | None = None) -> Ledger:
    """The request that made a picture, from its path, its bytes or an opened image; or from a .txt file beside one.

    `cell`: that of a sheet, by its place along x, y and z, counted from 1.

    Pictures of clipskip give exactly what they were made with, those with A1111's text what clipskip has of their
    settings, and the account of the others. Ranges are checked when the request meets a model. CheckpointError for
    another or damaged file, no or broken settings, and pictures of programs with texts of their own, by their name.
    """
    told = read_any(image)
    if isinstance(told, Ledger) and cell is None:
        return told
    path = os.fspath(image) if isinstance(image, (str, os.PathLike)) else None
    if isinstance(told, Ledger):
        raise CheckpointError("this is one picture, and no sheet with cells", path=path, field="cell")
    try:
        return told.ledger(cell)
    except CheckpointError as error:
        raise error.about(path) if path else error from None


def read_any(image: str | os.PathLike[str] | bytes | PIL.Image.Image) -> Ledger | Cells:
    """As `read_ledger`; of a sheet all cells."""
    path = os.fspath(image) if isinstance(image, (str, os.PathLike)) else None
    try:
        data = image if path is None else files.read(path, LARGEST_FILE + 1)
        if not isinstance(data, (bytes, PIL.Image.Image)):
            raise RequestError(f"image must be a path, bytes or an opened image, not {shown(image)}", field="image")
        if isinstance(data, bytes) and len(data) > LARGEST_FILE:
            raise CheckpointError(f"the file has more than {LARGEST_FILE >> 20} MiB")
        if isinstance(data, bytes) and not data.startswith(_SIGNATURES) and len(data) <= LARGEST_TEXT:
            for text in _decoded(data):
                if (info := infotext.read(text)) is not None:
                    return ledger.of_text(info)
        with _FILTERS, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of what is odd in Exif
            return _in_picture(_opened(data) if isinstance(data, bytes) else data)
    except (RequestError, CheckpointError) as error:
        message = error.message if path is None or path in error.message else f"{path}: {error.message}"
        raise CheckpointError(message, path=path, field=error.field, hint=error.hint) from error


def _opened(data: bytes) -> PIL.Image.Image:
    try:
        opened = PIL.Image.open(BytesIO(data), formats=tuple(_QUALITY))
        if small := opened.width * opened.height <= MOST_PIXELS:
            opened.load()  # texts may follow the pixels, and a damaged file shows itself
    except PIL.Image.DecompressionBombError as error:  # so large that Pillow does not tell its size
        raise CheckpointError(f"it has far too many pixels; {MOST}") from error
    except Exception as error:  # Pillow raises anything, from SyntaxError to struct.error, on broken files
        message = f"no sound PNG, JPEG or WEBP ({type(error).__name__}), and no text with a line of settings"
        raise CheckpointError(message) from error
    if not small:
        raise CheckpointError(f"it has {opened.width}x{opened.height} pixels; {MOST}")
    return opened


def texts_in(data: bytes) -> tuple[dict[str, str], list[str]]:
    """The texts of a picture's file by name, and those in Exif. CheckpointError for what is no sound picture."""
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _texts(_opened(data))


def _texts(image: PIL.Image.Image) -> tuple[dict[str, str], list[str]]:
    texts = {str(name): str(value) for name, value in image.info.items() if isinstance(value, str)}
    for name, value in texts.items():
        with suppress(UnicodeError):  # a PNG's text is Latin-1, but many programs write UTF-8
            texts[name] = value if isinstance(image.info[name], iTXt) else value.encode("latin-1").decode()
    try:
        comments, description = list(_comments(image)), str(image.getexif().get(_DESCRIPTION, ""))
    except Exception as error:  # as above
        raise CheckpointError(f"its Exif data is broken ({type(error).__name__})") from error
    if large := [name for name, text in _all(texts, comments).items() if len(text) > LARGEST_TEXT]:
        raise CheckpointError(f"the text {large[0][:40]!r} has more than 1 MiB")
    if description.startswith(_OURS):
        texts.setdefault("clipskip", description.removeprefix(_OURS))
    return texts, comments


def _all(texts: Mapping[str, str], comments: list[str]) -> dict[str, str]:
    return {**texts, **{f"Exif {number}": text for number, text in enumerate(comments)}}


def _in_picture(image: PIL.Image.Image) -> Ledger | Cells:
    texts, comments = _texts(image)
    if "clipskip" in texts:
        return cells.of_truth(texts["clipskip"]) or ledger.of_truth(texts["clipskip"])
    for text in (texts.get("parameters", ""), *comments):
        if (info := infotext.read(text)) is not None:
            return ledger.of_text(info)
    if (program := ledger.foreign(_all(texts, comments))) is not None:
        hint = "clipskip reads its own, and AUTOMATIC1111's, which Civitai, Forge, SD.Next and others write as well"
        raise CheckpointError(f"this picture is {program}'s, whose settings are not supported", hint=hint)
    if "parameters" in texts or comments:
        raise CheckpointError("the text `parameters` has no line of settings (Steps: ..., Sampler: ..., Seed: ...)")
    others = f"; it has {', '.join(repr(name[:40]) for name in sorted(texts)[:5])}" if texts else ""
    raise CheckpointError(f"no settings are in this picture: neither text `clipskip` nor `parameters`{others}")


def _comments(image: PIL.Image.Image) -> Iterator[str]:
    """What stands where programs put comments in Exif, in every encoding that it may have."""
    exif = image.getexif()
    first = [exif.get(tag) for tag in (_USER_COMMENT, _DESCRIPTION, _XP_COMMENT)]
    for value in (exif.get_ifd(_EXIF_IFD).get(_USER_COMMENT), *first, image.info.get("comment")):
        comment = value.encode("latin-1", "replace") if isinstance(value, str) else value
        if isinstance(comment, bytes):
            yield from _decoded(comment[8:] if comment.startswith(_MARKS) else comment)


def _decoded(data: bytes) -> Iterator[str]:
    """The text in UTF-8, UTF-16 of either byte order (the last byte may be lost), and Western Windows' encoding."""
    with suppress(UnicodeDecodeError):
        yield data.decode("utf-8")
    even = len(data) & ~1
    yield data[:even].decode("utf-16-be", "replace")
    yield (data + bytes(len(data) % 2)).decode("utf-16-le", "replace")
    yield data.decode("cp1252", "replace")
