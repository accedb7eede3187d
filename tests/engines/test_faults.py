"""Kills, signals, rivals and full disks: the store stays as it was or becomes what it was to become."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from clipskip.engines import publish
from clipskip.engines.report import verify
from clipskip.engines.store import Store
from clipskip.errors import StorageError


def stray(root: Path) -> list[str]:
    return [name for name in os.listdir(root) if name.startswith(".tmp")]


def finish(process, status: int) -> tuple[str, str]:
    """Its output, after it has ended with `status`."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == status, err
    return out, err


def test_a_build_that_dies_before_any_one_of_its_file_operations_leaves_a_valid_store_b2(tmp_path, start):
    finish(start("die", tmp_path / "store"), 0)


def test_twenty_builds_killed_at_random_moments_leave_a_valid_store_b2(tmp_path, start):
    finish(start("kill", tmp_path / "store", 20), 0)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_a_signal_removes_the_temporary_folder_and_changes_nothing_b1(root, start, number, status):
    before = (root / "manifest.json").read_bytes()
    builders = [start("build", root, f"v{i}", 60) for i in range(3)]
    for builder in builders:
        assert builder.stdout.readline() == "begin\n"
    while len(stray(root)) < 3:  # each is at work, and would be for minutes
        time.sleep(0.01)
    for builder in builders:
        builder.send_signal(number)
    for builder in builders:
        finish(builder, status)
    assert not stray(root)
    assert (root / "manifest.json").read_bytes() == before


def test_an_exception_in_a_build_removes_the_temporary_folder_and_changes_nothing(root, workshop):
    before = sorted(os.listdir(root)), (root / "manifest.json").read_bytes()
    with pytest.raises(ZeroDivisionError):
        workshop.work(root, workshop.wanted(v="2"), lambda draft: (draft.folder / "half").write_text("half") // 0)
    assert (sorted(os.listdir(root)), (root / "manifest.json").read_bytes()) == before


def test_the_second_of_two_builders_waits_and_then_finds_all_up_to_date_b5(root, start):
    builders = [start("build", root, "v2", 0.1) for _ in range(2)]
    first, second = sorted((finish(each, 0)[0] for each in builders), key=lambda out: "same" in out)
    assert "version: none -> v2" in first
    assert first.endswith("built\n")
    assert "waiting for another process" in second
    assert second.endswith("up to date\nsame\n")


def test_a_waiting_builder_takes_over_from_one_that_is_killed_b6(root, start):
    first = start("build", root, "v2", 5)
    while not stray(root):
        time.sleep(0.01)
    second = start("build", root, "v2", 0)
    while "waiting" not in second.stdout.readline():
        pass
    first.kill()
    out, _ = finish(second, 0)
    assert out.endswith("built\n")
    assert sorted(name for name in os.listdir(root) if name.startswith(".")) == []


def test_builders_of_different_targets_work_at_the_same_time_and_both_publish(root, workshop):
    what = [workshop.wanted(target=target, precision="fp16") for target in ("tensorrt", "tensorrt-rtx", "onnx")]
    met = threading.Barrier(3)

    def work(each):
        workshop.work(root, each, lambda draft: (met.wait(10), touch_all(workshop, each)(draft)))

    threads = [threading.Thread(target=work, args=(each,)) for each in what]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(Store(root).manifest().artefacts) == 12
    assert not [problem for _, problem in verify(root) if problem]


def touch_all(workshop, what):
    """A builder of `what` that only makes empty files."""

    def do(draft):
        for identity in what:
            (draft.folder / str(identity.role)).touch()
            draft.add(workshop.artefact(*identity[:3]), [str(identity.role)])

    return do


def test_a_collecting_build_leaves_the_folder_of_a_living_builder_alone(root, workshop):
    what = workshop.wanted(precision="fp16")

    def do(draft):
        workshop.make(root, workshop.wanted(v="2"), model=workshop.facts())
        touch_all(workshop, what)(draft)

    workshop.work(root, what, do)
    assert not [problem for _, problem in verify(root) if problem]


def test_readers_never_see_a_bad_store_while_it_is_rebuilt_and_collected_c14(root, workshop):
    ended, problems, looks = threading.Event(), [], 0

    def read():
        nonlocal looks
        while not ended.is_set():
            problems.extend(problem for _, problem in verify(root) if problem)
            looks += 1

    reader = threading.Thread(target=read)
    reader.start()
    for version in range(8):
        workshop.rebuild(root, f"v{version}")
        publish.gc(root)
    ended.set()
    reader.join()
    assert problems == []
    assert looks > 0


def test_a_file_size_limit_in_the_middle_of_a_build_is_a_storage_error_b3(root, start):
    before = (root / "manifest.json").read_bytes()
    _, err = finish(start("small", root), 7)
    assert "StorageError: no room in" in err
    assert "needs more than" in err
    assert " free\n" in err
    assert not stray(root)
    assert (root / "manifest.json").read_bytes() == before


def test_a_full_disk_in_the_middle_of_a_build_is_a_storage_error_b3(tmp_path, mount, workshop):
    mount("-t", "tmpfs", "-o", "size=2m", "none", tmp_path)
    root = tmp_path / "store"
    workshop.rebuild(root, "old")
    with pytest.raises(StorageError, match=r"No space left.*needs more than .* free") as caught:
        workshop.make(root, workshop.wanted(), model=workshop.facts(), size=1 << 20)
    assert caught.value.exit_status == 7
    workshop.assert_nothing_left(root)


def test_a_disk_too_full_for_the_manifest_itself_changes_nothing(tmp_path, mount, workshop):
    mount("-t", "tmpfs", "-o", "size=2m", "none", tmp_path)
    root = tmp_path / "store"
    workshop.rebuild(root, "old")
    before = (root / "manifest.json").read_bytes()

    def fill(draft):
        draft.add(workshop.artefact("step"), ["step"])
        free = os.statvfs(root)
        (draft.folder / "step").write_bytes(b"x" * (free.f_bavail * free.f_bsize))

    with pytest.raises(StorageError):
        workshop.work(root, workshop.wanted(("step",)), fill)
    assert (root / "manifest.json").read_bytes() == before
    workshop.assert_nothing_left(root)


def test_a_build_that_needs_more_than_is_free_is_refused_before_it_begins_b3(root, workshop):
    with pytest.raises(StorageError, match=r"needs 9007.0 TB, [\d.]+ \wB free"):
        workshop.work(root, workshop.wanted(v="2"), lambda draft: pytest.fail("it began"), needs=9007 * 10**12)
    assert not stray(root)


def test_an_error_that_a_full_disk_caused_is_a_storage_error_whatever_a_library_made_of_it(root, workshop):
    def fail(draft):
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise RuntimeError("unexpected error") from error

    with pytest.raises(StorageError, match=r"needs 1\.0 kB"):
        workshop.work(root, workshop.wanted(v="2"), fail, needs=1000)


def test_a_read_only_store_refuses_a_build_at_once_and_serves_readers_b4_c15(root, workshop, make_read_only):
    make_read_only(root)
    with pytest.raises(StorageError, match="no permission") as caught:
        workshop.work(root, workshop.wanted(v="2"), lambda draft: pytest.fail("it began to work"))
    assert caught.value.exit_status == 7
    assert caught.value.hint == "check owner and mode"
    assert publish.gc(root, dry_run=True) == {}
    assert not [problem for _, problem in verify(root) if problem]


def test_a_store_is_refused_before_any_work_where_the_system_forbids_to_write_or_counts_no_more_b4(
    root, workshop, monkeypatch
):
    """For whom a mode or a mount cannot be changed: the system's answers are made up."""
    before = sorted(os.listdir(root))
    for number, message in ((errno.EROFS, "no permission"), (errno.EACCES, "no permission"), (errno.EDQUOT, "no room")):

        def refuse(path, *arguments, number=number, **rest):
            raise OSError(number, os.strerror(number), str(path))

        with monkeypatch.context() as patch:
            patch.setattr(Path, "mkdir", refuse)
            with pytest.raises(StorageError, match=message) as caught:
                workshop.work(root, workshop.wanted(v="2"), lambda draft: pytest.fail("it began to work"))
        assert caught.value.exit_status == 7
    assert sorted(os.listdir(root)) == before


def test_a_quota_that_is_used_up_in_the_middle_is_a_storage_error_and_leaves_nothing_b4(root, workshop):
    before = sorted(os.listdir(root)), (root / "manifest.json").read_bytes()

    def fill(draft):
        (draft.folder / "half").write_bytes(bytes(1000))
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with pytest.raises(StorageError, match=r"no room in .* \(Disk quota exceeded\): needs more than 1\.0 kB") as caught:
        workshop.work(root, workshop.wanted(v="2"), fill)
    assert caught.value.exit_status == 7
    assert (sorted(os.listdir(root)), (root / "manifest.json").read_bytes()) == before


@pytest.mark.parametrize("place", ["a file", "a file/below"])
def test_a_store_that_cannot_be_a_folder_is_a_storage_error(tmp_path, workshop, place):
    (tmp_path / "a file").write_text("")
    with pytest.raises(StorageError, match="a file"):
        workshop.rebuild(tmp_path / place, "1")


def test_a_lock_that_is_not_released_in_time_is_a_storage_error(root, workshop, monkeypatch):
    monkeypatch.setattr(publish, "_LOCK_LIMIT", 0.2)
    with (
        publish.locks.locked(root / ".lock", print),
        pytest.raises(StorageError, match="was not released within"),
    ):
        publish.gc(root)


def test_a_lock_file_that_nobody_holds_stops_nobody_b6(root, workshop):
    (root / ".lock").touch()
    (root / ".lock-onnx-fp32-0123456789abcdef").touch()
    workshop.rebuild(root, "2")
    workshop.assert_nothing_left(root)
