"""Fonts of sheets: which one is taken, what it lacks, and where lines end."""

import sys
import warnings

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from clipskip.errors import CheckpointError
from clipskip.lettering import Lettering, lettering

CAT = "猫"


def font_with(path, characters):
    """A font whose characters are boxes of their own, and a larger box for all others."""
    names = {ord(character): f"u{ord(character)}" for character in characters}
    glyphs = {}
    for number, name in enumerate([".notdef", *names.values()]):
        pen, side = TTGlyphPen(None), 600 - 20 * number
        pen.moveTo((0, 0))
        for corner in ((side, 0), (side, side), (0, side)):
            pen.lineTo(corner)
        pen.closePath()
        glyphs[name] = pen.glyph()
    font = FontBuilder(1000)
    font.setupGlyphOrder(list(glyphs))
    font.setupCharacterMap(names)
    font.setupGlyf(glyphs)
    font.setupHorizontalMetrics(dict.fromkeys(glyphs, (700, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    path.parent.mkdir(parents=True, exist_ok=True)
    font.save(path)
    return path


def test_pillows_own_font_is_enough_for_labels_of_fields():
    assert lettering(["clip_skip 1 · cafe"], 12).file is None


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="its fonts lie elsewhere")
def test_a_font_of_the_system_is_taken_that_has_the_characters(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    (tmp_path / "fonts").mkdir()
    (tmp_path / "fonts" / "NotoSansCJK-Broken.ttf").write_bytes(b"\0\1\0\0 and nothing more")
    file = font_with(tmp_path / "fonts" / "deep" / "NotoSansCJK-Regular.ttf", CAT + "a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lettering([CAT], 12).file == file


def test_what_a_font_lacks_is_said_and_is_no_box(tmp_path):
    file = font_with(tmp_path / "own.ttf", "a?")
    with pytest.warns(RuntimeWarning, match=rf"the font lacks {CAT}: drawn as \?"):
        letters = lettering([f"a{CAT}"], 12, file)
    assert letters.fitted(f"a{CAT}a", 1000) == "a?a"


@pytest.mark.parametrize("data", [b"", b"no font", b"\0\1\0\0" + bytes(40)])
def test_a_file_that_is_no_font_is_refused(tmp_path, data):
    (tmp_path / "x.ttf").write_bytes(data)
    with pytest.raises(CheckpointError, match="no font"):
        lettering(["a"], 12, tmp_path / "x.ttf")


def test_a_font_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="is missing"):
        lettering(["a"], 12, tmp_path / "x.ttf")


@pytest.mark.parametrize("text", ["a large red circle on a green background", "x" * 90, CAT * 40, f"a {CAT * 20} b"])
def test_lines_fit_and_no_character_is_lost(text):
    letters = Lettering(12)
    lines = letters.fitted(text, 100).split("\n")
    assert len(lines) > 1
    assert all(letters.font.getlength(line) <= 100 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")


def test_more_lines_than_there_is_room_for_end_in_dots():
    lines = Lettering(12).fitted("a large red circle on a green background", 100, 2).split("\n")
    assert len(lines) == 2
    assert lines[1].endswith("…")


def test_a_prompt_of_64_kilobytes_is_laid_out_at_once():
    assert len(Lettering(12).fitted("x" * 65536, 60, 3).split("\n")) == 3


def test_who_has_no_home_gets_letters_all_the_same(monkeypatch):
    def none(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.home", none)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", str)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert lettering([CAT], 12).size == 12
