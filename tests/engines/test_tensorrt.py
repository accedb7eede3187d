"""Engines really built by TensorRT-RTX, which needs no GPU for it, from networks of a few nodes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from tiny_graphs import DECODE, HEADER, publish_graphs, save

from clipskip.engines import tensorrt_child, tensorrt_compile
from clipskip.engines.manifest import AxisRange, Role
from clipskip.engines.shapes import BuildOptions
from clipskip.engines.store import Store
from clipskip.engines.tensorrt import FIRST_GPU, Built, build, own_attentions, toolchain
from clipskip.engines.tensorrt_child import Job, compile_in_child
from clipskip.engines.tensorrt_compile import BuildError, Log, out_of_memory, set_timing_cache
from clipskip.errors import (
    BackendUnavailable,
    DeviceOutOfMemory,
    EngineCorrupt,
    EngineMissing,
    ExportError,
    RequestError,
)

trt = pytest.importorskip("tensorrt_rtx")

TARGET = "tensorrt-rtx"
ROLES = ["text-00", "text-03", "step", "decode", "encode"]


def built(root: Path, options: BuildOptions | None = None, said: list[str] | None = None) -> list[Built]:
    progress = (lambda line: None) if said is None else said.append
    return build(Store(root), target=TARGET, options=options or BuildOptions(), progress=progress)


def rebuilt(results: list[Built]) -> list[str]:
    return [each.role for each in results if each.rebuilt]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with real engines of every role."""
    path = publish_graphs(tmp_path_factory.mktemp("store")).root
    assert rebuilt(built(path)) == ROLES
    return path


def decode_job(tmp_path: Path, text: str = DECODE, **changes: Any) -> Job:
    profile = ((1, 4, 4, 4), (1, 4, 8, 8), (2, 4, 8, 8))
    fields = {"profiles": {"latents": profile}, **changes}
    return Job(TARGET, str(save(text, tmp_path / "decode.onnx")), str(tmp_path / "decode.engine"), **fields)


def test_a_child_counts_its_own_peak_memory_and_not_what_its_parent_held(tmp_path: Path) -> None:
    held = b"x" * (128 << 20)
    code = "from clipskip.engines.tensorrt_compile import peak_bytes; print(peak_bytes())"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert 5e6 < int(done.stdout) < len(held)
    assert compile_in_child("decode", decode_job(tmp_path), lambda line: None).peak_bytes > 50e6


def test_every_engine_is_published_and_verified(root: Path) -> None:
    store = Store(root)
    for role in ROLES:
        artefact = store.find(Role.parse(role), TARGET, "fp16")
        graph = store.find(Role.parse(role), "onnx", "fp16")
        assert (
            store.verify(artefact).read_bytes()[:4]
            == store.verify(store.find(Role("step"), TARGET, "fp16")).read_bytes()[:4]
        )
        assert (artefact.inputs, artefact.outputs) == (graph.inputs, graph.outputs)
        assert artefact.provenance == {
            "package": f"tensorrt_rtx {trt.__version__}",
            "compute capability": "8.6, 8.9, 12.0",
            "device": "any",
        }
    assert store.find(Role("step"), TARGET, "fp16").axes["h"] == AxisRange(4, 8, 12)


def test_a_rebuild_builds_nothing(root: Path) -> None:
    assert rebuilt(built(root)) == []


def test_other_sizes_rebuild_exactly_the_networks_and_say_why(root: Path) -> None:
    said: list[str] = []
    assert rebuilt(built(root, BuildOptions(sizes=AxisRange(32, 64, 64)), said)) == ["step", "decode", "encode"]
    assert any(line.startswith("step: axis h: 4..8..12 -> 4..8..8") for line in said)


def test_another_length_of_prompts_rebuilds_text_engines_and_the_step_only(root: Path) -> None:
    options = BuildOptions(sizes=AxisRange(32, 64, 64), max_chunks=1)
    assert rebuilt(built(root, options)) == ["text-00", "text-03", "step"]


def test_only_the_wanted_depths_are_built(tmp_path: Path) -> None:
    publish_graphs(tmp_path)
    results = built(tmp_path, BuildOptions(layers=[3], max_batch=1, max_chunks=1, sizes=AxisRange(32, 32, 32)))
    assert [each.role for each in results] == ["text-03", "step", "decode", "encode"]
    with pytest.raises(EngineMissing, match="text-07"):
        built(tmp_path, BuildOptions(layers=[7]))


def test_compute_capabilities_are_recorded_and_an_unknown_one_is_refused_by_name(tmp_path: Path) -> None:
    job = decode_job(tmp_path, compute_capabilities=("8.6", "8.9"))
    compile_in_child("decode", job, lambda line: None)
    with pytest.raises(RequestError, match=r"compute capability 9\.9.*SM80"):
        compile_in_child("decode", decode_job(tmp_path, compute_capabilities=("9.9",)), lambda line: None)


def test_a_damaged_graph_is_refused_before_tensorrt_reads_it(tmp_path: Path) -> None:
    store = publish_graphs(tmp_path)
    path = tmp_path / store.find(Role("text", 0), "onnx", "fp16").files[0].path
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(EngineCorrupt):
        built(tmp_path)


UNKNOWN = (
    HEADER
    + """
g (float[B,4,h,w] latents) => (float[B,4,h,w] y) { y = com.example.Mystery (latents) }
"""
)


def test_a_node_that_tensorrt_does_not_know_is_named(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(UNKNOWN.replace('"": 23', '"": 23, "com.example": 1'))
    model.graph.node[0].name = "the_odd_one"
    job = decode_job(tmp_path)
    onnx.save(model, job.onnx)
    with pytest.raises(ExportError, match=r"node the_odd_one \(Mystery\)") as caught:
        compile_in_child("decode", job, lambda line: None)
    assert caught.value.hint


def test_a_build_that_returns_nothing_is_an_error_with_tensorrt_s_words_b10(tmp_path: Path) -> None:
    falling = ((2, 4, 8, 8), (1, 4, 8, 8), (1, 4, 4, 4))
    with pytest.raises(ExportError, match="MIN<=OPT<=MAX"):
        compile_in_child("decode", decode_job(tmp_path, profiles={"latents": falling}), lambda line: None)


ATTENTION = """
g (float16[B,S,WIDTH] q, float16[B,S,WIDTH] k, float16[B,S,WIDTH] v) => (float16[B,S,WIDTH] y)
{ y = Attention <q_num_heads: int = 2, kv_num_heads: int = 2> (q, k, v) }
"""


def attention_job(tmp_path: Path, head: int) -> Job:
    profile = ((1, 4, 2 * head), (1, 16, 2 * head), (2, 64, 2 * head))
    onnx_path = save(ATTENTION.replace("WIDTH", str(2 * head)), tmp_path / "g.onnx")
    return Job(TARGET, str(onnx_path), str(tmp_path / "g.engine"), dict.fromkeys("qkv", profile))


def test_an_attention_without_a_kernel_is_decomposed_and_listed(tmp_path: Path) -> None:
    outcome = compile_in_child("decode", attention_job(tmp_path, 512), lambda line: None)
    assert len(outcome.decomposed) == 1
    assert outcome.decomposed[0].endswith(": 512 wide, HALF")


@pytest.mark.parametrize("head", [40, 64, 80, 160])
def test_stable_diffusion_s_own_heads_have_kernels(tmp_path: Path, head: int) -> None:
    assert compile_in_child("step", attention_job(tmp_path, head), lambda line: None).decomposed == ()


def test_a_decomposed_attention_of_stable_diffusion_s_own_is_a_warning_with_its_name() -> None:
    assert own_attentions("decode", ["node_a: 512 wide, HALF", "node_b: 16 wide, HALF", "node_c: 40 wide, FLOAT"]) == []
    (line,) = own_attentions("step", ["node_b: 40 wide, HALF"])
    assert "step" in line
    assert "node_b" in line


def test_out_of_memory_is_told_by_its_code_and_not_by_words() -> None:
    code = trt.ErrorCodeTRT.FAILED_ALLOCATION
    assert out_of_memory(trt, Log(errors=[(code, "anything")]))
    assert not out_of_memory(trt, Log(errors=[(trt.ErrorCodeTRT.INTERNAL_ERROR, "out of memory")]))


def test_a_build_without_memory_is_device_out_of_memory_b9(tmp_path: Path) -> None:
    class Builder:
        def __init__(self, logger: Any) -> None:
            self.real, self.error_recorder = trt.Builder(logger), None

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

        def build_serialized_network(self, network: Any, config: Any) -> None:
            self.error_recorder.report_error(trt.ErrorCodeTRT.FAILED_ALLOCATION, "insufficient memory for tactic 0x1")

    double = SimpleNamespace(**{name: getattr(trt, name) for name in dir(trt)} | {"Builder": Builder})
    with pytest.raises(BuildError) as caught:
        tensorrt_compile.build(double, decode_job(tmp_path), lambda event: None)
    assert caught.value.kind == "memory"
    assert caught.value.lines[-1] == "insufficient memory for tactic 0x1"
    event = {"event": "failed", "kind": "memory", "lines": caught.value.lines}
    error = tensorrt_child._failed("decode", event, 1, "")
    assert isinstance(error, DeviceOutOfMemory)
    assert "--max-batch" in str(error)


def test_a_build_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_child, "PULSE", 0.0)
    said: list[str] = []
    compile_in_child("decode", decode_job(tmp_path), said.append)
    assert any(line.startswith("decode: Building engine ") and line.endswith(" s") for line in said)


KILLED = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"


def test_a_killed_build_leaves_the_store_as_it_was_and_what_was_built_is_used_b20(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_graphs(tmp_path, layers=(0,))
    compiled: list[str] = []

    def kill_the_second(role: str, job: Job, progress: Any) -> Any:
        compiled.append(role)
        if len(compiled) == 2:
            monkeypatch.setattr(tensorrt_child, "COMMAND", (sys.executable, "-c", KILLED))
        return compile_in_child(role, job, progress)

    monkeypatch.setattr("clipskip.engines.tensorrt.compile_in_child", kill_the_second)
    with pytest.raises(ExportError, match="killed"):
        built(tmp_path)
    monkeypatch.undo()
    assert not [each for each in tmp_path.iterdir() if each.name.startswith(".tmp")]
    assert {str(each.role) for each in Store(tmp_path).manifest().artefacts if each.target == TARGET} == {"text-00"}
    assert rebuilt(built(tmp_path)) == ["step", "decode", "encode"]


def test_an_interrupted_build_takes_its_child_along_b1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    children: list[subprocess.Popen[str]] = []
    start = subprocess.Popen

    def recording(*args: Any, **kwargs: Any) -> Any:
        children.append(start(*args, **kwargs))
        return children[-1]

    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tensorrt_child.subprocess, "Popen", recording)
    monkeypatch.setattr(tensorrt_child, "PULSE", 0.0)
    with pytest.raises(KeyboardInterrupt):
        compile_in_child("decode", decode_job(tmp_path), interrupt)
    assert children[0].returncode is not None


def test_a_child_that_cannot_start_or_crashes_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt_child, "COMMAND", (sys.executable, "-c", "import sys; sys.exit('no room')"))
    with pytest.raises(ExportError, match=r"status 1(.|\n)*no room"):
        compile_in_child("decode", decode_job(tmp_path), lambda line: None)


def test_without_fp16_graphs_the_export_command_is_the_hint(tmp_path: Path) -> None:
    with pytest.raises(EngineMissing, match="clipskip export"):
        built(tmp_path)


def test_tensorrt_without_its_package_is_refused_before_any_work(tmp_path: Path) -> None:
    try:
        import tensorrt  # noqa: F401
    except ImportError:
        with pytest.raises(BackendUnavailable, match="tensorrt cannot be loaded") as caught:
            build(publish_graphs(tmp_path), target="tensorrt", options=BuildOptions(), progress=print)
        assert caught.value.exit_status == 5


def test_tensorrt_without_a_gpu_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clipskip.engines import gpu

    def no_gpu(runtime: Any) -> Any:
        raise BackendUnavailable("no NVIDIA driver on this machine")

    monkeypatch.setattr("clipskip.engines.tensorrt.load_builder", lambda target: trt)
    monkeypatch.setattr(gpu, "cuda_runtime", lambda: None)
    monkeypatch.setattr(gpu, "check_driver", no_gpu)
    with pytest.raises(BackendUnavailable, match="no NVIDIA driver"):
        build(publish_graphs(tmp_path), target="tensorrt", options=BuildOptions(), progress=print)
    options = BuildOptions(compute_capabilities=("8.9",))
    with pytest.raises(RequestError, match="for tensorrt-rtx"):
        build(Store(tmp_path), target="tensorrt", options=options, progress=print)


class TimingConfig:
    """A builder configuration that takes caches which start with "good"; TensorRT-RTX has none."""

    def __init__(self) -> None:
        self.cache = b"none"

    def create_timing_cache(self, data: bytes) -> bytes:
        return data

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch, "another device's timings would be used"
        fits = cache == b"" or cache.startswith(b"good")
        self.cache = cache if fits else self.cache
        return fits


@pytest.mark.parametrize(
    ("data", "used"), [(None, b""), (b"", b""), (b"garbage", b""), (b"good timings", b"good timings")]
)
def test_a_timing_cache_that_cannot_be_read_is_ignored_b19(tmp_path: Path, data: bytes | None, used: bytes) -> None:
    path = tmp_path / "timing.cache"
    if data is not None:
        path.write_bytes(data)
    config = TimingConfig()
    set_timing_cache(config, path)
    assert config.cache == used


def test_what_tensorrt_cannot_load_is_refused_by_the_package_itself_c2_c3(root: Path) -> None:
    """Empty, cut and foreign bytes: with a real deserialiser, which refuses them without a GPU."""
    plan = Store(root).verify(Store(root).find(Role("decode"), TARGET, "fp16")).read_bytes()
    logger, _ = tensorrt_compile.capture(trt, Log())
    runtime = trt.Runtime(logger)
    for data in (plan[: len(plan) // 2], b"\0" * 1000, b"not an engine at all, but long enough to have a header" * 9):
        assert runtime.deserialize_cuda_engine(data) is None


def test_a_hostile_working_folder_has_no_say_in_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "hostile"
    folder.mkdir()
    names = {*sys.stdlib_module_names, "clipskip", "numpy", "cuda", TARGET.replace("-", "_"), "sitecustomize"}
    for name in names:
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})")
    monkeypatch.chdir(folder)
    compile_in_child("decode", decode_job(tmp_path), lambda line: None)
    assert not (tmp_path / "ran").exists()


BUSY = """
import time
from clipskip.engines import tensorrt_compile
def build(trt, job, report):
    report({"event": "progress"})
    time.sleep(600)  # in silence: one that reports would notice that nobody listens
tensorrt_compile.load_package, tensorrt_compile.build = print, build
tensorrt_compile.main()
"""
PARENT = """
import sys
from clipskip.engines import tensorrt_child
tensorrt_child.COMMAND = (sys.executable, "-c", sys.argv[1])
with tensorrt_child._child(tensorrt_child.Job("tensorrt-rtx", "", "", {}), sys.stderr.buffer) as child:
    print(child.pid, child.stdout.readline(), flush=True)
    child.wait()
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks /proc for a process that is not our child")
def test_a_child_ends_with_a_parent_that_is_killed() -> None:
    command = [sys.executable, "-c", PARENT, BUSY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        number, event = parent.stdout.readline().split(maxsplit=1)
        assert json.loads(event) == {"event": "progress"}
        parent.kill()
    child, patience = Path("/proc", number), time.monotonic() + 30
    while child.exists() and "\nState:\tZ" not in (child / "status").read_text():
        assert time.monotonic() < patience, "the child lives on"
        time.sleep(0.02)


@pytest.mark.parametrize("capability", ["7.5", "sm_90", "99"])
def test_a_gpu_that_the_networks_cannot_be_built_for_is_refused_before_any_work(
    tmp_path: Path, capability: str
) -> None:
    said: list[str] = []
    publish_graphs(tmp_path)
    with pytest.raises(RequestError, match=r"cannot build these networks .* only for 8\.0, 8\.6, 8\.9") as caught:
        built(tmp_path, BuildOptions(compute_capabilities=(capability,)), said)
    assert caught.value.field == "compute_capability"
    assert said == []


def test_one_compute_capability_is_one_key_however_it_is_written() -> None:
    found = {
        toolchain(TARGET, BuildOptions(compute_capabilities=written), FIRST_GPU).capabilities
        for written in (("8.9", "12.0"), ("120", "89"), ("sm_89", "SM120", "8.9"))
    }
    assert found == {("8.9", "12.0")}


def test_without_a_choice_an_engine_is_for_what_nvidia_documents_and_others_are_had_on_request() -> None:
    assert toolchain(TARGET, BuildOptions(), FIRST_GPU).capabilities == ("8.6", "8.9", "12.0")
    asked = BuildOptions(compute_capabilities=("12.1", "sm_80"))
    assert toolchain(TARGET, asked, FIRST_GPU).capabilities == ("8.0", "12.1")


def test_no_sum_is_rounded_to_tensorfloat_32(tmp_path: Path) -> None:
    builder = trt.Builder(tensorrt_compile.capture(trt, Log())[0])
    config = tensorrt_compile.configure(trt, builder, decode_job(tmp_path))
    assert not config.get_flag(trt.BuilderFlag.TF32)
