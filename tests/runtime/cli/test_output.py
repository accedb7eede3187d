"""Where pictures go, and that no file of anybody else's is lost on the way."""

import os
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest

from clipskip import read_request
from clipskip.cli.output import Destination
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


def test_a_file_is_not_replaced_unless_asked(tmp_path):
    file = tmp_path / "a.png"
    file.touch()
    with pytest.raises(RequestError, match="exists already"):
        Destination(file, False, 1)
    assert Destination(file, True, 1).save(1, write) == file
    assert file.read_bytes() == b"picture"


def test_a_file_that_appears_while_the_picture_is_made_is_not_replaced(tmp_path):
    destination = Destination(tmp_path / "a.png", False, 1)
    (tmp_path / "a.png").write_bytes(b"of another")
    with pytest.raises(RequestError, match="exists already"):
        destination.save(1, write)
    numbered = Destination(tmp_path, False, 1)
    (tmp_path / "00001-5.png").write_bytes(b"of another")
    assert numbered.save(5, write).name == "00002-5.png"
    assert {path.read_bytes() for path in (tmp_path / "a.png", tmp_path / "00001-5.png")} == {b"of another"}


def test_several_processes_share_a_folder_and_every_picture_is_the_one_that_was_reported(tmp_path):
    code = """
        import functools, pathlib, sys
        import PIL.Image
        from facts import MODEL
        from clipskip import metadata
        from clipskip.cli.output import Destination
        from clipskip.request import Request
        destination = Destination(pathlib.Path(sys.argv[1]), False, 30)
        print("ready", flush=True)
        sys.stdin.readline()
        for count in range(30):
            request = Request(prompt=f"{sys.argv[2]} {count}", seed=1)
            origin = metadata.Origin(request, MODEL, {})
            save = functools.partial(metadata.save, PIL.Image.new("RGB", (8, 8)), origin=origin)
            print(destination.save(1, save), request.prompt)
        """
    command = [sys.executable, "-c", textwrap.dedent(code), tmp_path]
    surroundings = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": surroundings}
    processes = [subprocess.Popen([*command, name], **pipes) for name in ("a", "b", "c")]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    told = dict(line.split(" ", 1) for process in processes for line in process.communicate(timeout=60)[0].splitlines())
    assert Counter(prompt.split()[0] for prompt in told.values()) == {"a": 30, "b": 30, "c": 30}
    assert {str(path): read_request(path).prompt for path in tmp_path.iterdir()} == told


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
