"""A form is compared with the exported graph on the GPU where it is first used, once."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles.onnxruntime import SimulatedOnnxRuntime
from doubles.store import publish_forms
from tiny_graphs import publish_graphs

from clipskip.backends.onnxruntime import OnnxRuntime
from clipskip.backends.providers import CUDA
from clipskip.engine_cache import EngineCache
from clipskip.engines.manifest import DECODE, ENCODE, STEP, Role
from clipskip.engines.store import Store
from clipskip.errors import NumericalError

ROLES = [STEP, DECODE, ENCODE, Role("text", 3)]


@pytest.fixture
def ort(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedOnnxRuntime]:
    yield SimulatedOnnxRuntime().installed(monkeypatch)
    gc.collect()


@pytest.fixture
def store(tmp_path: Path, own_folder: Path) -> Store:
    for record in own_folder.glob("*.proof"):
        record.unlink()
    return publish_graphs(tmp_path / "store")


def sessions_used(ort: SimulatedOnnxRuntime, store: Store, role: Role) -> int:
    """How many sessions it takes to open an engine on CUDA."""
    before, cache = len(ort.sessions), EngineCache(store, OnnxRuntime([CUDA]), 10**9)
    with cache.use(role) as engine:
        assert engine.artefact.variant == "cuda"
    cache.close()
    return len(ort.sessions) - before


@pytest.mark.parametrize("role", ROLES, ids=str)
def test_a_form_is_compared_once_and_the_result_is_kept(
    ort: SimulatedOnnxRuntime, store: Store, role: Role, own_folder: Path
) -> None:
    forms = publish_forms(store)
    assert sessions_used(ort, forms, role) > 2
    (record,) = own_folder.glob("*.proof")
    content = json.loads(record.read_text())
    assert content["form"] == f"{role}-cuda"
    assert "simulated GPU, compute capability 8.9" in content["on"]
    assert "psnr_db" in content or content["relative_l2"] == 0
    assert sessions_used(ort, forms, role) <= 1


def test_a_form_that_another_gpu_or_version_proved_is_compared_again(
    ort: SimulatedOnnxRuntime, store: Store, own_folder: Path
) -> None:
    forms = publish_forms(store)
    sessions_used(ort, forms, STEP)
    ort.cuda.devices[0].capability = (9, 0)
    sessions_used(ort, forms, STEP)
    ort.__version__ = "1.99.0"  # type: ignore[misc]
    sessions_used(ort, forms, STEP)
    assert len(list(own_folder.glob("*.proof"))) == 3


def test_a_form_that_computes_something_else_here_is_refused_each_time(
    ort: SimulatedOnnxRuntime, store: Store, own_folder: Path
) -> None:
    forms = publish_forms(store, spoilt=1.1)
    for _ in range(2):
        with pytest.raises(
            NumericalError, match=r"step-cuda on simulated GPU.*differs from step: relative_l2"
        ) as caught:
            sessions_used(ort, forms, STEP)
    assert f"diagnose {store.root} step" in str(caught.value.hint)
    assert caught.value.exit_status == 6
    assert not list(own_folder.glob("*.proof"))
    del caught
    gc.collect()
    assert not ort.cuda.devices[0].blocks, "what was refused is still open"


def test_where_nothing_can_be_recorded_a_form_is_compared_in_every_process(
    ort: SimulatedOnnxRuntime, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipskip.engines.files.own_folder", lambda: None)
    forms = publish_forms(store)
    assert sessions_used(ort, forms, STEP) == sessions_used(ort, forms, STEP) > 2


def test_on_the_cpu_there_is_nothing_to_prove(store: Store, own_folder: Path) -> None:
    backend = OnnxRuntime()
    backend.variants = ("cuda", "")
    with EngineCache(publish_forms(store), backend, 10**9).use(DECODE) as engine:
        assert engine.artefact.variant == "cuda"
    assert not list(own_folder.glob("*.proof"))


def test_without_a_form_a_note_names_the_command_that_makes_one(ort: SimulatedOnnxRuntime, store: Store) -> None:
    backend = OnnxRuntime([CUDA])
    (note,) = EngineCache(store, backend, 0).notes
    assert f"build {store.root} --target onnxruntime-cuda" in note
    assert EngineCache(publish_forms(store), backend, 0).notes == []
    assert EngineCache(store, OnnxRuntime(), 0).notes == []


def test_one_may_insist_on_the_exported_graphs(ort: SimulatedOnnxRuntime, store: Store) -> None:
    backend = OnnxRuntime([CUDA])
    backend.variants = ("",)
    cache = EngineCache(publish_forms(store), backend, 0)
    assert cache.artefact(STEP).variant == ""
    assert cache.notes == []
