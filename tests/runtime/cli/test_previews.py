"""`generate --preview FILE`: one file that shows what is in the making, whole at every moment."""

import json
import os
import shutil
from types import SimpleNamespace

import PIL.Image
import pytest

from clipskip.__main__ import main
from clipskip.cli import output
from clipskip.cli.output import Bar, Preview
from clipskip.errors import NumericalError, RequestError, StorageError
from clipskip.result import Progress

FAST = ("--steps", "3", "--width", "64", "--height", "64", "--seed", "5")
RED = PIL.Image.new("RGB", (8, 16), "red")


def shown(path):
    with PIL.Image.open(path) as picture:
        return picture.convert("RGB")


def states(monkeypatch, took, *starts, results=()):
    """Previews that take so many seconds, and a clock that says when each is asked for; what was decoded is noted."""
    clock, made = SimpleNamespace(now=0.0), []

    def decode():
        clock.now += took
        made.append(clock.now - took)
        return [RED]

    def at():
        for clock.now in starts:
            yield Progress(1, 9, decode, results)

    monkeypatch.setattr(output.time, "monotonic", lambda: clock.now)
    return made, at()


def test_the_last_preview_is_the_pictures_beside_each_other_and_nothing_is_left_behind(sample_store, tmp_path, capsys):
    file = tmp_path / "new" / "now.png"
    options = ("--batch", "3", "--out", tmp_path / "out", "--preview", file, "--preview-interval", "0", *FAST)
    assert main([str(each) for each in ("generate", sample_store, "a ring", *options)]) == 0
    whole = shown(file)
    assert whole.size == (128, 128)
    for number, (left, top) in enumerate(((0, 0), (64, 0), (0, 64))):
        picture = shown(tmp_path / "out" / f"0000{number + 1}-{5 + number}.png")
        assert whole.crop((left, top, left + 64, top + 64)).tobytes() == picture.tobytes()
    assert os.listdir(file.parent) == ["now.png"]


def test_an_interrupt_leaves_a_whole_preview_and_nothing_else(sample_store, tmp_path, monkeypatch, capsys):
    file, calls = tmp_path / "now.webp", []

    def interrupted(bar, call, total):
        calls.append(call)
        if call == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Bar, "show", interrupted)
    options = ("--out", tmp_path / "x.png", "--preview", file, "--preview-interval", "0", *FAST)
    assert main([str(each) for each in ("generate", sample_store, "a ring", *options)]) == 130
    assert (shown(file).size, os.listdir(tmp_path), calls) == ((64, 64), ["now.webp"], [1, 2, 3])


@pytest.mark.filterwarnings("default")  # they are told, not raised, where a person runs a command
def test_a_preview_that_fails_is_said_once_and_the_picture_is_made(sample_store, tmp_path, monkeypatch, capsys):
    file, folder = tmp_path / "x.png", tmp_path / "gone"
    show = Bar.show

    def gone(bar, call, total):
        shutil.rmtree(folder, ignore_errors=True)
        show(bar, call, total)

    monkeypatch.setattr(Bar, "show", gone)
    options = ("--out", file, "--preview", folder / "now.png", "--preview-interval", "0", "--json", *FAST)
    assert main([str(each) for each in ("generate", sample_store, "a ring", *options)]) == 0
    warnings = json.loads(capsys.readouterr().out)["warnings"]
    assert sum("no more previews" in warning for warning in warnings) == 1
    assert shown(file).size == (64, 64)


def test_a_preview_that_cannot_be_decoded_is_no_reason_to_stop(tmp_path):
    def broken():
        raise NumericalError("the latents after call 1 are not finite")

    preview = Preview(tmp_path / "now.png", tmp_path, False, 0, Bar(1))
    with pytest.warns(RuntimeWarning, match="no more previews: the latents after call 1"):
        preview.show(Progress(1, 9, broken))
    preview.show(Progress(2, 9, broken))


def test_pictures_of_several_sizes_are_whole_beside_each_other(tmp_path):
    sizes = [(64, 64), (128, 96), (64, 128)]
    pictures = [PIL.Image.new("RGB", size, colour) for size, colour in zip(sizes, ("red", "lime", "blue"), strict=True)]
    Preview(tmp_path / "now.png", tmp_path, False, 0, Bar(1)).show(Progress(1, 9, lambda: pictures))
    made = PIL.Image.open(tmp_path / "now.png")
    assert made.size == (256, 256)
    assert [made.getpixel(place) for place in ((63, 63), (255, 95), (63, 255), (64, 0), (128, 96))] == [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (0, 0, 0),
        (0, 0, 0),
    ]


def test_previews_come_at_the_interval_that_was_asked_for_and_with_the_results(tmp_path, monkeypatch):
    made, at = states(monkeypatch, 3.0, 0, 1, 2.5, 6, 7.4, 7.5)
    preview = Preview(tmp_path / "now.png", tmp_path, False, 2, Bar(1))
    for state in at:
        preview.show(state)
    assert made == [2.5, 7.5]
    preview.show(Progress(9, 9, lambda: [RED, RED], ("a result",)))
    assert shown(tmp_path / "now.png").size == (16, 16)


def test_without_an_interval_previews_take_at_most_a_fifth_of_the_time(tmp_path, monkeypatch):
    made, at = states(monkeypatch, 3.0, 0.5, 1, 5, 15, 16, 30.9, 31)
    preview = Preview(tmp_path / "now.png", tmp_path, False, None, Bar(1))
    for state in at:
        preview.show(state)
    assert made == [1, 16, 31]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--preview", "now.gif"), "written as .png, .jpg, .jpeg, .webp, not .gif"),
        (("--preview", "-"), "not without a suffix"),
        (("--preview", ".", "--out", "."), "not without a suffix"),
        (("--preview", "there.png"), "there.png exists already"),
        (("--preview", "./x.png"), "--preview and --out both name x.png"),
        (("--preview-interval", "2"), "is for --preview FILE"),
    ],
)
def test_what_no_preview_can_be_is_refused_before_the_work(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.png").touch()
    assert main(["generate", "no-store", "a ring", "--out", "x.png", "--json", *options]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert message in error["message"]
    assert error["field"] == "preview"


@pytest.mark.parametrize("seconds", ["-1", "nan", "soon", "inf"])
def test_an_interval_that_is_none_is_refused(seconds, capsys):
    assert main(["generate", "no-store", "a ring", "--preview", "x.png", "--preview-interval", seconds]) == 2
    error = capsys.readouterr().err
    assert "interval" in error
    assert seconds in error


def test_a_folder_is_no_preview_and_a_file_is_one_with_overwrite(tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(StorageError, match="is no file"):
        Preview(tmp_path / "folder.png", tmp_path, True, None, Bar(1))
    (tmp_path / "now.png").touch()
    with pytest.raises(RequestError, match="exists already"):
        Preview(tmp_path / "now.png", tmp_path, False, None, Bar(1))
    Preview(tmp_path / "now.png", tmp_path, True, 0, Bar(1)).show(Progress(1, 2, lambda: [RED]))
    assert shown(tmp_path / "now.png").size == RED.size
