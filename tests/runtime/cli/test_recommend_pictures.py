"""The captioned pictures of `clipskip recommend`: how they are read, and for which model the answer is written."""

from pathlib import Path

import PIL.Image
import pytest

from clipskip.cli.recommend import _read
from clipskip.engines import publish
from clipskip.engines.store import read_manifest
from clipskip.errors import CheckpointError, EngineIncompatible


def captioned(path: Path, data: bytes = b"") -> list[Path]:
    path.with_suffix(".txt").write_text("a ring")
    if data:
        path.write_bytes(data)
    return [path]


def test_a_photo_that_lies_on_its_side_is_measured_upright(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    PIL.Image.new("RGB", (20, 10)).save(tmp_path / "a.jpg", exif=exif)
    ((picture, caption),) = _read(captioned(tmp_path / "a.jpg"))
    assert (picture.size, caption) == ((10, 20), "a ring")


def test_a_picture_that_breaks_off_or_is_a_program_is_refused_by_name(tmp_path: Path) -> None:
    PIL.Image.effect_noise((300, 300), 50).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    second = whole.index(b"IDAT", whole.index(b"IDAT") + 4)
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    for data in (whole[:second] + b"I\0AT" + whole[second + 4 :], postscript):
        with pytest.raises(CheckpointError, match=r"b\.png or its caption cannot be read"):
            list(_read(captioned(tmp_path / "b.png", data)))


def test_an_answer_is_written_for_the_model_alone_that_was_measured(sample_store: Path) -> None:
    before = read_manifest(sample_store)
    with pytest.raises(EngineIncompatible, match="another model than the one that was measured"):
        publish.recommend(sample_store, "0" * 64, 3, "measured")
    assert read_manifest(sample_store) == before
