"""Where pictures go."""

import os

import pytest

from clipskip.errors import RequestError, StorageError
from clipskip.target import Target


def test_names_in_a_folder_are_numbered_after_what_is_there(tmp_path):
    (tmp_path / "00041-7.png").touch()
    target = Target(tmp_path / "new" / "..", False, 2)
    assert [target.path(9).name, target.path(10).name] == ["00042-9.png", "00043-10.png"]


def test_a_file_is_not_replaced_unless_asked(tmp_path):
    file = tmp_path / "a.png"
    file.touch()
    with pytest.raises(RequestError, match="exists already"):
        Target(file, False, 1)
    assert Target(file, True, 1).path(1) == file


def test_several_pictures_need_a_folder(tmp_path):
    with pytest.raises(RequestError, match="2 pictures"):
        Target(tmp_path / "a.png", False, 2)


def test_a_folder_that_cannot_be_made_is_found_out_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot make the folder"):
        Target(tmp_path / "file" / "folder", False, 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_found_out_before_the_work(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="no permission"):
        Target(tmp_path, False, 1)
