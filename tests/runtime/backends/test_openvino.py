"""OpenVINO: the same graphs and pictures as ONNX Runtime's, and bfloat16 only where it is asked for."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from step_feeds import FEEDBACK

import clipskip
from clipskip.backends import backend_named
from clipskip.backends import openvino as module
from clipskip.backends.openvino import OpenVino
from clipskip.engines import gates, trials
from clipskip.engines.manifest import DECODE, ENCODE, STEP, Role
from clipskip.engines.store import Store
from clipskip.errors import BackendUnavailable, EngineIncompatible, RequestError

if find_spec("openvino") is None:
    pytest.skip("the extra openvino is not installed", allow_module_level=True)
PROMPT, ROLES = "a large red circle on a green background", (STEP, DECODE, ENCODE, Role("text", 11), Role("text", 0))


@pytest.fixture(scope="module")
def store(sample_store: Path) -> Store:
    return Store(sample_store)


def has_bf16() -> bool:
    try:
        OpenVino(["step"])
    except BackendUnavailable:
        return False
    return True


@pytest.mark.parametrize("role", ROLES, ids=str)
def test_a_graph_gives_what_onnx_runtime_makes_of_it(store: Store, role: Role) -> None:
    graph = store.find(role, "onnx", "fp32")
    engine = OpenVino().open(graph, path := store.verify(graph))
    feeds = trials.of(role, store.manifest().model, False, graph.inputs)
    given = [engine.run(each) for each in feeds]
    gates.judge(role, list(zip(given, gates.run(path, feeds), strict=True)), {}, "openvino")
    engine.close()


def test_a_loop_feeds_back_what_it_gives_and_takes_single_slots(store: Store) -> None:
    graph = store.find(STEP, "onnx", "fp32")
    engine = OpenVino(threads=1).open(graph, store.verify(graph))
    feeds = dict(trials.of(STEP, store.manifest().model, False, graph.inputs)[1])
    loop = engine.loop(feeds, FEEDBACK)
    loop.run({})
    first = engine.run(feeds)["next_state"]
    assert np.array_equal(loop.read("state"), first)
    assert np.array_equal(loop.read("state", 1), first[1])
    loop.write("state", 0, feeds["state"][0])
    loop.run({"noise": feeds["noise"] * 2})
    by_hand = feeds | {"noise": feeds["noise"] * 2, "state": np.stack([feeds["state"][0], first[1]])}
    assert np.array_equal(loop.read("state"), engine.run(by_hand)["next_state"])
    with pytest.raises(ValueError, match="noise"):
        loop.run({"noise": feeds["noise"][:1]})
    loop.close()


def test_pictures_are_those_of_onnx_runtime_within_one_level_alone_and_in_a_batch(sample_store: Path) -> None:
    asked: dict[str, Any] = {"seed": 7, "steps": 6, "width": 64, "height": 64}
    with clipskip.open(sample_store) as usual, clipskip.open(sample_store, backend="openvino") as pipe:
        for settings in ({"clip_skip": 2}, {"clip_skip": "[9:1:0.4]", "sampler": "Euler a"}):
            one, other = (np.asarray(each(PROMPT, **asked, **settings).images[0], int) for each in (usual, pipe))
            assert np.abs(one - other).max() <= 1
        alone = pipe(PROMPT, **asked | {"seed": 8}).images[0]
        assert np.array_equal(alone, pipe(PROMPT, **asked, batch=3).images[1])
        assert pipe.backend.describe()["bf16"] == ""


@pytest.mark.skipif(not has_bf16(), reason="this processor has no bfloat16")
def test_a_step_in_bfloat16_is_asked_for_by_name_and_stays_close(sample_store: Path) -> None:
    asked: dict[str, Any] = {"seed": 7, "steps": 12}
    with clipskip.open(sample_store) as usual, clipskip.open(sample_store, backend="openvino-bf16") as pipe:
        results = [each(PROMPT, **asked) for each in (usual, pipe)]
        exact, close = (np.asarray(result.images[0]) for result in results)
        assert [sum("bfloat16 (step)" in note for note in result.warnings) for result in results] == [0, 1]
        assert pipe.backend.describe()["bf16"] == "step"
    assert 40 <= gates.psnr(close, exact) < 100


def test_what_cannot_be_had_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="'unet'"):
        OpenVino(["unet"])
    with pytest.raises(RequestError, match="number 1"):
        backend_named("openvino", device=1)
    core = SimpleNamespace(get_property=lambda _, name: [] if name == "OPTIMIZATION_CAPABILITIES" else "Core 2 Duo")
    monkeypatch.setattr(module.importlib, "import_module", lambda name: SimpleNamespace(Core=lambda: core))
    with pytest.raises(BackendUnavailable, match="Core 2 Duo"):
        OpenVino(["step"])
    assert OpenVino().name == "openvino"

    def absent(name: str) -> None:
        raise ModuleNotFoundError(name=name)

    monkeypatch.setattr(module.importlib, "import_module", absent)
    with pytest.raises(BackendUnavailable, match="not installed") as caught:
        backend_named("openvino-bf16")
    assert "openvino" in str(caught.value.hint)


def test_nothing_is_reported_to_anybody_nor_left_in_the_users_folder(tmp_path: Path) -> None:
    ask = "import sys; from clipskip.backends import backend_named; backend_named('openvino')"
    ask += "; print('openvino_telemetry' in sys.modules)"
    home = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", ask], env=home, capture_output=True, text=True, timeout=120)
    assert (done.stdout.strip(), done.stderr) == ("False", "")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_graph_is_named(store: Store, tmp_path: Path) -> None:
    (tmp_path / "step.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineIncompatible, match=r"step\.onnx"):
        OpenVino().open(store.find(STEP, "onnx", "fp32"), tmp_path / "step.onnx")
    text = store.find(Role("text", 11), "onnx", "fp32")
    with pytest.raises(EngineIncompatible, match="state"):
        OpenVino().open(store.find(STEP, "onnx", "fp32"), store.verify(text))


def test_a_pickled_backend_is_made_anew() -> None:
    again = pickle.loads(pickle.dumps(OpenVino(threads=1)))
    assert (again.name, again.threads) == ("openvino", 1)
