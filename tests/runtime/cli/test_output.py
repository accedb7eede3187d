"""Where pictures go, and that no file of anybody else's is lost on the way."""

import io
import json
import os
import subprocess
import sys

import pytest

from clipskip import read_request
from clipskip.cli import output
from clipskip.cli.output import Bar, Destination
from clipskip.errors import RequestError, StorageError


def write(path, overwrite):
    with path.open("wb" if overwrite else "xb") as file:
        file.write(b"picture")


def test_numbers_start_at_one_and_go_on_after_what_is_there(tmp_path):
    empty = Destination(tmp_path / "empty", False, 2)
    assert [empty.save(9, write).name, empty.save(10, write).name] == ["00001-9.png", "00002-10.png"]
    (tmp_path / "00041-7.png").touch()
    used = Destination(tmp_path / "empty" / "..", False, 2)
    assert [used.save(9, write).name, used.save(10, write).name] == ["00042-9.png", "00043-10.png"]


def test_a_file_is_not_replaced_unless_asked_d45(tmp_path):
    file = tmp_path / "a.png"
    file.touch()
    with pytest.raises(RequestError, match="exists already"):
        Destination(file, False, 1)
    assert Destination(file, True, 1).save(1, write) == file
    assert file.read_bytes() == b"picture"


def test_a_file_that_appears_while_the_picture_is_made_is_not_replaced_d45(tmp_path):
    destination = Destination(tmp_path / "a.png", False, 1)
    (tmp_path / "a.png").write_bytes(b"of another")
    with pytest.raises(RequestError, match="exists already"):
        destination.save(1, write)
    numbered = Destination(tmp_path, False, 1)
    (tmp_path / "00001-5.png").write_bytes(b"of another")
    assert numbered.save(5, write).name == "00002-5.png"
    assert {path.read_bytes() for path in (tmp_path / "a.png", tmp_path / "00001-5.png")} == {b"of another"}


def test_four_processes_share_a_folder_and_every_picture_is_the_one_that_was_reported(sample_store, tmp_path):
    """4 processes, 15 pictures each of 64 px and one step, one folder: no picture is lost, no number there twice."""
    for name in "abcd":
        (tmp_path / name).write_text("".join(f"/seed:{ord(name) % 3} {name} {count}\n" for count in range(15)))
    options = ["--steps", "1", "--size", "64x64", "--json", "--out", tmp_path / "out"]
    command = [sys.executable, "-m", "clipskip", "generate", sample_store, *options, "--lines"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    processes = [subprocess.Popen([*command, tmp_path / name], **pipes) for name in "abcd"]
    told = [picture for process in processes for picture in json.loads(process.communicate(timeout=300)[0])["pictures"]]
    assert len(told) == len({os.path.basename(picture["file"])[:5] for picture in told}) == 60
    made = {str(path): read_request(path).prompt for path in (tmp_path / "out").iterdir()}
    assert made == {picture["file"]: picture["request"]["prompt"] for picture in told}


def test_a_number_is_taken_by_one_of_those_that_write_at_once_whatever_their_seeds(tmp_path):
    first, second, third = (Destination(tmp_path, False, 1) for _ in range(3))

    def slow(path, overwrite):
        assert second.save(7, write).name == "00002-7.png"  # before the first is there
        write(path, overwrite)

    assert first.save(5, slow).name == "00001-5.png"
    assert third.save(9, write).name == "00003-9.png"
    assert sorted(os.listdir(tmp_path)) == ["00001-5.png", "00002-7.png", "00003-9.png"]


def test_a_number_that_could_not_be_used_is_free_again(tmp_path):
    def full(path, overwrite):
        raise StorageError("no space")

    destination = Destination(tmp_path, False, 1)
    with pytest.raises(StorageError):
        destination.save(5, full)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["a.png.tmp", "a.gif", "a.PNGX", "out.d"])
def test_what_ends_like_a_file_of_another_kind_is_no_new_folder(tmp_path, name):
    with pytest.raises(RequestError, match=r"pictures are written as \.png, \.jpg, \.jpeg, \.webp, not \.") as caught:
        Destination(tmp_path / name, False, 1)
    assert (caught.value.field, os.listdir(tmp_path)) == ("out", [])
    (tmp_path / name).mkdir()
    assert Destination(tmp_path / name, False, 1).save(1, write).parent == tmp_path / name


@pytest.mark.parametrize("name", ["v1.5", "2024.01.31", ".hidden", "plain"])
def test_a_folder_may_have_dots_in_its_name(tmp_path, name):
    assert Destination(tmp_path / name, False, 1).save(1, write).parent == tmp_path / name


def test_several_pictures_need_a_folder(tmp_path):
    with pytest.raises(RequestError, match="2 pictures"):
        Destination(tmp_path / "a.png", False, 2)


def test_a_folder_that_cannot_be_made_is_found_out_before_the_work_d45(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write to"):
        Destination(tmp_path / "file" / "folder", False, 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_found_out_before_the_work_d45(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="no permission"):
        Destination(tmp_path, False, 1)


def test_what_is_no_file_and_a_name_that_is_too_long_are_found_out_before_the_work_d45(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(StorageError, match="is no file"):
        Destination(tmp_path / "a.png", True, 1)
    with pytest.raises(StorageError, match="name too long"):
        Destination(tmp_path / f"{'a' * 300}.png", False, 1)


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_a_bar_with_the_time_left(monkeypatch):
    screen, times = Screen(), iter([0, 10, 12, 16])
    monkeypatch.setattr(output.sys, "stderr", screen)
    monkeypatch.setattr(output.time, "monotonic", lambda: next(times))
    bar = Bar(4)
    bar.show(10, 80)
    bar.show(20, 80)
    bar.saved(None)
    bar.show(40, 80)
    shown = [text.strip() for text in screen.getvalue().split("\r") if text.strip()]
    assert shown == [
        "[##..................] 10/80 calls, 0/4 pictures",
        "[#####...............] 20/80 calls, 0/4 pictures, 12 s left",
        "[##########..........] 40/80 calls, 1/4 pictures, 8 s left",
    ]
    bar.clear()
    assert screen.getvalue().endswith(" \r")


def test_elsewhere_there_is_a_line_every_five_seconds(monkeypatch):
    lines, times = io.StringIO(), iter([0, 4, 6, 8, 12])
    monkeypatch.setattr(output.sys, "stderr", lines)
    monkeypatch.setattr(output.time, "monotonic", lambda: next(times))
    bar = Bar(1)
    for call in range(1, 5):
        bar.show(call, 4)
    bar.clear()
    assert lines.getvalue() == "2/4 calls, 0/1 pictures, 4 s left\n4/4 calls, 0/1 pictures, 0 s left\n"


def test_a_picture_without_a_call_has_a_bar_as_well(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    Bar(1).show(0, 0)
    assert "0/0 calls, 0/1 pictures" in capsys.readouterr().err
