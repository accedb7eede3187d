"""Engines tuned on a GPU: what their keys hold, and one build at a time. GPU and compiler are made up."""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_graphs import publish_graphs

from clipskip.engines import gpu, tensorrt
from clipskip.engines.gpu import Gpu
from clipskip.engines.manifest import Role
from clipskip.engines.shapes import BuildOptions
from clipskip.engines.store import Store
from clipskip.engines.tensorrt import build
from clipskip.engines.tensorrt_child import Job, Outcome
from clipskip.errors import BackendUnavailable

CARD = Gpu("RTX 4090", "8.9", 24 << 30, "abc", "13.0")


class Workshop:
    """Stands for TensorRT: `jobs` are what it was asked to compile, `together` how many at once at most."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.jobs: list[Job] = []
        self.card, self.version = CARD, "11.4.0"
        self.busy = self.together = 0
        self.lock = threading.Lock()
        monkeypatch.setattr(tensorrt, "load_builder", lambda target: SimpleNamespace(__version__=self.version))
        monkeypatch.setattr(tensorrt, "compile_in_child", self.compile)
        monkeypatch.setattr(gpu, "cuda_runtime", lambda: None)
        monkeypatch.setattr(gpu, "describe", lambda runtime, index: self.card)

    def compile(self, role: str, job: Job, progress: Any) -> Outcome:
        with self.lock:
            self.busy += 1
            self.together = max(self.together, self.busy)
            self.jobs.append(job)
        time.sleep(0.02)
        Path(job.engine).write_bytes(role.encode() * 1000)
        with self.lock:
            self.busy -= 1
        return Outcome((), 1)

    def rebuilt(self, root: Path) -> list[str]:
        results = build(Store(root), target="tensorrt", options=BuildOptions(), progress=lambda line: None)
        return [each.role for each in results if each.rebuilt]


@pytest.fixture
def workshop(monkeypatch: pytest.MonkeyPatch) -> Workshop:
    return Workshop(monkeypatch)


def test_the_manifest_names_the_gpu_and_a_rebuild_on_it_builds_nothing(workshop: Workshop, tmp_path: Path) -> None:
    publish_graphs(tmp_path)
    assert len(workshop.rebuilt(tmp_path)) == 5
    assert workshop.rebuilt(tmp_path) == []
    assert Store(tmp_path).find(Role("step"), "tensorrt", "fp16").provenance == {
        "package": "tensorrt 11.4.0",
        "compute capability": "8.9",
        "device": "RTX 4090, compute capability 8.9, CUDA 13",
    }


@pytest.mark.parametrize(
    "change",
    [
        {"version": "11.5.0"},
        {"card": replace(CARD, name="RTX 4080")},
        {"card": replace(CARD, compute_capability="12.0")},
        {"card": replace(CARD, cuda="14.0")},
    ],
)
def test_another_version_gpu_or_driver_rebuilds_everything_b15(
    workshop: Workshop, tmp_path: Path, change: dict[str, Any]
) -> None:
    publish_graphs(tmp_path)
    workshop.rebuilt(tmp_path)
    vars(workshop).update(change)
    assert len(workshop.rebuilt(tmp_path)) == 5


def test_a_driver_of_the_same_major_version_rebuilds_nothing(workshop: Workshop, tmp_path: Path) -> None:
    publish_graphs(tmp_path)
    workshop.rebuilt(tmp_path)
    workshop.card = replace(CARD, cuda="13.2")
    assert workshop.rebuilt(tmp_path) == []


def test_timings_are_kept_in_the_user_s_own_folder_for_each_version_and_device(
    workshop: Workshop, tmp_path: Path, own_folder: Path
) -> None:
    publish_graphs(tmp_path)
    workshop.rebuilt(tmp_path)
    workshop.version, workshop.card = "11.5.0", replace(CARD, uuid="def")
    workshop.rebuilt(tmp_path)
    names = {Path(job.timing_cache or "").name for job in workshop.jobs}
    assert names == {"timing-tensorrt-11.4.0-abc.cache", "timing-tensorrt-11.5.0-def.cache"}
    assert {Path(job.timing_cache or "").parent for job in workshop.jobs} == {own_folder}


def test_two_builds_on_one_gpu_wait_for_each_other_b7(workshop: Workshop, tmp_path: Path) -> None:
    roots = [tmp_path / name for name in ("one", "two")]
    for root in roots:
        publish_graphs(root)
    with ThreadPoolExecutor(2) as threads:
        assert [len(each) for each in threads.map(workshop.rebuilt, roots)] == [5, 5]
    assert workshop.together == 1


def test_nobody_else_can_hold_the_lock_of_a_gpu_b7(
    workshop: Workshop, tmp_path: Path, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in no folder that all users share, and a folder that others may write to is not used."""
    locks: list[Path] = []
    monkeypatch.setattr(tensorrt, "locked", lambda path, progress: nullcontext(locks.append(path)))
    publish_graphs(tmp_path / "store")
    workshop.rebuilt(tmp_path / "store")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "clipskip").mkdir()
    (tmp_path / "clipskip").chmod(0o777)
    workshop.rebuilt(tmp_path / "store")
    assert locks == [own_folder / "gpu-abc.lock"]
    assert own_folder.stat().st_mode & 0o777 == 0o700


def test_a_tensorrt_that_does_not_know_attention_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """10.13 and older: neither its Python package nor its ONNX parser has it."""
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.13.3"))
    with pytest.raises(BackendUnavailable, match=r"tensorrt 10\.13\.3 cannot read the graphs") as caught:
        build(publish_graphs(tmp_path), target="tensorrt", options=BuildOptions(), progress=lambda line: None)
    assert "10.14" in str(caught.value.hint)
