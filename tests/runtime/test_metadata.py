"""Requests that travel in image files, and files that are damaged, hostile or about something else."""

from __future__ import annotations

import errno
import io
import json
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.ImageChops
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pace import pace
from PIL.PngImagePlugin import PngInfo
from strategies import requests

from clipskip import metadata
from clipskip.engines.manifest import ModelFacts
from clipskip.errors import CheckpointError, RequestError, StorageError
from clipskip.metadata import Origin, encode, read_ledger, read_request, save
from clipskip.request import Request

MODEL = ModelFacts("sample", "sd1", 12, 768, 49408, "epsilon", 8.5e-4, 0.012, 1000, 0.18, 512, 64, 2, "b" * 64, {})
ENGINES = {"text-11": "c" * 64, "step": "d" * 64}
RESOLVED = Request(prompt="a cat", clip_skip=2, negative_clip_skip=2, seed=7, subseed=9, width=64, height=64)
ORIGIN = Origin(RESOLVED, MODEL, ENGINES)
PIXELS = PIL.Image.new("RGB", (8, 8), "red")
A1111 = "a cat\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 64x64, Clip skip: 2"


def origin(request: Request) -> Origin:
    return replace(ORIGIN, request=request)


def png(info: PngInfo | None = None) -> bytes:
    buffer = io.BytesIO()
    PIXELS.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def with_text(**texts: str) -> bytes:
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    return png(info)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunks(*chunks: bytes, size: tuple[int, int] = (8, 8), after: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" * 9 * 8))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + body + after + chunk(b"IEND", b"")


def test_a_saved_picture_gives_its_request_back_from_path_bytes_and_image(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    save(PIXELS, path, ORIGIN)
    assert read_request(path) == read_request(str(path)) == read_request(path.read_bytes()) == RESOLVED
    with PIL.Image.open(path) as opened:
        assert read_request(opened) == RESOLVED
        assert opened.text["parameters"] == metadata.parameters(ORIGIN)  # type: ignore[attr-defined]
        truth = json.loads(opened.text["clipskip"])  # type: ignore[attr-defined]
    assert truth["engines"] == ENGINES
    assert truth["model"] == {"name": "sample", "sha256": "b" * 64}


@given(requests())
def test_every_request_comes_back_exactly(request: Request) -> None:
    assert read_request(encode(PIXELS, origin(request))) == request


@pytest.mark.parametrize(
    "prompt",
    [
        "🧑‍🚀 on 🪐",
        "‮right to left‬ שלום עולם",
        "two\nlines\r\n\tand a tab ",
        "a cat\nNegative prompt: not the negative\nSteps: 1, Sampler: Euler, Clip skip: 12",
        "Steps: 1, Sampler: Euler, CFG scale: 1, Seed: 1, Size: 8x8",
        'ein Käse, für 5 €; "quoted" \\ (a:1.2) [b|c] <lora:d:1>',
        "",
        " ",
    ],
)
def test_prompts_that_confuse_a_text_format_come_back_exactly_d36(prompt: str) -> None:
    request = replace(RESOLVED, prompt=prompt, negative_prompt=prompt[::-1])
    assert read_request(encode(PIXELS, origin(request))) == request


def test_the_largest_prompts_fit_and_larger_texts_are_never_written_d44() -> None:
    for longest in ("\x01" * 65536, "é" * 32768, "😀" * 16384):
        request = replace(RESOLVED, prompt=longest, negative_prompt=longest)
        assert read_request(encode(PIXELS, origin(request))) == request
    with pytest.raises(RequestError, match="more than 1 MiB"):
        encode(PIXELS, origin(replace(RESOLVED, prompt="a" * 2**20)))


def test_an_existing_file_is_replaced_and_no_draft_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    for seed in (1, 2):
        save(PIXELS, path, origin(replace(RESOLVED, seed=seed)))
    assert read_request(path).seed == 2
    assert os.listdir(tmp_path) == ["x.png"]


def save_new(path: Path, seed: int = 1) -> None:
    save(PIXELS.copy(), path, origin(replace(RESOLVED, seed=seed)), overwrite=False)


def no_links(source: object, target: object) -> None:
    raise OSError(errno.EPERM, "no links on this file system")


@pytest.fixture(params=["links", "no links"])
def file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "no links":
        monkeypatch.setattr(os, "link", no_links)


@pytest.mark.usefixtures("file_system")
def test_without_overwriting_a_new_file_is_made_and_what_is_there_is_kept_d45(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    save_new(path, seed=1)
    (tmp_path / "folder.png").mkdir()
    for taken in (path, tmp_path / "folder.png"):
        with pytest.raises(FileExistsError) as caught:
            save_new(taken, seed=2)
        assert caught.value.filename == str(taken)
    assert read_request(path).seed == 1
    assert sorted(os.listdir(tmp_path)) == ["folder.png", "x.png"]


@pytest.mark.usefixtures("file_system")
def test_of_two_that_save_under_one_name_at_once_one_wins_and_the_other_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.png"

    def attempt(seed: int) -> bool:
        try:
            save_new(path, seed)
        except FileExistsError:
            return False
        return True

    for _ in range(10):
        with ThreadPoolExecutor(4) as pool:
            won = list(pool.map(attempt, range(4)))
        assert won.count(True) == 1
        assert read_request(path).seed == won.index(True)
        path.unlink()
    assert os.listdir(tmp_path) == []


def test_half_a_picture_does_not_stay_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> bytes:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(Path, "read_bytes", full)
    with pytest.raises(StorageError, match="no room"):
        save_new(tmp_path / "x.png")
    assert os.listdir(tmp_path) == []


def test_a_target_that_the_system_holds_on_to_is_a_storage_error_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Windows does while a viewer shows the picture."""

    def held(source: object, target: object) -> None:
        raise PermissionError(errno.EACCES, "Access is denied")

    path = tmp_path / "x.png"
    save_new(path, seed=1)
    monkeypatch.setattr(os, "replace", held)
    with pytest.raises(StorageError, match=r"x\.png is there and cannot be replaced \(Access is denied\)") as caught:
        save(PIXELS, path, ORIGIN)
    assert caught.value.path == str(path)
    assert "close it in other programs" in str(caught.value)
    assert read_request(path).seed == 1
    assert os.listdir(tmp_path) == ["x.png"]


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("place", ["missing/x.png", "folder.png", "file/x.png"])
def test_a_picture_that_cannot_be_written_is_a_storage_error_and_leaves_nothing_d45(
    tmp_path: Path, place: str, overwrite: bool
) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    error = FileExistsError if place == "folder.png" and not overwrite else StorageError
    with pytest.raises(error) as caught:
        save(PIXELS, tmp_path / place, ORIGIN, overwrite)
    assert getattr(caught.value, "exit_status", 7) == 7
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.png"]


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "pipe.png"
    os.mkfifo(path)
    with pytest.raises(StorageError, match="is there and is no file"):
        save(PIXELS, path, ORIGIN)
    assert path.is_fifo()


def test_the_json_is_the_truth_where_the_two_texts_differ() -> None:
    both = PngInfo()
    for name, text in {**ORIGIN.texts(), "parameters": A1111}.items():
        both.add_text(name, text)
    assert read_request(png(both)) == RESOLVED


def test_a_picture_of_a1111_is_read_from_its_text() -> None:
    for data in (with_text(parameters=A1111), with_text(parameters=A1111 + ", Unknown: 😀", workflow="{}")):
        found = read_request(data)
        assert (found.prompt, found.negative_prompt, found.clip_skip, found.seed) == ("a cat", "blurry", 2, 5)


def test_a_text_after_the_pixels_is_found() -> None:
    data = with_chunks(after=chunk(b"tEXt", b"parameters\0" + A1111.encode()))
    assert read_request(data).seed == 5


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + A1111.replace("cat", "🐈").encode("utf-16-be"),
        b"UNICODE\0" + A1111.replace("cat", "🐈").encode("utf-16-le"),
        b"ASCII\0\0\0" + A1111.replace("cat", "🐈").encode(),
    ],
)
def test_a_jpeg_or_webp_carries_the_text_in_its_exif_comment(kind: str, comment: bytes) -> None:
    exif = PIL.Image.Exif()
    exif[0x8769] = {0x9286: comment}
    buffer = io.BytesIO()
    PIXELS.save(buffer, kind, exif=exif)
    found = read_request(buffer.getvalue())
    assert (found.prompt, found.seed, found.clip_skip) == ("a 🐈", 5, 2)


def test_an_image_in_memory_is_read_by_what_it_carries() -> None:
    image = PIXELS.copy()
    with pytest.raises(CheckpointError, match="no settings are in this picture"):
        read_request(image)
    image.info["parameters"] = A1111
    assert read_request(image).seed == 5


@pytest.mark.parametrize("image", [3, None, ["a.png"], bytearray(b"a")])
def test_what_is_no_picture_at_all_is_refused_with_what_is_taken(image: Any) -> None:
    with pytest.raises(CheckpointError, match="image must be a path, bytes or an opened image, not") as caught:
        read_request(image)
    assert caught.value.field == "image"


def test_a_picture_without_settings_is_refused_naming_what_it_has() -> None:
    with pytest.raises(CheckpointError, match="it has 'prompt', 'workflow'"):
        read_request(with_text(workflow="{}", prompt="{}"))


def truth(**changes: Any) -> str:
    whole: dict[str, Any] = {"schema": 1, "request": {"prompt": "a cat"}, "model": {}, "engines": {}}
    return json.dumps(whole | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "nested deeper"),
        ('{"schema": 1, "request": ' + '{"a":' * 100_000, "nested deeper"),
        ('"' + '\\"' * 400_000, "not valid JSON"),
        ("[]", "no object"),
        ("null", "no object"),
        (truth(schema=True), "no object with a schema"),
        (truth(schema=2), "has schema 2; 1 is known"),
        (truth(request=None), "its request is missing"),
        (truth(request=[]), "its request is missing"),
        (truth(request={}), "'prompt' is missing"),
        (truth(request={"prompt": 5}), "prompt must be a string"),
        (truth(request={"prompt": "", "steps": "20"}), "steps must be a whole number"),
        (truth(request={"prompt": "", "steps": True}), "steps must be a whole number"),
        (truth(request={"prompt": "", "clip_skip": [2]}), "clip_skip must be 1..13"),
        (truth(request={"prompt": "", "extra": 1}), "unknown field 'extra'"),
        (truth(request={"prompt": "", "cfg": float("nan")}), "NaN is not a number"),
        (truth().replace('"schema": 1', '"schema": 1, "schema": 1'), "twice"),
    ],
)
def test_a_broken_truth_is_refused_and_the_other_text_does_not_stand_in(text: str, message: str) -> None:
    data = with_text(clipskip=text, parameters=A1111)
    with pytest.raises(CheckpointError) as caught:
        read_request(data)
    assert message in caught.value.message
    assert caught.value.exit_status == 3
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "broken", ["Steps: many", "Steps: 5, Seed: 1.5, CFG scale: 7", "Steps: 5, Size: 8, Seed: 1", "no settings"]
)
def test_a_broken_parameters_text_is_a_bad_file_not_a_bad_request(broken: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_request(with_text(parameters=f"a cat\n{broken}"))
    assert caught.value.exit_status == 3


BOMB = zlib.compress(b"x" * (2 << 20), 9)
HOSTILE = {
    "a 2 MiB zTXt": with_chunks(chunk(b"zTXt", b"parameters\0\0" + BOMB)),
    "a 2 MiB iTXt": with_chunks(chunk(b"iTXt", b"parameters\0\1\0\0\0" + BOMB)),
    "a 2 MiB tEXt": with_chunks(chunk(b"tEXt", b"parameters\0" + b"x" * (2 << 20))),
    "65 MiB of tEXt": with_chunks(*[chunk(b"tEXt", b"k%d\0" % i + b"x" * (1 << 20)) for i in range(66)]),
    "a chunk longer than the file": with_chunks(struct.pack(">I", 2**31 - 1) + b"tEXtparameters\0"),
    "a text with a wrong checksum": with_chunks(chunk(b"tEXt", b"parameters\0x")[:-4] + b"\0\0\0\0"),
    "a broken zTXt": with_chunks(chunk(b"zTXt", b"parameters\0\0" + b"garbage"), chunk(b"zTXt", b"clipskip\0\7x")),
    "30,000 x 30,000 pixels": with_chunks(size=(30_000, 30_000)),
    "10,000 x 10,000 pixels": with_chunks(size=(10_000, 10_000)),
    "6,000 x 6,000 pixels": with_chunks(size=(6_000, 6_000)),
    "no pixels": with_chunks(size=(0, 0)),
    "only a signature": b"\x89PNG\r\n\x1a\n",
    "nothing": b"",
    "text": b"Steps: 20, Sampler: Euler a",
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "a GIF": b"GIF89a\1\0\1\0\0\0\0,\0\0\0\0\1\0\1\0\0\2\2D\1\0;",
    "a BMP": b"BM" + bytes(100),
    "a JPEG without pixels": b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0\xff\xd9",
    "a WEBP without pixels": b"RIFF\x20\0\0\0WEBPVP8 " + bytes(24),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_or_foreign_file_is_refused_at_once_d44(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(HOSTILE[name])

    def refused() -> None:
        with pytest.raises(CheckpointError) as caught:
            read_request(path)
        assert (caught.value.exit_status, caught.value.path) == (3, str(path))
        assert str(path) in caught.value.message

    assert pace(refused) < 150


def test_a_picture_cut_anywhere_is_refused() -> None:
    whole = encode(PIXELS, origin(RESOLVED))
    for length in range(0, len(whole) - 20, 7):  # checksums and the end mark, which readers do without, have 20 bytes
        with pytest.raises(CheckpointError):
            read_request(whole[:length])


@given(st.integers(8, 1500), st.binary(min_size=1, max_size=4))
def test_a_damaged_picture_gives_a_request_or_a_checkpoint_error_and_nothing_else(place: int, damage: bytes) -> None:
    whole = with_text(parameters=A1111, clipskip=truth())
    with suppress(CheckpointError):
        assert isinstance(read_request(whole[:place] + damage + whole[place + len(damage) :]), Request)


@given(st.binary(max_size=300))
def test_a_damaged_exif_gives_a_request_or_a_checkpoint_error_and_nothing_else(damage: bytes) -> None:
    buffer = io.BytesIO()
    PIXELS.save(buffer, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0" + damage)
    with suppress(CheckpointError):
        assert isinstance(read_request(buffer.getvalue()), Request)


def test_a_wrong_number_of_tags_in_exif_is_nothing_to_warn_of() -> None:
    """Pillow warns of it, and a warning is an error here."""
    exif, buffer = PIL.Image.Exif(), io.BytesIO()
    exif[0x010E], exif[0x9286] = "some description", b"ASCII\0\0\0" + A1111.encode()
    PIXELS.save(buffer, "JPEG", exif=exif)
    data = bytearray(buffer.getvalue())
    data[data.index(b"Exif\0\0") + 15] = 0xFF  # the number of tags
    with pytest.warns(UserWarning, match="Corrupt EXIF data"):
        PIL.Image.open(io.BytesIO(data)).getexif().get(0x010E)
    assert read_request(bytes(data)).seed == 5


@pytest.mark.parametrize("place", ["missing.png", ".", "pipe"])
def test_what_is_no_file_is_refused_without_waiting(place: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError):
        read_request(tmp_path / place)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG", ".webp"])
def test_every_format_carries_both_texts_and_gives_the_request_back(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    made = replace(ORIGIN, request=replace(RESOLVED, prompt="夜の街 🌃 Ã©, rain\nred"), inversions={"ring": "e" * 64})
    save(PIXELS, path, made)
    found = read_ledger(path)
    assert (found.request, found.program, found.model) == (made.request, "clipskip", "sample")
    assert (found.model_hash, found.inversions) == ("b" * 64, {"ring": "e" * 64})
    with PIL.Image.open(path) as opened:
        assert opened.format == metadata.FORMATS[suffix.lower()]
        comment = opened.getexif().get_ifd(0x8769).get(0x9286, b"")
        text = opened.info.get("parameters") or comment.removeprefix(b"UNICODE\0").decode("utf-16-be")
    assert text == metadata.parameters(made)
    assert 'TI hashes: "ring: eeeeeeeeeeee"' in text


@pytest.mark.parametrize("format", ["png", "JPEG", "jpg", "webp"])
def test_without_our_own_text_a1111s_gives_the_request_back(format: str) -> None:
    """As where a site keeps only the texts that it knows; what is not in A1111's text is lost."""
    request = replace(RESOLVED, subseed=None, prompt="a café, Ã© 🌃", rng="nv")
    image = PIL.Image.open(io.BytesIO(encode(PIXELS, origin(request), format)))
    del (image.getexif() if image.format != "PNG" else image.info)[0x010E if image.format != "PNG" else "clipskip"]
    found = read_ledger(image)
    assert replace(found.request, negative_clip_skip=2) == replace(request, schedule="automatic")
    assert found.notes(MODEL) == []


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"sampler": "Euler a", "eta": 0.5}, "Eta: 0.5"),
        ({"sampler": "DDIM", "eta": 0.5}, "Eta DDIM: 0.5"),
        ({"sampler": "Heun", "s_churn": 5.0, "s_noise": 1.1}, "Sigma churn: 5, Sigma noise: 1.1"),
        ({"sampler": "Euler", "schedule": "kl_optimal", "sigma_min": 0.1}, "Schedule min sigma: 0.1"),
        ({"sampler": "LMS", "sigmas": (14.6, 7.0), "steps": 2}, 'Sigmas: "14.6,7"'),
        ({"sampler": "DPM++ 2S a", "schedule": "align_your_steps"}, "Schedule type: Align Your Steps"),
    ],
)
def test_samplers_and_their_settings_are_written_by_a1111s_names_and_read_back(
    settings: dict[str, Any], told: str
) -> None:
    text = metadata.parameters(origin(replace(RESOLVED, **settings)))
    assert f", {told}" in text
    found = read_ledger(text.encode()).request
    assert {name: getattr(found, name) for name in settings} == settings


def test_lossless_formats_keep_every_pixel_and_a_jpeg_nearly(tmp_path: Path) -> None:
    pixels = PIL.Image.effect_noise((64, 64), 40).convert("RGB")
    for suffix, most in ((".png", 0), (".webp", 0), (".jpg", 24)):
        save(pixels, tmp_path / f"x{suffix}", ORIGIN)
        with PIL.Image.open(tmp_path / f"x{suffix}") as opened:
            difference = PIL.ImageChops.difference(pixels, opened.convert("RGB"))
        assert max(high for _, high in difference.getextrema()) <= most


@pytest.mark.parametrize("name", ["x.gif", "x", "x.png.tmp", ".png"])
def test_an_unknown_suffix_is_refused_naming_those_that_there_are(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match=r"\.png, \.jpg, \.jpeg, \.webp, not"):
        save(PIXELS, tmp_path / name, ORIGIN)
    with pytest.raises(RequestError, match="format must be one of PNG, JPEG, WEBP"):
        encode(PIXELS, ORIGIN, "gif")
    assert os.listdir(tmp_path) == []


def test_what_is_too_long_for_a_format_is_refused_with_a_hint() -> None:
    longest = origin(replace(RESOLVED, prompt="a " * 30_000))
    wide = PIL.Image.new("RGB", (70_000, 1))
    for image, made, format in ((PIXELS, longest, "JPEG"), (wide, ORIGIN, "JPEG"), (wide, ORIGIN, "WEBP")):
        with pytest.raises(RequestError, match=f"cannot be written as {format}: ") as caught:
            encode(image, made, format)
        assert caught.value.hint == "write a .png"
    assert read_request(encode(PIXELS, longest, "WEBP")) == longest.request


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt"])
def test_utf_8_in_a_text_that_should_be_latin_1_is_read_and_latin_1_stays(kind: bytes) -> None:
    for encoding in ("utf-8", "latin-1"):
        text = A1111.replace("a cat", "ein Kätzchen").encode(encoding)
        data = b"parameters\0" + (text if kind == b"tEXt" else b"\0" + zlib.compress(text))
        assert read_request(with_chunks(chunk(kind, data))).prompt == "ein Kätzchen"


def tiff(payload: bytes, order: str, first: bool, kind: int) -> bytes:
    """Exif whose only entry is a UserComment: in its own directory, or in the first."""
    comment = struct.pack(f"{order}HHHII", 1, 0x9286, kind, len(payload), 26 if first else 44) + bytes(4) + payload
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    return head + (comment if first else struct.pack(f"{order}HHHII", 1, 0x8769, 4, 1, 26) + bytes(4) + comment)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
@pytest.mark.parametrize("encoding", ["utf-16-be", "utf-16-le", "utf-16", "utf-8", "utf-8-sig"])
def test_a_comment_is_read_wherever_and_however_it_was_written(kind: str, encoding: str) -> None:
    body = A1111.replace("a cat", "夜の街 🌃").encode(encoding)
    for mark in (b"UNICODE\0", bytes(8), b"ASCII\0\0\0", b""):
        for order, first, type_ in (("<", False, 7), (">", True, 7), (">", False, 1), ("<", True, 2)):
            block = tiff(mark + body + bytes(2), order, first, type_)
            buffer = io.BytesIO()
            PIXELS.save(buffer, kind, exif=(b"Exif\0\0" if kind == "JPEG" else b"") + block)
            found = read_request(buffer.getvalue())
            assert (found.prompt, found.seed, found.clip_skip) == ("夜の街 🌃", 5, 2), (mark, order, first, type_)


@given(
    st.sampled_from([b"", b"UNICODE\0", b"ASCII\0\0\0"]), st.text(max_size=80), st.sampled_from(["utf-8", "utf-16-le"])
)
def test_no_file_of_text_gives_anything_but_a_request_or_a_checkpoint_error(head: bytes, text: str, code: str) -> None:
    line = f"{text}, Steps: 5, Seed: 3, {text}: {text}, CFG scale: 7"
    for data in (text.encode(code, "replace"), line.encode(code, "replace")):
        with suppress(CheckpointError):
            assert isinstance(read_request(head + data), Request)
