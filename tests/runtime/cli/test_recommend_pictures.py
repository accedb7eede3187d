"""The captioned pictures of `clipskip recommend`: how they are read, and for which model the answer is written."""

from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from clipskip.__main__ import main
from clipskip.cli.recommend import _captioned, _read
from clipskip.engines import publish
from clipskip.engines.store import read_manifest
from clipskip.errors import CheckpointError, EngineIncompatible, RequestError
from clipskip.recommend import LEAST, Verdict


def folder_of(path: Path, count: int = LEAST) -> Path:
    """A folder with so many captioned pictures."""
    path.mkdir()
    for number in range(count):
        PIL.Image.new("RGB", (8, 8)).save(path / f"{number}.png")
        (path / f"{number}.txt").write_text(f"ring {number}")
    return path


def test_a_photo_that_lies_on_its_side_is_measured_upright(tmp_path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    PIL.Image.new("RGB", (20, 10)).save(tmp_path / "a.jpg", exif=exif)
    ((picture, caption),) = _read([(tmp_path / "a.jpg", "a ring")])
    assert (picture.size, caption) == ((10, 20), "a ring")


def test_what_is_broken_is_refused_by_name_before_anything_is_measured(tmp_path: Path) -> None:
    PIL.Image.effect_noise((300, 300), 50).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    second = whole.index(b"IDAT", whole.index(b"IDAT") + 4)
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    folder = folder_of(tmp_path / "pictures")
    for data in (whole[:second] + b"I\0AT" + whole[second + 4 :], whole[:-40], postscript):
        (folder / "7.png").write_bytes(data)
        with pytest.raises(CheckpointError, match=r"7\.png or its caption cannot be read"):
            _captioned(folder)
    (folder / "7.png").write_bytes(whole)
    (folder / "9.txt").write_bytes("Größe".encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"9\.png or its caption cannot be read: 'utf-8'"):
        _captioned(folder)


def test_what_is_left_out_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_of(tmp_path / "pictures", LEAST + 1)
    (folder / "3.txt").write_text(" \n")
    for name in ("3.jpg", "7.jpg", "alone.jpg", "alone too.jpg"):
        PIL.Image.new("RGB", (8, 8)).save(folder / name)
    captioned, left_out = _captioned(folder)
    assert len(captioned) == LEAST
    assert (folder / "7.jpg", "ring 7") in captioned
    assert left_out == {"with an empty caption": 2, "with another's caption": 1, "with no caption": 2}
    assert f"left out of {LEAST + 5} pictures: " in capsys.readouterr().err
    (folder / "5.txt").unlink()
    with pytest.raises(RequestError, match=f"has {LEAST - 1} captioned pictures") as caught:
        _captioned(folder)
    assert "3 with no caption" in str(caught.value)


def test_a_picture_that_breaks_off_ends_no_measurement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    PIL.Image.effect_noise((300, 300), 50).save(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:3000])
    assert [caption for _, caption in _read([(tmp_path / "b.jpg", "b"), (tmp_path / "a.jpg", "a")])] == ["a"]
    assert "left out: cannot use b.jpg" in capsys.readouterr().err


def test_no_answer_is_written_and_that_is_said(
    sample_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verdict = Verdict((1, 2), np.random.default_rng(0).standard_normal((LEAST, 2)))
    monkeypatch.setattr("clipskip.cli.recommend.recommend", lambda *_: verdict)
    monkeypatch.delattr(publish, "recommend")
    folder = folder_of(tmp_path / "pictures")
    for asked, said in ([], ""), (["--write"], "nothing is written: there is no answer\n"):
        assert main(["recommend", str(sample_store), "--pictures", str(folder), *asked]) == 0
        assert capsys.readouterr().out.endswith(f"clip skips 1, 2 are alike\n{said}")


def test_an_answer_is_written_for_the_model_alone_that_was_measured(sample_store: Path) -> None:
    before = read_manifest(sample_store)
    with pytest.raises(EngineIncompatible, match="another model than the one that was measured"):
        publish.recommend(sample_store, "0" * 64, 3, "measured")
    assert read_manifest(sample_store) == before
