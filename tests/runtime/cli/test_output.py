"""Where pictures go, and that no file of anybody else's is lost on the way."""

import os
import subprocess
import sys
import textwrap
from collections import Counter

import pytest

from clipskip.cli.output import Destination
from clipskip.errors import RequestError, StorageError


def touch(path):
    path.write_bytes(b"picture")


def test_numbers_start_at_one_and_go_on_after_what_is_there(tmp_path):
    empty = Destination(tmp_path / "empty", False, 2)
    assert [empty.save(9, touch).name, empty.save(10, touch).name] == ["00001-9.png", "00002-10.png"]
    (tmp_path / "00041-7.png").touch()
    used = Destination(tmp_path / "empty" / "..", False, 2)
    assert [used.save(9, touch).name, used.save(10, touch).name] == ["00042-9.png", "00043-10.png"]


def test_a_file_is_not_replaced_unless_asked(tmp_path):
    file = tmp_path / "a.png"
    file.touch()
    with pytest.raises(RequestError, match="exists already"):
        Destination(file, False, 1)
    assert Destination(file, True, 1).save(1, touch) == file
    assert file.read_bytes() == b"picture"


def test_a_file_that_appears_while_the_picture_is_made_is_not_replaced(tmp_path):
    destination = Destination(tmp_path / "a.png", False, 1)
    (tmp_path / "a.png").write_bytes(b"of another")
    with pytest.raises(RequestError, match="exists already"):
        destination.save(1, touch)
    numbered = Destination(tmp_path, False, 1)
    (tmp_path / "00001-5.png").write_bytes(b"of another")
    assert numbered.save(5, touch).name == "00002-5.png"
    assert {path.read_bytes() for path in (tmp_path / "a.png", tmp_path / "00001-5.png")} == {b"of another"}


def test_a_picture_that_cannot_be_written_leaves_no_file(tmp_path):
    def fail(path):
        raise StorageError("no room", path=path)

    with pytest.raises(StorageError):
        Destination(tmp_path, False, 1).save(5, fail)
    assert list(tmp_path.iterdir()) == []


def test_several_processes_share_a_folder_and_every_picture_is_the_one_that_was_reported(tmp_path):
    code = """
        import pathlib, sys
        from clipskip.cli.output import Destination
        destination = Destination(pathlib.Path(sys.argv[1]), False, 40)
        print("ready", flush=True)
        sys.stdin.readline()
        for count in range(40):
            text = f"{sys.argv[2]} {count}"
            print(destination.save(1, lambda path: path.write_text(text)), text)
        """
    command = [sys.executable, "-c", textwrap.dedent(code), tmp_path]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, name], **pipes) for name in ("a", "b", "c")]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    told = dict(line.split(" ", 1) for process in processes for line in process.communicate(timeout=60)[0].splitlines())
    assert Counter(text.split()[0] for text in told.values()) == {"a": 40, "b": 40, "c": 40}
    assert {str(path): path.read_text() for path in tmp_path.iterdir()} == told


def test_several_pictures_need_a_folder(tmp_path):
    with pytest.raises(RequestError, match="2 pictures"):
        Destination(tmp_path / "a.png", False, 2)


def test_a_folder_that_cannot_be_made_is_found_out_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot make the folder"):
        Destination(tmp_path / "file" / "folder", False, 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_found_out_before_the_work(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="no permission"):
        Destination(tmp_path, False, 1)
