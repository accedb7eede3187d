"""Real exports that are killed, that meet each other, that run out of disk or of memory: the store stays valid.

A server imports torch once and forks a child for each export. They add text engines to a store that has the rest.
"""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from clipskip.__main__ import main
from clipskip.engines import child
from clipskip.engines.report import verify
from clipskip.engines.store import Store

SERVER = """
import os, resource, sys
import torch
from clipskip.errors import ClipskipError
from clipskip.export import build, export
torch.set_num_threads(1)
for line in sys.stdin:
    checkpoint, out, skips, limit = line.split()
    child = os.fork()
    if child == 0:
        if limit != "-":
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
        try:
            export(checkpoint, out, skips=None if skips == "all" else [int(skips)])
        except ClipskipError as error:
            print(error, file=sys.stderr, flush=True)
            os._exit(error.exit_status)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Server:
    """Starts exports in children of a process that has torch; one at a time."""

    def __init__(self, checkpoint, log):
        self._checkpoint = checkpoint
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SERVER],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment,
        )  # fmt: skip

    def start(self, out, skips="all", limit="-"):
        self._process.stdin.write(f"{self._checkpoint} {out} {skips} {limit}\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def status(self):
        return int(self._process.stdout.readline())

    def close(self):
        with self._process:
            self._process.stdin.close()


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    return tmp_path_factory.mktemp("servers") / "log"


@pytest.fixture(scope="module")
def servers(tiny, log):
    with log.open("w") as file:
        started = [Server(tiny, file), Server(tiny, file)]
        yield started
        for server in started:
            server.close()


def sound(root):
    return [problem for _, problem in verify(root) if problem] == []


@pytest.fixture
def untouched(store, tmp_path):
    """The tiny model's store with one text engine of four."""
    root = shutil.copytree(store.root, tmp_path / "untouched")
    manifest = json.loads((root / "manifest.json").read_text())
    lost = "text-00", "text-01", "text-02"
    manifest["artefacts"] = [each for each in manifest["artefacts"] if each["role"] not in lost]
    (root / "manifest.json").write_text(json.dumps(manifest))
    return root


def test_an_export_killed_at_any_moment_leaves_the_store_valid_b2(servers, untouched, tmp_path):
    root, server, before = tmp_path / "store", servers[0], Store(untouched).manifest()
    shutil.copytree(untouched, root)
    shutil.copytree(untouched, tmp_path / "measured")
    began = time.monotonic()
    server.start(tmp_path / "measured")
    assert server.status() == 0
    duration = time.monotonic() - began
    moments = random.Random(7)
    for eighth in range(8):
        child = server.start(root)
        time.sleep(moments.uniform(eighth, eighth + 1) / 8 * 0.95 * duration)
        with suppress(ProcessLookupError):  # it has ended already
            os.kill(child, signal.SIGKILL)
        ended = server.status() == 0  # it may have been faster this time
        assert sound(root)
        count = len(Store(root).manifest().artefacts)
        assert count in (len(before.artefacts), len(before.artefacts) + 3)
        done = count > len(before.artefacts)  # or have been killed with all of it published
        assert done or not ended
        if done:
            shutil.rmtree(root)
            shutil.copytree(untouched, root)
    server.start(root)
    assert server.status() == 0
    assert sound(root)
    assert not list(root.glob(".tmp-*"))


def test_of_two_exports_at_once_one_works_and_the_other_waits_and_finds_it_done_b5(servers, untouched):
    there = {each for each in untouched.iterdir() if each.is_dir()}
    for server in servers:
        server.start(untouched)
    assert [server.status() for server in servers] == [0, 0]
    assert sound(untouched)
    assert len({each for each in untouched.iterdir() if each.is_dir()} - there) == 1


def test_a_disk_that_fills_up_is_said_with_its_exit_status_and_leaves_nothing_b3(servers, log, tmp_path):
    root = tmp_path / "store"
    servers[0].start(root, limit="65536")
    assert servers[0].status() == 7
    assert not [each for each in root.iterdir() if each.is_dir()]
    assert "free" in log.read_text()


DYING = """
import ctypes, os
from clipskip.engines import child
from clipskip.export import build

def half(draft, *rest):
    (draft.folder / "half").write_bytes(bytes(1000))
    {death}

build.build = half
child.main()
"""
DEATHS = {
    "the system kills it": "os.kill(os.getpid(), 9)",
    "operator new throws std::bad_alloc": "ctypes.CDLL('libstdc++.so.6')['_Znwm'](ctypes.c_size_t(1 << 62))",
}


@pytest.mark.parametrize("death", DEATHS.values(), ids=DEATHS)
def test_an_export_whose_process_is_killed_says_so_and_leaves_nothing_b8(tiny, tmp_path, monkeypatch, capsys, death):
    monkeypatch.setattr(child, "COMMAND", (sys.executable, "-c", DYING.format(death=death)))
    assert main(["export", str(tiny), "--out", str(tmp_path / "store"), "--json"]) == 5
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert (error["code"], error["field"]) == ("device_out_of_memory", "export")
    assert "export: its process was killed (out of memory?)" in error["message"]
    assert "more memory" in error["hint"]
    assert "Traceback" not in err
    assert os.listdir(tmp_path / "store") == []


def command(tiny, root):
    return [sys.executable, "-m", "clipskip", "export", str(tiny), "--out", str(root)]


@pytest.mark.parametrize("megabytes", [300, 450, 600, 900])
def test_an_export_under_a_limit_of_memory_ends_with_the_status_for_it_b8(tiny, tmp_path, megabytes):
    """Some library or other gets none: Python says so, or it is a C++ library's std::bad_alloc, or another's exit."""
    limit = (megabytes << 20,) * 2
    done = subprocess.run(
        command(tiny, tmp_path / "store"), capture_output=True, text=True, timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limit),
    )  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert "memory" in done.stderr
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path / "store") == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_an_export_and_its_child_and_leaves_nothing_b1(tiny, tmp_path, number, status):
    root = tmp_path / "store"
    with subprocess.Popen(command(tiny, root), stderr=subprocess.PIPE, text=True) as parent:
        while "loading the networks" not in parent.stderr.readline():
            assert parent.poll() is None
        (inner,) = Path("/proc", str(parent.pid), "task", str(parent.pid), "children").read_text().split()
        parent.send_signal(number)
        assert "nothing half-made was kept" in parent.stderr.read()
    assert parent.returncode == status
    assert os.listdir(root) == []
    state, patience = Path("/proc", inner, "stat"), time.monotonic() + 60  # Python waits 0.25 s for it after Ctrl-C
    with suppress(FileNotFoundError, ProcessLookupError):
        while state.read_text().rpartition(") ")[2][0] != "Z":
            assert time.monotonic() < patience, "the child lives on"
            time.sleep(0.02)
