"""ONNX Runtime as it is on the CPU, and other providers on a double; test_onnxruntime_cuda.py has CUDA's executions."""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import doubles.onnxruntime as double
import numpy as np
import onnx
import onnxruntime
import pytest
from doubles.onnxruntime import PLUGIN, SimulatedOnnxRuntime
from onnxruntime.capi.onnxruntime_pybind11_state import OrtEpDevice
from step_feeds import FEEDBACK, denoised, feeds, joined, joined_by_hand
from tiny_graphs import publish_graphs

from clipskip.backends import Engine, backend_named
from clipskip.backends.onnxruntime import OnnxRuntime
from clipskip.backends.providers import BY_TARGET, CUDA, TENSORRT, TENSORRT_RTX, options
from clipskip.backends.sessions import ONE_NODE
from clipskip.engines.manifest import STEP, Dim, Role
from clipskip.engines.store import Store
from clipskip.errors import BackendUnavailable, EngineIncompatible, RequestError


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return publish_graphs(tmp_path_factory.mktemp("store"))


@pytest.fixture
def ort(monkeypatch: pytest.MonkeyPatch) -> SimulatedOnnxRuntime:
    """The double in place of the package, from here to the end of the test."""
    return SimulatedOnnxRuntime(devices=2).installed(monkeypatch)


def opened(store: Store, backend: OnnxRuntime, role: str = "step") -> Engine:
    artefact = store.find(Role.parse(role), "onnx", "fp16")
    return backend.open(artefact, store.verify(artefact))


@pytest.fixture(scope="module")
def expected(store: Store) -> np.ndarray:
    """What the real package computes on the CPU."""
    return denoised(opened(store, OnnxRuntime(threads=1)), feeds(1))


@pytest.mark.parametrize("target", ["onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime-tensorrt-rtx"])
def test_a_loop_gives_what_the_cpu_gives(
    ort: SimulatedOnnxRuntime, store: Store, expected: np.ndarray, target: str
) -> None:
    backend = backend_named(target)
    assert (backend.name, backend.target, backend.precision) == (target, "onnx", "fp16")
    assert np.array_equal(denoised(opened(store, backend), feeds(1)), expected)


@pytest.mark.parametrize("target", ["onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt-rtx"])
def test_images_that_join_a_running_loop_are_as_if_their_inputs_had_been_fed_whole(
    monkeypatch: pytest.MonkeyPatch, store: Store, target: str
) -> None:
    inputs = feeds(9, batch=3, rows=6)
    expected = joined_by_hand(opened(store, OnnxRuntime(threads=1)), inputs)
    if target != "onnxruntime":
        SimulatedOnnxRuntime().installed(monkeypatch)
    backend = backend_named(target) if target != "onnxruntime" else OnnxRuntime(threads=1)
    assert np.array_equal(joined(opened(store, backend), inputs), expected)


@pytest.mark.parametrize("provider", [CUDA, TENSORRT, TENSORRT_RTX])
def test_everything_of_a_session_is_on_the_device_that_was_asked_for(
    ort: SimulatedOnnxRuntime, store: Store, expected: np.ndarray, provider: str
) -> None:
    engines = [opened(store, OnnxRuntime([provider], device=device)) for device in (0, 1)]
    assert all(np.array_equal(denoised(engine, feeds(1)), expected) for engine in engines)
    assert [session.devices for session in ort.sessions[-2:]] == [{0}, {1}]


@pytest.mark.parametrize(
    ("provider", "device", "error"),
    [(CUDA, 2, BackendUnavailable), (TENSORRT_RTX, 2, BackendUnavailable), ("CPUExecutionProvider", 1, RequestError)],
)
def test_a_device_that_is_not_there_is_refused(
    ort: SimulatedOnnxRuntime, provider: str, device: int, error: type[Exception]
) -> None:
    with pytest.raises(error):
        OnnxRuntime([provider], device=device).check()


@pytest.mark.parametrize("what", ["run", "loop"])
def test_on_the_cpu_one_of_our_frames_lies_above_a_run(store: Store, what: str) -> None:
    engine = opened(store, OnnxRuntime())
    depths: list[int] = []

    class Session:
        def run(self, *arguments: Any) -> list[Any]:
            modules = [str(frame.frame.f_globals["__name__"]) for frame in inspect.stack()]
            depths.append(sum(module.startswith("clipskip.") for module in modules))
            return [None]

        run_with_iobinding = run

        def io_binding(self) -> SimpleNamespace:
            return SimpleNamespace(bind_ortvalue_input=print, bind_ortvalue_output=print)

    engine._session = Session()
    engine.run({}) if what == "run" else engine.loop({}, {}).run({})
    assert depths == [1]


def test_where_a_process_cannot_ask_which_cores_it_may_use_it_takes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    assert OnnxRuntime().threads == os.cpu_count()


def test_a_name_that_no_backend_has_is_refused_with_those_that_exist() -> None:
    with pytest.raises(RequestError, match=r"onnxruntime, onnxruntime-cuda, .*, tensorrt, tensorrt-rtx; not 'torch'"):
        backend_named("torch")


def test_a_graph_may_lie_in_another_folder_than_its_weights(store: Store, tmp_path: Path, expected: np.ndarray) -> None:
    artefact = store.find(STEP, "onnx", "fp16")
    root = shutil.copytree(store.root, tmp_path / "store")
    (root / "apart").mkdir()
    path = (root / artefact.files[0].path).rename(root / "apart" / "step.onnx")
    own = replace(artefact.files[0], path="apart/step.onnx")
    engine = OnnxRuntime(threads=1).open(replace(artefact, files=(own, *artefact.files[1:])), path)
    assert np.array_equal(denoised(engine, feeds(1)), expected)


def test_on_the_cpu_eight_loops_may_be_open_at_once(store: Store, expected: np.ndarray) -> None:
    backend = OnnxRuntime(threads=1)
    engine = opened(store, backend)
    held = [engine.loop(feeds(seed), FEEDBACK) for seed in range(backend.loops)]
    assert len(held) == 8
    assert np.array_equal(denoised(engine, feeds(1)), expected)


def test_a_fall_back_to_the_cpu_is_refused(ort: SimulatedOnnxRuntime, store: Store) -> None:
    ort.falls_back = True
    with pytest.raises(BackendUnavailable, match="fell back to CPUExecutionProvider") as caught:
        opened(store, OnnxRuntime([TENSORRT]))
    assert caught.value.exit_status == 5


def test_what_tensorrt_compiles_is_kept_in_the_user_s_own_folder(
    ort: SimulatedOnnxRuntime, store: Store, own_folder: Path
) -> None:
    opened(store, OnnxRuntime([TENSORRT]))
    told = ort.sessions[-1].told
    folder = Path(told["trt_engine_cache_path"])
    assert folder.is_dir()
    assert folder == own_folder / f"{store.find(STEP, 'onnx', 'fp16').files[0].sha256[:32]}.onnxruntime-tensorrt"
    assert told["trt_timing_cache_path"] == str(folder)
    assert (told["trt_engine_cache_enable"], told["trt_fp16_enable"]) == ("True", "True")
    assert ort.sessions[-1].names == [TENSORRT, CUDA], "CUDA computes what TensorRT cannot"


def test_a_folder_that_cannot_be_made_means_no_cache(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("stands in the way even where root may write")
    for folder in (tmp_path / "cache", None):
        assert options(BY_TARGET["onnxruntime-tensorrt"], folder, half=False) == {}


def test_where_no_graph_can_be_opened_the_provider_is_to_blame(ort: SimulatedOnnxRuntime, store: Store) -> None:
    with pytest.raises(BackendUnavailable, match=r"\[TensorRT\]") as caught:
        opened(store, OnnxRuntime([TENSORRT], settings={"trt_int8_enable": "1"}))
    assert caught.value.hint


def test_loading_cuda_s_libraries_prints_nothing_on_stdout(
    ort: SimulatedOnnxRuntime, capsys: pytest.CaptureFixture[str]
) -> None:
    OnnxRuntime([CUDA])
    assert ort.preloaded == 1
    assert capsys.readouterr().out == ""


def test_a_plugin_is_registered_once_in_a_process(ort: SimulatedOnnxRuntime) -> None:
    OnnxRuntime([TENSORRT_RTX])
    OnnxRuntime([TENSORRT_RTX])
    assert ort.plugins == {TENSORRT_RTX: "plugin.so"}


@pytest.mark.parametrize(
    ("module", "devices", "message"),
    [
        (None, True, f"{PLUGIN} is not installed"),
        (SimpleNamespace(get_library_path=lambda: "missing"), True, "cannot be loaded: missing"),
        (SimpleNamespace(get_library_path=lambda: "plugin.so"), False, "finds no GPU"),
    ],
)
def test_a_plugin_that_cannot_be_used_says_why(
    ort: SimulatedOnnxRuntime, monkeypatch: pytest.MonkeyPatch, module: Any, devices: bool, message: str
) -> None:
    monkeypatch.setitem(sys.modules, PLUGIN, module)
    ort.devices = int(devices)
    with pytest.raises(BackendUnavailable, match=message) as caught:
        OnnxRuntime([TENSORRT_RTX])
    assert caught.value.exit_status == 5
    assert caught.value.hint


def test_a_graph_that_cannot_be_opened_is_incompatible(tmp_path: Path, store: Store) -> None:
    (tmp_path / "step.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineIncompatible, match=r"cannot open step\.onnx"):
        OnnxRuntime().open(store.find(STEP, "onnx", "fp16"), tmp_path / "step.onnx")


def test_the_double_offers_nothing_that_the_package_does_not_have() -> None:
    module = {name for name in vars(SimulatedOnnxRuntime) if not name.startswith("_")} - {"installed"} | {"OrtValue"}
    assert module <= set(dir(onnxruntime))
    for mine, real in (
        (double.SimulatedSession, onnxruntime.InferenceSession),
        (double.SimulatedBinding, onnxruntime.IOBinding),
        (double.SimulatedValue, onnxruntime.OrtValue),
    ):
        offered = {name for name in vars(mine) if not name.startswith("_")}
        assert offered <= set(dir(real)), mine.__name__
    assert {"add_initializer", "add_free_dimension_override_by_name"} <= set(dir(onnxruntime.SessionOptions))
    assert hasattr(OrtEpDevice, "ep_name")
    assert hasattr(onnxruntime.SessionOptions, "add_provider_for_devices")


def test_a_check_opens_a_graph_of_one_node(ort: SimulatedOnnxRuntime) -> None:
    OnnxRuntime([CUDA]).check()
    ort.falls_back = True
    with pytest.raises(BackendUnavailable, match="fell back to CPUExecutionProvider") as caught:
        OnnxRuntime([TENSORRT]).check()
    assert "tensorrt" in str(caught.value.hint)


def test_the_check_s_graph_is_one_that_onnx_runtime_computes() -> None:
    OnnxRuntime().check()
    session = onnxruntime.InferenceSession(ONE_NODE, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.ones(1, np.float32)})[0] == [-1]


def test_a_check_leaves_no_cache_anywhere(ort: SimulatedOnnxRuntime) -> None:
    OnnxRuntime([TENSORRT]).check()
    assert not [name for name in ort.sessions[-1].told if "cache" in name], "without a folder it would be this one"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "float32"}, "it differs in context"),
        ({"shape": (Dim("N"), Dim("T"))}, "it differs in context"),
        ({"name": "contexts"}, "it differs in context, contexts"),
    ],
)
def test_a_graph_with_other_ports_than_the_manifest_s_is_refused_when_it_is_opened_c11(
    store: Store, change: dict[str, Any], message: str
) -> None:
    artefact = store.find(STEP, "onnx", "fp16")
    inputs = tuple(replace(port, **change) if port.name == "context" else port for port in artefact.inputs)
    with pytest.raises(EngineIncompatible, match=f"step.onnx is no step as the manifest has it: {message}"):
        OnnxRuntime().open(replace(artefact, inputs=inputs), store.verify(artefact))


def test_a_graph_that_says_it_is_of_another_depth_is_refused_when_it_is_opened_c11(
    store: Store, tmp_path: Path
) -> None:
    artefact = store.find(Role("text", 3), "onnx", "fp16")
    model = onnx.load(store.verify(artefact))
    path = tmp_path / "text-03.onnx"
    for role, fits in (("whatever", True), ("text-03", True), ("text-00", False)):
        del model.metadata_props[:]
        model.metadata_props.add(key="clipskip.role", value=role)
        onnx.save(model, path)
        if fits:
            OnnxRuntime().open(artefact, path)
        else:
            with pytest.raises(EngineIncompatible, match="is no text-03 as the manifest has it: it is text-00"):
                OnnxRuntime().open(artefact, path)


LIMITED = """
import os, resource, sys
from pathlib import Path
from clipskip.backends.onnxruntime import OnnxRuntime
from clipskip.engines.manifest import STEP
from clipskip.engines.store import Store
from clipskip.errors import ClipskipError
kind, root = sys.argv[1:]
store = Store(root)
artefact = store.find(STEP, "onnx", "fp16")
path = store.verify(artefact)
if kind != "import":
    backend = OnnxRuntime(threads=2)
if kind == "memory":
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + (4 << 20),) * 2)
else:
    open_ones = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_ones - 1,) * 2)
try:
    backend = OnnxRuntime(threads=2) if kind == "import" else backend
    backend.open(artefact, path)
except ClipskipError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts what is open by Linux's /proc")
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("memory", "DeviceOutOfMemory there is not enough memory"),
        ("files", "Too many open"),
        ("import", "Too many open"),
    ],
)
def test_a_lack_of_memory_or_of_open_files_is_called_that(store: Store, kind: str, said: str) -> None:
    command = [sys.executable, "-c", LIMITED, kind, str(store.root)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert said in done.stdout, done.stdout + done.stderr
    assert "NVIDIA" not in done.stdout
    assert "install" not in done.stdout
