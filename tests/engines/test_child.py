"""A child process tells what it has to tell, its parent knows what to say however it ends, and none is left behind."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipskip.engines import child
from clipskip.errors import DeviceOutOfMemory, ExportError, RequestError

WORKS = """
import ctypes, errno, mmap, os, resource, signal, sys, tempfile, time
from clipskip.errors import RequestError

def double(job, report):
    print("a library prints this")
    report("half way")
    return job * 2

def refuse(job, report):
    raise RequestError("no", field="size", hint="another")

def fill_the_disk(job, report):
    try:
        raise OSError(errno.ENOSPC, "No space left on device")
    except OSError as error:
        raise RuntimeError("unexpected") from error

def import_nothing(job, report):
    import a_library_that_is_not_there

def break_down(job, report):
    return 1 // 0

def kill(job, report):
    report("at work")
    os.kill(os.getpid(), job)

def leave(job, report):
    sys.stderr.write("no room")
    sys.stderr.flush()
    os._exit(1)

def new(job, report):
    allocate = ctypes.CDLL("libstdc++.so.6")["_Znwm"]  # operator new
    allocate.argtypes = [ctypes.c_size_t]
    allocate(job)

def grow(job, report):
    resource.setrlimit(resource.RLIMIT_AS, (job, job))
    return bytearray(job)

def sleep(job, report):
    report(os.getpid())
    time.sleep(600)

def scratch(job, report):
    return tempfile.gettempdir()
"""
PARENT = """
from pathlib import Path
from clipskip.engines import child
child.run("works:sleep", None, lambda number: number and print(number, flush=True), what="x", folder=Path("."), hint="")
"""
Run = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Have a child do one of the works above."""
    (tmp_path / "works.py").write_text(WORKS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def call(work: str, job: object = None, hear: child.Hear = lambda report: None) -> Any:
        return child.run(f"works:{work}", job, hear, what="step", folder=tmp_path, hint="take less")

    return call


def test_what_the_child_reports_and_gives_arrives_and_what_a_library_prints_is_in_nobody_s_way(run: Run) -> None:
    said: list[str] = []
    assert run("double", (1, "a"), said.append) == (1, "a", 1, "a")
    assert [line for line in said if line] == ["half way"]


def test_temporary_files_go_where_they_are_cleared_away(run: Run, tmp_path: Path) -> None:
    assert run("scratch") == str(tmp_path)


def test_an_error_with_a_name_is_the_parent_s(run: Run) -> None:
    with pytest.raises(RequestError, match="no") as caught:
        run("refuse")
    assert (caught.value.field, caught.value.hint) == ("size", "another")
    with pytest.raises(OSError, match="No space left"):
        run("fill_the_disk")
    with pytest.raises(ImportError) as missing:
        run("import_nothing")
    assert missing.value.name == "a_library_that_is_not_there"


def test_a_bug_in_the_child_is_a_bug_with_its_traceback(run: Run) -> None:
    with pytest.raises(RuntimeError, match=r"child process:(.|\n)*break_down(.|\n)*ZeroDivisionError"):
        run("break_down")


@pytest.mark.parametrize(("work", "job"), [("kill", 9), ("kill", 6), ("new", 1 << 62)])
def test_a_child_that_is_killed_or_gets_no_memory_may_have_been_out_of_it_b8(run: Run, work: str, job: int) -> None:
    with pytest.raises(DeviceOutOfMemory, match=r"step: its process was killed \(out of memory\?\)") as caught:
        run(work, job)
    assert (caught.value.exit_status, caught.value.hint) == (5, "take less")
    assert ("std::bad_alloc" in str(caught.value)) == (work == "new")


def test_a_python_without_memory_says_so_b8(run: Run) -> None:
    with pytest.raises(DeviceOutOfMemory, match="there is not enough memory"):
        run("grow", 4 << 30)


def test_any_other_end_without_a_word_is_an_error_with_the_last_ones(run: Run) -> None:
    for work, job, message in (("leave", 0, "ended with status 1:\n  no room"), ("kill", 11, "ended with status -11")):
        with pytest.raises(ExportError, match=f"step: its process {message}"):
            run(work, job)


def test_under_a_limit_of_memory_any_such_end_may_be_for_lack_of_it_b8(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {resource.RLIMIT_AS: (1 << 30, 1 << 30)}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits.get(kind, (resource.RLIM_INFINITY,) * 2))
    with pytest.raises(DeviceOutOfMemory, match="out of memory"):
        run("leave")


def test_an_interrupted_parent_takes_its_child_along_b1(run: Run) -> None:
    numbers: list[int] = []

    def hear(number: int | None) -> None:
        if number:
            numbers.append(number)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("sleep", hear=hear)
    with pytest.raises(ProcessLookupError):
        os.kill(numbers[0], 0)


def test_an_interrupt_of_the_terminal_is_left_to_the_parent_b1(run: Run) -> None:
    assert run("kill", 2) is None


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks /proc for a process that is not our child")
def test_a_child_ends_with_a_parent_that_is_killed(run: Run, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as parent:
        assert parent.stdout is not None
        number = parent.stdout.readline().strip()
        parent.kill()
    status, patience = Path("/proc", number, "status"), time.monotonic() + 120
    while status.exists() and "\nState:\tZ" not in status.read_text():
        assert time.monotonic() < patience, "the child lives on"
        time.sleep(0.02)
