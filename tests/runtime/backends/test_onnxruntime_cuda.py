"""ONNX Runtime's CUDA provider on doubles: a session per shape, captured by us, over weights that all share."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from doubles.cuda import SimulatedCuda
from doubles.device import SimulatedDevice
from doubles.onnxruntime import SimulatedOnnxRuntime
from doubles.store import publish_forms
from step_feeds import FEEDBACK, STEPS, changes, denoised, feeds, joined, joined_by_hand
from tiny_graphs import WIDTH, publish_graphs

from clipskip.backends import Array, Engine
from clipskip.backends.cuda import Cuda
from clipskip.backends.onnxruntime import OnnxRuntime
from clipskip.backends.onnxruntime_cuda import Weights
from clipskip.backends.providers import CUDA
from clipskip.engines.forms.cuda import PATTERNS
from clipskip.engines.forms.rewrite import rewrite
from clipskip.engines.manifest import STEP, Role
from clipskip.engines.store import Store
from clipskip.engines.variants import Changed
from clipskip.errors import BackendUnavailable, Busy, DeviceLost, DeviceOutOfMemory, EngineIncompatible, RequestError

VARIANTS = ["", "cuda"]
INPUTS: dict[str, dict[str, Array]] = {
    "text-03": {"tokens": np.arange(3 * 77).reshape(3, 77) % 100, "concepts": np.zeros((1, WIDTH), np.float32)},
    "decode": {"latents": np.linspace(-3, 3, 2 * 4 * 8 * 8, dtype=np.float32).reshape(2, 4, 8, 8)},
    "encode": {"image": np.arange(64 * 64 * 3).reshape(1, 64, 64, 3).astype(np.uint8)},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Graphs of every role, and forms that are the same graphs."""
    return publish_forms(publish_graphs(tmp_path_factory.mktemp("store")))


@pytest.fixture
def ort(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedOnnxRuntime]:
    yield SimulatedOnnxRuntime(devices=2).installed(monkeypatch)
    gc.collect()  # sessions of the real package, before their arrays


@pytest.fixture
def device(ort: SimulatedOnnxRuntime) -> SimulatedDevice:
    return ort.cuda.devices[0]


def opened(store: Store, backend: OnnxRuntime, role: str = "step", variant: str = "cuda") -> Engine:
    artefact = store.find(Role.parse(role), "onnx", "fp16", variant)
    return backend.open(artefact, store.verify(artefact))


@pytest.fixture(scope="module")
def cpu(store: Store) -> OnnxRuntime:
    """The real package."""
    return OnnxRuntime(threads=1)


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("batch", "rows", "side", "chunks"), [(1, 2, 8, 1), (3, 6, 8, 3), (4, 8, 16, 1)])
def test_a_loop_computes_what_the_cpu_computes_bit_for_bit(
    cpu: OnnxRuntime, ort: SimulatedOnnxRuntime, store: Store, variant: str, graphs: bool, batch: int, rows: int,
    side: int, chunks: int,
) -> None:  # fmt: skip
    inputs, backend = feeds(1, batch, rows, side, chunks), OnnxRuntime([CUDA], graphs=graphs)
    found = denoised(opened(store, backend, variant=variant), inputs)
    assert np.array_equal(found, denoised(opened(store, cpu, variant=""), inputs))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("role", INPUTS)
def test_a_run_computes_what_the_cpu_computes_bit_for_bit(
    cpu: OnnxRuntime, ort: SimulatedOnnxRuntime, store: Store, role: str, variant: str
) -> None:
    found = opened(store, OnnxRuntime([CUDA]), role, variant).run(INPUTS[role])
    expected = opened(store, cpu, role, "").run(INPUTS[role])
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_images_that_join_a_running_loop_are_as_if_their_inputs_had_been_fed_whole(
    cpu: OnnxRuntime, ort: SimulatedOnnxRuntime, store: Store
) -> None:
    inputs = feeds(9, batch=3, rows=6)
    expected = joined_by_hand(opened(store, cpu, variant=""), inputs)
    assert np.array_equal(joined(opened(store, OnnxRuntime([CUDA])), inputs), expected)


def test_a_request_allocates_nothing_after_warm_up_and_enqueues_one_copy_and_one_launch_per_step(
    device: SimulatedDevice, store: Store
) -> None:
    backend = OnnxRuntime([CUDA])
    step, decode = opened(store, backend), opened(store, backend, "decode")
    denoised(step, feeds(0))
    decode.run(INPUTS["decode"])
    device.trace.clear()
    denoised(step, feeds(5), seed=5)
    decode.run(INPUTS["decode"])
    assert Counter((call.name, call.direction) for call in device.trace) == {
        ("copy", "HostToDevice"): STEPS + 1,
        ("launch", ""): STEPS + 1,
        ("copy", "DeviceToHost"): 2,
        ("synchronise", ""): 2,
    }


def test_the_next_state_is_written_where_the_state_lies(device: SimulatedDevice, store: Store) -> None:
    inputs = feeds()
    loop = opened(store, OnnxRuntime([CUDA])).loop(inputs, FEEDBACK)
    assert not [call for call in device.trace if "DeviceToDevice" in call.direction]
    loop.run({})
    first = loop.read("state")
    loop.run({})
    assert not np.array_equal(loop.read("state"), first)
    loop.close()


@pytest.mark.parametrize("variant", ["tiny", "sample"])
def test_the_graph_reads_all_of_the_state_before_it_writes_the_next_one(
    store: Store, sample_fp16_store: Path, variant: str
) -> None:
    graphs = store if variant == "tiny" else Store(sample_fp16_store)
    artefact = graphs.find(STEP, "onnx", "fp16")
    width = next(port.shape[-1] for port in artefact.inputs if port.name == "context")
    session = onnxruntime.InferenceSession(graphs.verify(artefact), providers=["CPUExecutionProvider"])
    inputs, states = feeds(2, batch=2, rows=4), []
    inputs["context"] = np.resize(inputs["context"], (*inputs["context"].shape[:2], width))
    for in_place in (False, True):
        binding = session.io_binding()
        arrays = {name: array.copy() for name, array in (*inputs.items(), ("next", inputs["state"]))}
        values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
        for name in inputs:
            binding.bind_ortvalue_input(name, values[name])
        output = "state" if in_place else "next"
        binding.bind_ortvalue_output("next_state", values[output])
        session.run_with_iobinding(binding)
        states.append(arrays[output])
    assert np.array_equal(*states)


@pytest.mark.parametrize("form", [False, True])
def test_whoever_reads_the_state_comes_before_the_node_that_writes_the_next_one(
    sample_fp16_store: Path, form: bool
) -> None:
    graphs = Store(sample_fp16_store)
    model = ir.load(graphs.verify(graphs.find(STEP, "onnx", "fp16")))
    if form:
        rewrite(model, PATTERNS["step"])
    (state,) = (value for value in model.graph.inputs if value.name == "state")
    last = model.graph.outputs[0].producer()
    assert last is not None
    before, waiting = set[ir.Node](), [last]
    while waiting:
        sources = {value.producer() for value in waiting.pop().inputs if value is not None} - {None} - before
        before |= sources
        waiting += sources
    assert {use.node for use in state.uses()} <= before


def test_every_shape_has_a_session_and_all_of_them_one_copy_of_the_weights(
    ort: SimulatedOnnxRuntime, device: SimulatedDevice, store: Store
) -> None:
    engine = opened(store, OnnxRuntime([CUDA]))
    weights = sum(block.size for block in device.blocks.values())
    assert weights > 0.9 * sum(file.size for file in engine.artefact.files[2:3])
    for batch in (1, 2, 3, 4):
        denoised(engine, feeds(batch=batch, rows=2 * batch), steps=1)
    sessions = [session for session in ort.sessions if "user_compute_stream" in session.told]
    assert [session.overrides["B"] for session in sessions] == [1, 2, 3, 4]
    assert len(sessions[0].initializers) > 3
    assert len({tuple(value.data_ptr() for value in session.initializers.values()) for session in sessions}) == 1


def test_a_weight_is_on_the_device_once_for_all_who_hold_it_and_no_longer(device: SimulatedDevice) -> None:
    double = SimulatedCuda()
    weights, device = Weights(Cuda(double)), double.devices[0]
    block = np.arange(100, dtype=np.uint8)
    first = weights.hold({("a", 0, 100): block})
    second = weights.hold({("a", 0, 100): block, ("b", 0, 50): block[:50]})
    assert first["a", 0, 100] is second["a", 0, 100]
    assert [call.size for call in device.trace if call.direction == "HostToDevice"] == [100, 50]
    assert np.array_equal(device.view(first["a", 0, 100].address, 100), block)
    del second
    assert [memory.size for memory in device.blocks.values()] == [100]
    del first
    assert not device.blocks
    assert not device.pinned


def test_a_weight_that_could_not_be_uploaded_is_not_taken_for_one_that_was() -> None:
    double = SimulatedCuda()
    weights, block = Weights(Cuda(double)), np.arange(100, dtype=np.uint8)
    double.devices[0].faults.allocation = 2  # the pinned memory
    with pytest.raises(DeviceOutOfMemory):
        weights.hold({("a", 0, 100): block})
    held = weights.hold({("a", 0, 100): block})
    assert np.array_equal(double.devices[0].view(held["a", 0, 100].address, 100), block)


def test_where_an_optimisation_of_the_provider_reads_weights_it_is_given_the_files(
    cpu: OnnxRuntime, ort: SimulatedOnnxRuntime, store: Store
) -> None:
    ort.reads_weights = True
    found = denoised(opened(store, OnnxRuntime([CUDA])), feeds(1))
    assert np.array_equal(found, denoised(opened(store, cpu, variant=""), feeds(1)))


@pytest.mark.parametrize("reads_weights", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_changed_weights_have_memory_of_their_own_and_the_others_stay_shared(
    variant: str, reads_weights: bool, cpu: OnnxRuntime, ort: SimulatedOnnxRuntime, store: Store
) -> None:
    graph, plain = (store.find(STEP, "onnx", "fp16", each) for each in (variant, ""))
    stored = {value.name: value.const_value for value in ir.load(store.verify(plain)).graph.initializers.values()}
    changed = {name: Changed(f"of {name}", 2 * stored[name].numpy()) for name in ("wk", "wv")}  # type: ignore[union-attr]
    backend = OnnxRuntime([CUDA])
    usual = opened(store, backend, variant=variant)
    ort.reads_weights = reads_weights and bool(variant)
    other = backend.open_changed(graph, store.verify(graph), changed)
    expected = denoised(cpu.open_changed(plain, store.verify(plain), changed), feeds(1))
    assert np.array_equal(denoised(other, feeds(1)), expected)
    assert not np.array_equal(denoised(usual, feeds(1)), expected)
    if variant:
        addresses = [session.initializers for session in ort.sessions if session.initializers]
        there = {name: {values[name].data_ptr() for values in addresses} for name in ("wq", "wk")}
        assert {name: len(places) for name, places in there.items()} == {"wq": 1, "wk": 2}


def test_weights_that_find_no_room_get_that_of_idle_executions(device: SimulatedDevice, store: Store) -> None:
    backend = OnnxRuntime([CUDA])
    step = opened(store, backend)
    denoised(step, feeds(batch=4, rows=8, side=16), steps=1)
    device.memory = device.memory - device.free() + 100
    assert opened(store, backend, "text-03").run(INPUTS["text-03"])
    assert step.run(feeds())


def test_a_closed_engine_leaves_nothing_on_the_device(device: SimulatedDevice, store: Store) -> None:
    backend = OnnxRuntime([CUDA])
    engine = opened(store, backend)
    denoised(engine, feeds())
    engine.close()
    del engine
    assert not device.blocks
    assert not device.pinned


def test_the_graph_unused_for_longest_goes_for_a_shape_too_many(device: SimulatedDevice, store: Store) -> None:
    engine = opened(store, OnnxRuntime([CUDA]))
    for side in (4, 8, 12, 16, 8, 6):
        denoised(engine, feeds(side=side), steps=1)
    assert Counter(call.name for call in device.trace)["capture"] == 5, "8 was still there"


def test_as_many_loops_are_open_at_once_as_the_backend_says(
    ort: SimulatedOnnxRuntime, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = OnnxRuntime([CUDA])
    engine = opened(store, backend)
    monkeypatch.setattr(engine._pool, "_timeout", 0)  # type: ignore[attr-defined]
    held = [engine.loop(feeds(), FEEDBACK) for _ in range(backend.loops)]
    with pytest.raises(Busy):
        engine.loop(feeds(), FEEDBACK)
    for loop in held:
        loop.close()


def test_eight_threads_on_two_devices_with_mixed_shapes_get_what_they_get_alone(
    cpu: OnnxRuntime, ort: SimulatedOnnxRuntime, store: Store
) -> None:
    engines = [opened(store, OnnxRuntime([CUDA], device=index)) for index in (0, 1)]
    jobs = [(seed, feeds(seed, 1 + seed % 2, 2 + 2 * (seed % 2), 8 + 8 * (seed % 3 == 0))) for seed in range(16)]
    alone = [denoised(opened(store, cpu, variant=""), inputs, seed, steps=5) for seed, inputs in jobs]

    def job(number: int) -> np.ndarray:
        seed, inputs = jobs[number]
        decoded = engines[number % 2]
        return denoised(decoded, inputs, seed, steps=5)

    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(job, range(len(jobs))))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
    for double in ort.cuda.devices:
        calls = Counter(call.name for call in double.trace)
        assert calls["captured run"] == calls["capture"] > 0
        assert not calls["captured copy"]


@pytest.mark.parametrize("how", ["the provider", "CUDA", "the settings"])
def test_where_nothing_can_be_captured_the_result_is_the_same(
    cpu: OnnxRuntime, ort: SimulatedOnnxRuntime, device: SimulatedDevice, store: Store, how: str
) -> None:
    ort.refuses_capture, device.faults.capture = how == "the provider", how == "CUDA"
    backend = OnnxRuntime([CUDA], settings={"enable_cuda_graph": "0"} if how == "the settings" else {})
    found = denoised(opened(store, backend), feeds(1))
    assert np.array_equal(found, denoised(opened(store, cpu, variant=""), feeds(1)))
    assert not [call for call in device.trace if call.name == "launch"]


def test_what_the_provider_is_told_and_one_s_own_settings_come_last(ort: SimulatedOnnxRuntime, store: Store) -> None:
    backend = OnnxRuntime([CUDA], settings={"gpu_mem_limit": "1000", "cudnn_conv_algo_search": "DEFAULT"}, device=1)
    denoised(opened(store, backend), feeds(), steps=1)
    told = dict(ort.sessions[-1].told)
    assert int(told.pop("user_compute_stream")) in ort.cuda.streams
    assert told == {
        "device_id": "1", "fuse_conv_bias": "1", "arena_extend_strategy": "kSameAsRequested", "enable_cuda_graph": "1",
        "gpu_mem_limit": "1000", "cudnn_conv_algo_search": "DEFAULT",
    }  # fmt: skip


def test_a_bias_is_fused_into_its_convolution_where_channels_come_last(ort: SimulatedOnnxRuntime, store: Store) -> None:
    denoised(opened(store, OnnxRuntime([CUDA]), variant=""), feeds(), steps=1)
    assert "fuse_conv_bias" not in ort.sessions[-1].told


def test_shapes_that_no_graph_has_are_refused_before_any_work(device: SimulatedDevice, store: Store) -> None:
    engine = opened(store, OnnxRuntime([CUDA]))
    device.trace.clear()
    with pytest.raises(RequestError, match="state must be float32"):
        engine.run(feeds() | {"state": np.zeros(3)})
    assert not device.trace


def test_a_depth_that_shares_its_weights_costs_no_more_than_its_session(
    ort: SimulatedOnnxRuntime, store: Store
) -> None:
    shared, own = (opened(store, OnnxRuntime([CUDA]), "text-03", variant) for variant in ("cuda", ""))
    assert own.nbytes > sum(file.size for file in own.artefact.files[1:])
    assert shared.nbytes == own.nbytes - sum(file.size for file in own.artefact.files) + shared.artefact.files[0].size


def test_a_failure_while_it_runs_is_one_of_the_library_and_the_next_request_is_intact(
    cpu: OnnxRuntime, ort: SimulatedOnnxRuntime, store: Store
) -> None:
    engine = opened(store, OnnxRuntime([CUDA], graphs=False))
    denoised(engine, feeds(1), steps=1)
    ort.sessions[-1].fails = True
    with pytest.raises(BackendUnavailable, match="out of device memory, or whatever"):
        denoised(engine, feeds(1))
    assert np.array_equal(denoised(engine, feeds(1)), denoised(opened(store, cpu, variant=""), feeds(1)))


@pytest.mark.parametrize("number", range(1, 5))
def test_out_of_memory_in_one_request_leaks_nothing_and_leaves_the_next_one_intact_e8(
    cpu: OnnxRuntime, device: SimulatedDevice, store: Store, number: int
) -> None:
    engine, inputs = opened(store, OnnxRuntime([CUDA])), feeds(6)
    held = len(device.blocks)
    device.faults.allocation = number
    with pytest.raises(DeviceOutOfMemory, match="GPU memory"):
        denoised(engine, inputs)
    assert len(device.blocks) == held
    assert not device.pinned
    assert np.array_equal(denoised(engine, inputs), denoised(opened(store, cpu, variant=""), inputs))


def test_a_session_that_fails_where_next_to_nothing_is_free_is_out_of_memory(
    device: SimulatedDevice, store: Store, ort: SimulatedOnnxRuntime
) -> None:
    engine = opened(store, OnnxRuntime([CUDA]))
    denoised(engine, feeds(), steps=1)
    device.memory = device.memory - device.free() + (1 << 20)
    ort.fails_to_open = True
    with pytest.raises(DeviceOutOfMemory, match=r"1\.\d MB of GPU memory are free: .*of size 42"):
        denoised(engine, feeds(side=4), steps=1)


def test_a_lost_device_leaves_the_other_one_working(cpu: OnnxRuntime, ort: SimulatedOnnxRuntime, store: Store) -> None:
    engines = [opened(store, OnnxRuntime([CUDA], device=index)) for index in (0, 1)]
    denoised(engines[0], feeds(), steps=1)
    ort.cuda.devices[0].faults.sticky = 1
    with pytest.raises(DeviceLost):
        denoised(engines[0], feeds())
    assert np.array_equal(denoised(engines[1], feeds()), denoised(opened(store, cpu, variant=""), feeds()))


def test_a_graph_with_other_ports_than_the_manifest_s_is_refused_when_it_is_first_used_c11(
    ort: SimulatedOnnxRuntime, store: Store
) -> None:
    artefact = store.find(STEP, "onnx", "fp16", "cuda")
    outputs = tuple(replace(port, name="another") for port in artefact.outputs)
    engine = OnnxRuntime([CUDA]).open(replace(artefact, outputs=outputs), store.verify(artefact))
    with pytest.raises(EngineIncompatible, match="it differs in another, next_state"):
        engine.run(feeds())


def test_without_its_bindings_cuda_is_unavailable_with_the_command_that_installs_them(
    ort: SimulatedOnnxRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings.runtime", None)
    with pytest.raises(BackendUnavailable, match="cuda-bindings") as caught:
        OnnxRuntime([CUDA])
    assert "cuda-bindings" in str(caught.value.hint)


def test_a_loop_of_changes_waits_for_nothing(device: SimulatedDevice, store: Store) -> None:
    inputs = feeds(3)
    loop = opened(store, OnnxRuntime([CUDA])).loop(inputs, FEEDBACK)
    device.trace.clear()
    for step in range(1, STEPS):
        loop.run(changes(0, step, inputs))
    assert {call.name for call in device.trace} == {"copy", "launch"}
    loop.close()
