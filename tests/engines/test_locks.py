"""Locks: one holder at a time, also while the lock files come and go."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import time

import pytest

from clipskip.engines import locks
from clipskip.errors import StorageError


def test_one_thread_at_a_time_holds_a_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_POLL", 0.0005)
    inside, most, turns = 0, 0, []

    def work():
        nonlocal inside, most
        for _ in range(40):
            with locks.locked(tmp_path / ".lock", lambda line: None):
                inside += 1
                most = max(most, inside)
                time.sleep(0)
                inside -= 1
                turns.append(1)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, len(turns)) == (1, 240)
    assert os.listdir(tmp_path) == []


def test_a_lock_on_a_file_that_its_holder_has_just_removed_does_not_count(tmp_path, monkeypatch):
    path, flock, calls = tmp_path / ".lock", fcntl.flock, []

    def late(descriptor, operation):
        if not calls:  # between our opening the file and our locking it, another lets it go and a third takes a new one
            path.unlink()
            path.touch()
        calls.append(descriptor)
        return flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with locks.locked(path, lambda line: None):
        assert len(calls) == 2
        assert os.path.samestat(os.fstat(calls[-1]), path.stat())


def test_a_folder_is_in_use_while_somebody_holds_it(tmp_path):
    assert not locks.in_use(tmp_path)
    holders = [locks.hold(tmp_path), locks.hold(tmp_path)]
    for holder in holders:
        assert locks.in_use(tmp_path)
        os.close(holder)
    assert not locks.in_use(tmp_path)


def test_a_folder_that_cannot_be_looked_at_counts_as_in_use(tmp_path):
    assert locks.in_use(tmp_path / "nowhere")
    assert locks.hold(tmp_path / "nowhere") is None


def test_a_system_without_flock_can_read_but_not_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    assert locks.hold(tmp_path) is None
    assert locks.in_use(tmp_path)
    with pytest.raises(StorageError, match="no flock") as caught, locks.locked(tmp_path / ".lock", print):
        pass
    assert "build in WSL" in caught.value.hint


POOR = """
import os, sys
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("O_NOFOLLOW", "O_DIRECTORY", "O_NONBLOCK", "fork", "register_at_fork", "getuid", "sched_getaffinity"):
    delattr(os, name)
from pathlib import Path
def open_no_folder(path, *rest, real=os.open, **options):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return real(path, *rest, **options)
os.open = open_no_folder
from clipskip.engines import files, publish, report
from clipskip.engines.store import Store
from clipskip.errors import StorageError
store = Store(sys.argv[1])
for artefact in store.manifest().artefacts:
    store.verify(artefact)
store.verify_tokenizer()
report.inspect(sys.argv[1])
files.flush(store.root)
file = store.root / artefact.files[0].path
file.rename(store.root / "elsewhere")
file.symlink_to(store.root / "elsewhere")
print(dict(report.verify(store.root))[str(artefact.identity)])
file.unlink()
file.mkdir()
print(dict(report.verify(store.root))[str(artefact.identity)])
try:
    publish.gc(sys.argv[1])
except StorageError as error:
    print(error.message)
"""


def test_a_system_without_posix_reads_a_store_and_says_that_it_cannot_change_one(root):
    done = subprocess.run([sys.executable, "-c", POOR, str(root)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    linked, folder, refused = done.stdout.splitlines()
    assert linked.endswith("is a symbolic link")
    assert folder.endswith("is not a regular file")
    assert refused == "this system has no flock: engine stores can be read here, not built"
