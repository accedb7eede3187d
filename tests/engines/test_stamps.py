"""Bytes that were proved once are not read again, by any process of this user, until they may have changed."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from clipskip.engines import files, report, stamps, store
from clipskip.engines.manifest import Role
from clipskip.engines.store import Store, stamped
from clipskip.errors import EngineCorrupt, EngineIncompatible


@pytest.fixture
def proved(own_folder: Path) -> Path:
    """The file of stamps, which is not there yet."""
    own_folder.mkdir(mode=0o700, exist_ok=True)
    (own_folder / stamps.NAME).unlink(missing_ok=True)
    return own_folder / stamps.NAME


@pytest.fixture
def weights(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The weights of a graph, large enough for a stamp, last changed an hour ago by this machine's clock."""
    monkeypatch.setattr(stamps, "LEAST", 10)
    monkeypatch.setattr(time, "time_ns", lambda now=time.time_ns: now() + 3600 * 10**9)
    return root / Store(root).find(Role("step"), "onnx", "fp32").files[1].path


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were hashed."""
    names: list[str] = []
    monkeypatch.setattr(
        files, "sha256_of", lambda file, of=files.sha256_of: names.append(Path(file.name).name) or of(file)
    )
    return names


def another_process(root: Path, opener=lambda artefact, path: SimpleNamespace(path=path, close=lambda: None)):
    """Open an engine as a process would that knows nothing but what is on the disk."""
    store._verified.clear()
    return Store(root).opened(Store(root).find(Role("step"), "onnx", "fp32"), opener)


def test_weights_are_read_by_the_first_process_alone_and_graphs_by_every_one(root, weights, read, proved):
    assert another_process(root).path.name == "step.onnx"
    assert read == ["step.onnx", "weights.bin"]
    another_process(root)
    assert read == ["step.onnx", "weights.bin", "step.onnx"]
    assert proved.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("keeps_times", [False, True])
def test_a_byte_that_changes_in_place_is_noticed_in_spite_of_a_stamp_c1(root, weights, proved, keeps_times):
    another_process(root)
    before = weights.stat()
    with weights.open("r+b") as file:
        file.seek(100)
        byte = file.read(1)
        file.seek(100)
        file.write(bytes([byte[0] ^ 1]))
    if keeps_times:
        os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(EngineCorrupt, match=r"weights\.bin is not what was published"):
        another_process(root)


def test_another_file_in_its_place_is_read_c1(root, weights, read, proved):
    another_process(root)
    copy = weights.with_name("copy")
    copy.write_bytes(weights.read_bytes())
    os.utime(copy, ns=(weights.stat().st_atime_ns, weights.stat().st_mtime_ns))
    copy.replace(weights)
    read.clear()
    another_process(root)
    assert "weights.bin" in read


def test_no_stamp_is_taken_of_what_changed_just_now(root, weights, read, proved, monkeypatch):
    changed = weights.stat().st_ctime_ns
    for age, taken in (1.9, False), (2.1, True):
        monkeypatch.setattr(time, "time_ns", lambda age=age: changed + int(age * 1e9))
        another_process(root)
        assert proved.exists() == taken


def test_verify_reads_everything_whatever_the_stamps_say(root, weights, read, proved):
    another_process(root)
    name, digest = next(iter(json.loads(proved.read_text()).items()))
    read.clear()
    store._verified.clear()
    assert not [problem for _, problem in report.verify(root) if problem]
    assert "weights.bin" in read
    assert (name, digest) in json.loads(proved.read_text()).items()


def test_an_engine_for_a_gpu_is_read_whatever_the_stamps_say(tmp_path, workshop, read, proved, monkeypatch):
    monkeypatch.setattr(stamps, "LEAST", 10)
    monkeypatch.setattr(time, "time_ns", lambda now=time.time_ns: now() + 3600 * 10**9)
    workshop.make(tmp_path, workshop.wanted(target="tensorrt-rtx", precision="fp16"), model=workshop.facts())
    for _ in range(2):
        read.clear()
        store._verified.clear()
        found = Store(tmp_path)
        found.opened(found.find(Role("step"), "tensorrt-rtx", "fp16"), lambda artefact, path: SimpleNamespace())
        assert {"step.onnx", "weights.bin"} <= {*read}


@pytest.mark.parametrize("foreign", ["mode", "owner", "link", "text"])
def test_stamps_that_another_may_have_written_are_not_believed(root, weights, read, proved, monkeypatch, foreign):
    another_process(root)
    if foreign == "mode":
        proved.chmod(0o640)
    elif foreign == "owner":
        other = os.geteuid() + 1
        monkeypatch.setattr(os, "geteuid", lambda: other)
        monkeypatch.setattr(files, "own_folder", lambda: proved.parent)
    elif foreign == "link":
        proved.rename(proved.with_name("elsewhere"))
        proved.symlink_to("elsewhere")
    else:
        proved.write_text('["no stamps"')
    read.clear()
    another_process(root)
    assert "weights.bin" in read


def test_a_cache_that_cannot_be_written_costs_a_second_reading_and_nothing_else_b4(
    root, weights, read, proved, monkeypatch
):
    for folder in (lambda: None, lambda: Path("/proc/nowhere")):
        monkeypatch.setattr(files, "own_folder", folder)
        read.clear()
        another_process(root)
        assert "weights.bin" in read


def test_the_latest_stamps_are_kept(root, weights, proved, monkeypatch):
    monkeypatch.setattr(stamps, "MOST", 2)
    proved.touch(mode=0o600)
    proved.write_text(json.dumps({"1": "a", "2": "b"}))
    another_process(root)
    kept = json.loads(proved.read_text())
    assert len(kept) == 2
    assert "1" not in kept


def test_weights_are_hashed_while_the_graph_opens(root, weights, read, proved):
    def opener(artefact, path):
        while "weights.bin" not in read:
            time.sleep(0.001)
        return SimpleNamespace(close=lambda: None)

    another_process(root, opener)


def test_an_engine_whose_weights_prove_damaged_meanwhile_is_closed_and_never_used_c1(root, weights, proved):
    weights.write_bytes(bytes(weights.stat().st_size))
    closed = []
    with pytest.raises(EngineCorrupt):
        another_process(root, lambda artefact, path: SimpleNamespace(close=lambda: closed.append(True)))
    assert closed == [True]


def test_damage_explains_more_than_what_a_library_says_of_it_c1(root, weights, proved):
    def refuse(artefact, path):
        raise EngineIncompatible("it cannot be opened")

    with pytest.raises(EngineIncompatible, match="cannot be opened"):
        another_process(root, refuse)
    weights.write_bytes(bytes(weights.stat().st_size))
    with pytest.raises(EngineCorrupt, match=r"weights\.bin"):
        another_process(root, refuse)


def test_damage_to_a_graph_is_found_before_it_is_opened_c1(root, weights, proved):
    graph = weights.with_name("step.onnx")
    graph.write_bytes(bytes(graph.stat().st_size))
    with pytest.raises(EngineCorrupt, match=r"step\.onnx"):
        another_process(root, lambda artefact, path: pytest.fail("opened"))


def test_many_processes_note_their_proofs_at_once(weights, proved, tmp_path, monkeypatch):
    for number in range(8):
        np.arange(number + 10).tofile(tmp_path / f"{number}")
    paths = [tmp_path / f"{number}" for number in range(8)]

    def note(path):
        with files.open_regular(path) as file:
            return stamped(file)

    with ThreadPoolExecutor(8) as pool:
        assert len({*pool.map(note, paths)}) == 8
    assert json.loads(proved.read_text())  # whole; the last of those that came together may be the only one
    assert [path.name for path in proved.parent.iterdir() if stamps.NAME in path.name] == [stamps.NAME]
