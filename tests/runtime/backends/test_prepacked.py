"""Packed weights are kept, opened only in the state in which they were left, and compute the same bits."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from copies import copy_of

from clipskip.backends import prepacked
from clipskip.backends.onnxruntime import OnnxRuntime
from clipskip.engines import files, kept, locks, stamps
from clipskip.engines.manifest import Role
from clipskip.engines.store import Store
from clipskip.engines.variants import Changed
from clipskip.errors import EngineCorrupt

SIZES = {"B": 1, "N": 2, "R": 2, "T": 77, "h": 8, "w": 8}
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def cache(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of what is kept, empty; small models are kept as well, and nobody waits for a clock."""
    monkeypatch.setattr(prepacked, "LEAST", 0)
    monkeypatch.setattr(stamps, "settled", lambda state: True)
    monkeypatch.setattr(kept, "RESERVE", 0)
    monkeypatch.setattr(kept, "_told", set())
    folder = own_folder / kept.FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def run(store: Path, role: str = "encode", threads: int = 1, changed: dict[str, Changed] | None = None):
    """What a newly opened engine makes of inputs that are always the same."""
    artefact = Store(store).find(Role.parse(role), "onnx", "fp32", "cpu")
    draw = np.random.default_rng(0)
    feeds = {port.name: (draw.standard_normal(port.sized(SIZES)) / 10).astype(port.dtype) for port in artefact.inputs}
    engine = OnnxRuntime(threads=threads).open_changed(artefact, Store(store).verify(artefact), changed or {})
    outputs = engine.run(feeds)
    engine.close()
    return outputs


def same(one, other) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


def first(store: Path, **how):
    """As `run`, where it must be made first."""
    kept._told.clear()
    with pytest.warns(RuntimeWarning, match=r"go into .*/prepacked/.*, once, for faster starts \(CLIPSKIP_CACHE_GIB=0"):
        return run(store, **how)


@pytest.mark.parametrize("role", ["step", "decode", "encode"])
def test_what_is_kept_computes_the_same_bits(sample_store, cache, monkeypatch, role):
    monkeypatch.setenv(kept.LIMIT_VARIABLE, "0")
    plain = run(sample_store, role)
    assert not cache.exists()
    monkeypatch.delenv(kept.LIMIT_VARIABLE)
    assert same(first(sample_store, role=role), plain)
    (folder,) = cache.iterdir()
    monkeypatch.setattr(prepacked, "_saving", lambda *arguments: pytest.fail("made again"))
    assert same(run(sample_store, role, threads=2), plain)
    assert folder.name.startswith(f"{role}-cpu-")
    assert {path.name for path in folder.iterdir()} == {"graph.onnx", "weights.bin", "record.json"}
    assert folder.stat().st_mode & 0o077 == 0


def flip(folder: Path) -> None:
    with (folder / "weights.bin").open("r+b") as file:
        file.seek(5000)
        file.write(b"\x7f")


def copied(folder: Path) -> None:
    shutil.copytree(folder, folder.with_name("copy"))
    shutil.rmtree(folder)
    folder.with_name("copy").rename(folder)


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        lambda folder: (folder / "graph.onnx").write_bytes(b""),
        lambda folder: os.truncate(folder / "weights.bin", 100),
        lambda folder: (folder / "weights.bin").unlink(),
        lambda folder: (folder / "another").touch(),
        lambda folder: (folder / "record.json").write_text("{}"),
        lambda folder: (folder / "record.json").unlink(),
        copied,
    ],
)  # fmt: skip
def test_what_is_not_as_it_was_left_is_made_anew_and_never_opened_c1_c2_c20(sample_store, cache, damage):
    plain = first(sample_store)
    (folder,) = cache.iterdir()
    damage(folder)
    assert same(first(sample_store), plain)
    assert kept.intact(folder)


def test_a_graph_that_the_library_refuses_after_all_is_thrown_away(sample_store, cache):
    plain = first(sample_store)
    (folder,) = cache.iterdir()
    (folder / "graph.onnx").write_bytes(b"no graph")
    states = {path.name: [*_state(path)] for path in folder.iterdir() if path.name != kept.RECORD}
    (folder / kept.RECORD).write_text(json.dumps(states))
    assert same(run(sample_store), plain)
    assert not folder.exists()


def _state(path: Path) -> tuple[int, ...]:
    with files.open_regular(path) as file:
        return files.state_of(file)


@pytest.mark.parametrize("fact", ["processor", "version"])
def test_another_processor_or_version_has_its_own(sample_store, cache, monkeypatch, tmp_path, fact):
    first(sample_store)
    if fact == "processor":
        (tmp_path / "cpuinfo").write_text("processor: 0\nflags: sse2 avx2\n\nprocessor: 1\nflags: sse2\n")
        monkeypatch.setattr(prepacked, "CPUINFO", tmp_path / "cpuinfo")
        assert prepacked.processor() == "flags: sse2 avx2"
    else:
        monkeypatch.setattr("onnxruntime.__version__", "1.99")
    first(sample_store)
    assert len(list(cache.iterdir())) == 2


def test_a_processor_that_does_not_tell_its_instructions_is_known_by_its_machine(monkeypatch, tmp_path):
    monkeypatch.setattr(prepacked, "CPUINFO", tmp_path / "nothing")
    monkeypatch.setattr(prepacked.platform, "node", lambda: "this-one")
    assert prepacked.processor().endswith("this-one")


def test_the_least_recently_used_go_first(sample_store, cache, monkeypatch):
    def entry(version):
        """What is kept for a version of the library."""
        monkeypatch.setattr("onnxruntime.__version__", version)
        before = {*cache.iterdir()} if cache.exists() else set()
        first(sample_store)
        return ({*cache.iterdir()} - before).pop()

    old, new = entry("1"), entry("2")
    for path in old, new:
        os.utime(path, (1000, 1000))
    monkeypatch.setattr("onnxruntime.__version__", "1")
    run(sample_store)
    monkeypatch.setattr(kept, "limit", lambda: files.folder_size(old) * 5 // 2)
    third = entry("3")
    assert {*cache.iterdir()} == {old, third}
    monkeypatch.setattr(kept, "limit", lambda: files.folder_size(old) * 3 // 2)
    monkeypatch.setattr(prepacked, "GROWS", 1)
    run(sample_store)  # nothing is removed where nothing is added
    assert {*cache.iterdir()} == {old, third}


@pytest.mark.parametrize(("typed", "limit"), [("0.5", 2**29), ("0", 0), ("1e1", 10 << 30)])
def test_the_limit_is_a_number_of_gib(monkeypatch, typed, limit):
    monkeypatch.setenv(kept.LIMIT_VARIABLE, typed)
    assert kept.limit() == limit


@pytest.mark.parametrize("typed", ["-5", "nan", "inf", "abc", "20GB", ""])
def test_a_limit_that_is_no_number_is_said_once_and_the_default_holds(monkeypatch, typed):
    monkeypatch.setenv(kept.LIMIT_VARIABLE, typed)
    monkeypatch.setattr(kept, "_told", set())
    with pytest.warns(RuntimeWarning, match=f"CLIPSKIP_CACHE_GIB is a number of GiB .*, not '{typed}': 20 is taken"):
        assert kept.limit() == 20 << 30
    assert kept.limit() == 20 << 30


@pytest.mark.parametrize("fault", ["full", "written full", "read-only"])
def test_a_disk_that_takes_nothing_is_said_once_and_the_picture_is_made_b3_b4(sample_store, cache, monkeypatch, fault):
    if fault == "full":
        monkeypatch.setattr(kept.shutil, "disk_usage", lambda path: Usage(1, 1, 0))
    elif fault == "read-only":
        cache.parent.mkdir(exist_ok=True)
        cache.touch()
    else:
        monkeypatch.setattr(kept, "RESERVE", 0)
        monkeypatch.setattr(files, "flush", _full)
    said = "weights are not kept as this processor takes them"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        outputs = [run(sample_store) for _ in range(2)]
    assert same(*outputs)
    assert sum(said in str(each.message) for each in told) == 1
    assert not cache.is_dir() or not list(cache.iterdir())
    cache.unlink() if cache.is_file() else None


def _full(path: Path) -> None:
    raise OSError(28, "No space left on device", str(path))


def test_what_another_process_is_making_is_not_waited_for(sample_store, cache):
    cache.mkdir(parents=True)
    with locks.locked(cache / ".lock", lambda line: None):
        run(sample_store)
    assert list(cache.iterdir()) == []


def test_what_a_killed_process_left_half_made_is_removed_by_the_next_b2(sample_store, cache):
    (cache / ".tmp-encode-cpu-0123").mkdir(parents=True)
    (cache / ".tmp-encode-cpu-0123" / "weights.bin").write_bytes(b"half")
    first(sample_store)
    assert [path.name[:11] for path in cache.iterdir()] == ["encode-cpu-"]


def test_weights_that_a_lora_changed_are_neither_kept_nor_taken_from_there(sample_store, cache):
    plain = first(sample_store)
    artefact = Store(sample_store).find(Role("encode"), "onnx", "fp32", "cpu")
    table = json.loads((sample_store / artefact.files[1].path).read_text())
    name, (file, offset, nbytes, dtype, shape, *_) = next(item for item in table.items() if len(item[1][4]) == 4)
    stored = np.fromfile(sample_store / Path(artefact.files[1].path).with_name(file), dtype, nbytes // 4, offset=offset)
    changed = {name: Changed("key", 2 * stored.reshape(shape))}
    before = sorted(cache.rglob("*"))
    assert not same(run(sample_store, changed=changed), plain)
    assert sorted(cache.rglob("*")) == before


@pytest.mark.filterwarnings("ignore:up to .* go into:RuntimeWarning")  # an error would come before the fault
@pytest.mark.parametrize("least", [0, 2**40])
def test_damaged_weights_get_into_no_cache_whether_or_not_they_are_hashed_meanwhile_c1(
    sample_store, cache, monkeypatch, tmp_path, least
):
    monkeypatch.setattr(stamps, "LEAST", least)
    store = Store(copy_of(sample_store, tmp_path / "store"))
    encode = store.find(Role("encode"), "onnx", "fp32", "cpu")
    weights = store.root / encode.files[-1].path
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100] + bytes(100))
    with pytest.raises(EngineCorrupt, match=weights.name):
        store.opened(encode, OnnxRuntime(threads=1).open)
    assert not cache.exists() or list(cache.iterdir()) == []
    weights.write_bytes(whole)
    assert same(first(store.root), run(sample_store))


def test_a_record_is_written_only_when_later_changes_show(sample_store, cache, monkeypatch):
    asked, slept = [], []
    monkeypatch.setattr(stamps, "settled", lambda state: asked.append(state) or len(slept) > 2)
    monkeypatch.setattr(kept, "time", SimpleNamespace(sleep=slept.append))
    first(sample_store)
    assert slept == [0.1, 0.1, 0.1]
    assert len(asked[0]) == 5


def test_a_disk_whose_clock_is_ahead_is_not_waited_for(sample_store, cache, monkeypatch):
    monkeypatch.setattr(stamps, "settled", lambda state: False)
    monkeypatch.setattr(kept, "time", SimpleNamespace(sleep=lambda seconds: None))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run(sample_store)
    assert "the clock of" in str(told[-1].message)
    assert list(cache.iterdir()) == []


def test_a_model_beyond_the_limit_is_said_to_be_so(sample_store, cache, monkeypatch):
    monkeypatch.setenv(kept.LIMIT_VARIABLE, "0.001")
    with pytest.warns(RuntimeWarning, match=r"CLIPSKIP_CACHE_GIB allows 1\.1 MB"):
        run(sample_store)
    assert not cache.exists()


def test_where_the_system_has_no_users_nothing_is_kept(sample_store, cache, monkeypatch):
    monkeypatch.delattr(os, "geteuid")
    run(sample_store)
    assert not cache.exists()
