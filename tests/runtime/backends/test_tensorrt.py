"""The device loop on the doubles of TensorRT and CUDA: results, what it enqueues, and what it does when things fail."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from doubles.cuda import SimulatedCuda
from doubles.store import TARGET, publish_plans, simulated
from step_feeds import FEEDBACK, STEPS, changes, denoised, feeds, joined, joined_by_hand, newcomer
from tiny_graphs import WIDTH, publish_graphs

from clipskip.backends import Array, Engine
from clipskip.backends.onnxruntime import OnnxRuntime
from clipskip.backends.tensorrt import Settings, TensorRT
from clipskip.engines.manifest import DECODE, STEP, AxisRange, Role
from clipskip.engines.shapes import BuildOptions
from clipskip.engines.store import Store
from clipskip.errors import (
    BackendUnavailable,
    Busy,
    Closed,
    DeviceLost,
    DeviceOutOfMemory,
    EngineCorrupt,
    EngineIncompatible,
    RequestError,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Graphs and plans of every role."""
    root = tmp_path_factory.mktemp("store")
    return publish_plans(publish_graphs(root), BuildOptions(sizes=AxisRange(32, 64, 128)))


def opened(store: Store, backend: TensorRT, role: str = "step") -> Engine:
    artefact = store.find(Role.parse(role), TARGET, "fp16")
    return backend.open(artefact, store.verify(artefact))


def reference(store: Store, role: str = "step") -> Engine:
    """The same graph through ONNX Runtime, with as many threads as the double uses."""
    artefact = store.find(Role.parse(role), "onnx", "fp16")
    return OnnxRuntime(threads=1).open(artefact, store.verify(artefact))


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize(("batch", "rows", "side", "chunks"), [(1, 2, 8, 1), (3, 6, 8, 3), (4, 8, 16, 1)])
def test_a_loop_computes_what_onnx_runtime_computes_bit_for_bit(
    store: Store, graphs: bool, batch: int, rows: int, side: int, chunks: int
) -> None:
    backend, _ = simulated(settings=Settings(graphs=graphs))
    inputs = feeds(1, batch, rows, side, chunks)
    assert np.array_equal(denoised(opened(store, backend), inputs), denoised(reference(store), inputs))


@pytest.mark.parametrize("role", ["text-00", "text-03", "decode", "encode"])
def test_a_run_computes_what_onnx_runtime_computes_bit_for_bit(store: Store, role: str) -> None:
    draw = np.random.default_rng(0)
    inputs: dict[str, dict[str, Array]] = {
        "text": {"tokens": draw.integers(0, 100, (3, 77)), "concepts": np.zeros((1, WIDTH), np.float32)},
        "decode": {"latents": draw.standard_normal((2, 4, 8, 8)).astype(np.float32)},
        "encode": {"image": draw.integers(0, 256, (1, 64, 64, 3)).astype(np.uint8)},
    }
    feed = inputs[role.partition("-")[0]]
    found, expected = opened(store, simulated()[0], role).run(feed), reference(store, role).run(feed)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_a_request_allocates_nothing_after_warm_up_and_enqueues_one_copy_and_one_launch_per_step(store: Store) -> None:
    backend, device = simulated()
    step, decode = opened(store, backend), opened(store, backend, "decode")
    latents = {"latents": np.zeros((1, 4, 8, 8), np.float32)}
    denoised(step, feeds(0))
    decode.run(latents)
    device.trace.clear()
    denoised(step, feeds(5), seed=5)
    decode.run(latents)
    counted = Counter((call.name, call.direction) for call in device.trace)
    assert counted == {
        ("copy", "HostToDevice"): STEPS + 1,  # the first step's is the whole request; the last is the decoder's latents
        ("launch", ""): STEPS + 1,
        ("copy", "DeviceToHost"): 2,
        ("synchronise", ""): 2,
    }
    uploads = [call.size for call in device.trace if (call.name, call.direction) == ("copy", "HostToDevice")]
    assert max(uploads[1:7]) < 4096, "a step's copy is not small"


def test_without_new_noise_a_step_copies_less_than_two_kilobytes(store: Store) -> None:
    backend, device = simulated()
    engine, inputs = opened(store, backend), feeds(0, batch=1, rows=2, side=16)
    loop = engine.loop(inputs, FEEDBACK)
    device.trace.clear()
    loop.run({name: inputs[name] for name in ("c_in", "timestep", "update")})
    assert [call.name for call in device.trace] == ["copy", "launch"]
    assert device.trace[0].size < 2048
    loop.close()


def test_an_inspection_between_steps_costs_one_synchronisation_and_changes_nothing(store: Store) -> None:
    backend, device = simulated()
    engine, inputs = opened(store, backend), feeds(2)
    expected = denoised(engine, inputs)
    loop = engine.loop(inputs, FEEDBACK)
    device.trace.clear()
    for step in range(STEPS):
        loop.run(changes(0, step, inputs) if step else {})
        loop.read("state")
    assert np.array_equal(loop.read("state"), expected)
    loop.close()
    assert Counter(call.name for call in device.trace)["synchronise"] == STEPS + 1


def test_hundreds_of_steps_without_waiting_keep_every_copy_intact(store: Store) -> None:
    backend, device = simulated()
    inputs = feeds(3)
    found = denoised(opened(store, backend), inputs, steps=300)
    assert np.array_equal(found, denoised(reference(store), inputs, steps=300))
    waits = Counter(call.name for call in device.trace)["synchronise"]
    assert 2 < waits < 30, "beside warm-up and result, the host only waits when the ring of pinned memory is full"


@pytest.mark.parametrize("graphs", [True, False])
def test_images_that_join_a_running_loop_are_as_if_their_inputs_had_been_fed_whole(store: Store, graphs: bool) -> None:
    backend, _ = simulated(settings=Settings(graphs=graphs))
    inputs = feeds(9, batch=3, rows=6)
    assert np.array_equal(joined(opened(store, backend), inputs), joined_by_hand(reference(store), inputs))


def test_a_join_is_one_copy_of_each_slot_s_bytes_and_a_step_stays_one_small_copy_and_one_launch(store: Store) -> None:
    backend, device = simulated()
    inputs = feeds(0, batch=3, rows=6)
    loop = opened(store, backend).loop(inputs, FEEDBACK)
    writes = list(newcomer(1, inputs))
    device.trace.clear()
    for name, slot, array in writes:
        loop.write(name, slot, array)
    loop.run({name: inputs[name] for name in ("c_in", "timestep", "update")})
    *copies, step, launch = device.trace
    sent = [np.asarray(array).nbytes for _, _, array in writes]
    assert [(call.name, call.size, call.direction) for call in copies] == [
        ("copy", size, "HostToDevice") for size in sent
    ]
    assert (step.name, launch.name) == ("copy", "launch")
    assert step.size < 2304


def test_one_slot_is_read_by_a_copy_of_that_slot(store: Store) -> None:
    backend, device = simulated()
    inputs = feeds(0, batch=4, rows=4)
    loop = opened(store, backend).loop(inputs, FEEDBACK)
    loop.run({})
    device.trace.clear()
    slot = loop.read("state", 2)
    assert [(call.name, call.size) for call in device.trace] == [("copy", slot.nbytes), ("synchronise", 0)]
    assert np.array_equal(slot, loop.read("state")[2])


def test_hundreds_of_joins_without_waiting_keep_every_copy_intact(store: Store) -> None:
    backend, _ = simulated()
    inputs = feeds(3, batch=2, rows=2)
    loop, expected = opened(store, backend).loop(inputs, FEEDBACK), {**inputs}
    for turn in range(300):
        context = feeds(turn, batch=2, rows=2)["context"]
        loop.write("context", turn % 2, context[turn % 2])
        expected["context"][turn % 2] = context[turn % 2]
    loop.run({})
    assert np.array_equal(loop.read("state"), reference(store).run(expected)["next_state"])


@pytest.mark.parametrize(
    ("slot", "array", "error"),
    [
        (1, np.zeros((4, 8, 8), np.float32), IndexError),
        (-2, np.zeros((4, 8, 8), np.float32), IndexError),
        (0, np.zeros((4, 8, 16), np.float32), ValueError),
        (0, np.zeros((4, 8, 8), np.float64), ValueError),
    ],
)
def test_a_slot_that_is_not_there_and_a_value_that_does_not_fit_are_refused(
    store: Store, slot: int, array: Array, error: type[Exception]
) -> None:
    for engine in (opened(store, simulated()[0]), reference(store)):
        with pytest.raises(error):
            engine.loop(feeds(), FEEDBACK).write("noise", slot, array)


def test_two_devices_in_one_process_give_the_same_bits_and_leave_each_other_alone(store: Store) -> None:
    cuda = SimulatedCuda(devices=2)
    engines = [opened(store, simulated(cuda, index=index)[0]) for index in (0, 1)]
    inputs = feeds(1, batch=3, rows=6)
    expected, expected_joined = denoised(reference(store), inputs), joined_by_hand(reference(store), inputs)
    for index in (1, 0, 1):
        for device in cuda.devices:
            device.trace.clear()
        assert np.array_equal(denoised(engines[index], inputs), expected)
        assert np.array_equal(joined(engines[index], inputs), expected_joined)
        assert cuda.devices[index].trace
        assert not cuda.devices[1 - index].trace
    with ThreadPoolExecutor(4) as threads:
        states = threads.map(lambda number: denoised(engines[number % 2], inputs), range(8))
        assert all(np.array_equal(state, expected) for state in states)
    engines[1].close()
    assert [bool(device.blocks) for device in cuda.devices] == [True, False]


def test_a_loop_on_one_device_goes_on_in_a_thread_whose_current_device_is_another(store: Store) -> None:
    cuda = SimulatedCuda(devices=2)
    backend, device = simulated(cuda, Settings(graphs=False), index=1)
    inputs = feeds(2)
    engine = opened(store, backend)
    loop = engine.loop(inputs, FEEDBACK)
    for work in (lambda: loop.run({}), lambda: loop.write("c_in", 0, inputs["c_in"][0]), loop.close, engine.close):
        cuda.cudaSetDevice(0)  # as another library may
        work()
    assert not device.blocks
    assert not cuda.devices[0].trace


def test_a_lost_device_leaves_the_other_one_working(store: Store) -> None:
    cuda = SimulatedCuda(devices=2)
    engines = [opened(store, simulated(cuda, index=index)[0]) for index in (0, 1)]
    cuda.devices[0].faults.sticky = 1
    with pytest.raises(DeviceLost):
        denoised(engines[0], feeds())
    assert np.array_equal(denoised(engines[1], feeds()), denoised(reference(store), feeds()))


def test_a_driver_that_cannot_capture_gives_the_same_result_without_a_graph(store: Store) -> None:
    backend, device = simulated()
    device.faults.capture = True
    inputs = feeds(4)
    assert np.array_equal(denoised(opened(store, backend), inputs), denoised(reference(store), inputs))
    assert not any(call.name == "launch" for call in device.trace)


def test_eight_threads_with_mixed_shapes_get_what_they_get_alone(store: Store) -> None:
    backend, _ = simulated(settings=Settings(contexts=3))
    engine = opened(store, backend)
    jobs = [
        (seed, feeds(seed, batch, 2 * batch, side)) for seed, (batch, side) in enumerate([(1, 8), (2, 8), (1, 16)] * 4)
    ]
    expected = [denoised(reference(store), inputs, seed, steps=5) for seed, inputs in jobs]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda job: denoised(engine, job[1], job[0], steps=5), jobs))
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_more_threads_than_contexts_wait_and_then_are_told_so_e1(store: Store) -> None:
    backend, _ = simulated(settings=Settings(contexts=1, timeout=0.05))
    engine = opened(store, backend)
    loop = engine.loop(feeds(), FEEDBACK)
    with pytest.raises(Busy, match="1 contexts"):
        engine.loop(feeds(), FEEDBACK)
    loop.close()
    engine.loop(feeds(), FEEDBACK).close()


def test_as_many_loops_are_open_at_once_as_the_backend_says(store: Store) -> None:
    backend, _ = simulated(settings=Settings(contexts=2, timeout=0))
    engine = opened(store, backend)
    held = [engine.loop(feeds(), FEEDBACK) for _ in range(backend.loops)]
    with pytest.raises(Busy):
        engine.loop(feeds(), FEEDBACK)
    for loop in held:
        loop.close()


def test_a_new_shape_takes_the_place_of_the_one_unused_for_longest(store: Store) -> None:
    backend, device = simulated(settings=Settings(contexts=2))
    engine = opened(store, backend)
    for side in (8, 16, 12, 16):
        denoised(engine, feeds(side=side), steps=1)
    assert Counter(call.name for call in device.trace)["capture"] == 3, "16 was still there"
    memory = sum(block.size for block in device.blocks.values())
    engine.close()
    assert device.free() == device.memory > memory


@pytest.mark.parametrize("number", range(1, 6))
def test_out_of_memory_in_one_request_leaks_nothing_and_leaves_the_next_one_intact_e8(
    store: Store, number: int
) -> None:
    backend, device = simulated()
    engine, inputs = opened(store, backend), feeds(6)
    device.faults.allocation = number
    with pytest.raises(DeviceOutOfMemory, match="GPU memory"):
        denoised(engine, inputs)
    assert not device.blocks
    assert not device.pinned
    assert np.array_equal(denoised(engine, inputs), denoised(reference(store), inputs))


def test_out_of_memory_in_one_thread_leaves_a_loop_in_another_intact(store: Store) -> None:
    backend, device = simulated()
    engine, inputs = opened(store, backend), feeds(7)
    loop = engine.loop(inputs, FEEDBACK)
    loop.run({})
    device.faults.allocation = 1
    with pytest.raises(DeviceOutOfMemory):
        engine.loop(feeds(side=16), FEEDBACK)
    for step in range(1, STEPS):
        loop.run(changes(0, step, inputs))
    assert np.array_equal(loop.read("state"), denoised(reference(store), inputs))
    loop.close()


def test_a_shape_that_only_fits_without_the_last_one_s_memory_gets_it(store: Store) -> None:
    backend, device = simulated(SimulatedCuda(memory=1_500_000))
    engine, inputs = opened(store, backend), feeds(8, side=16)
    denoised(engine, feeds(8))
    assert np.array_equal(denoised(engine, inputs), denoised(reference(store), inputs))
    assert len(device.blocks) == 3, "one context is left: its inputs, outputs and scratch memory"


def test_after_a_sticky_error_everything_is_refused_e9(store: Store) -> None:
    backend, device = simulated()
    step, decode = opened(store, backend), opened(store, backend, "decode")
    loop = step.loop(feeds(), FEEDBACK)
    device.faults.sticky = 1
    loop.run({})
    with pytest.raises(DeviceLost, match="cudaErrorIllegalAddress"):
        loop.read("state")
    loop.close()
    with pytest.raises(DeviceLost, match="failed earlier"):
        decode.run({"latents": np.zeros((1, 4, 8, 8), np.float32)})
    with pytest.raises(DeviceLost):
        step.loop(feeds(), FEEDBACK)
    with pytest.raises(DeviceLost):
        opened(store, backend, "encode")
    step.close()


def test_nan_from_the_device_arrives_as_nan(store: Store) -> None:
    backend, device = simulated()
    engine = opened(store, backend)
    denoised(engine, feeds())
    device.faults.nan = 3
    assert np.isnan(denoised(engine, feeds())).any()
    assert np.isfinite(denoised(engine, feeds())).all()


def test_a_fork_is_refused_instead_of_crashing_e6(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, _ = simulated()
    engine = opened(store, backend)
    monkeypatch.setattr("os.getpid", lambda: -1)
    with pytest.raises(BackendUnavailable, match="forked"):
        engine.loop(feeds(), FEEDBACK)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"side": 32}, "h = 32.*4 to 16"),
        ({"batch": 5, "rows": 5}, "B = 5"),
        ({"rows": 9}, "N = 9.*1 to 8"),
        ({"chunks": 7}, "T = 539.*77 to 462"),
    ],
)
def test_a_shape_outside_the_profile_is_refused_before_any_gpu_work(
    store: Store, change: dict[str, int], message: str
) -> None:
    backend, device = simulated()
    engine = opened(store, backend)
    device.trace.clear()
    with pytest.raises(RequestError, match=message) as caught:
        engine.loop(feeds(**change), FEEDBACK)
    assert "clipskip build" in str(caught.value)
    assert not device.trace


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": np.zeros((1, 4, 8, 8))}, "noise must be float32"),
        ({"known": np.zeros((1, 4, 8, 16), np.float32)}, "axis w is 8 and 16"),
        ({"pull": np.zeros((1, 3), np.float32)}, "pull has 3 where 2"),
        ({"extra": np.zeros(1, np.float32)}, "extra"),
    ],
)
def test_inputs_that_do_not_fit_together_are_refused(store: Store, change: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        opened(store, simulated()[0]).loop({**feeds(), **change}, FEEDBACK)


def test_a_closed_engine_and_a_closed_loop_say_so_e12(store: Store) -> None:
    backend, device = simulated()
    engine = opened(store, backend)
    loop = engine.loop(feeds(), FEEDBACK)
    engine.close()
    engine.close()
    loop.run({})  # what is in use goes on
    loop.close()
    loop.close()
    with pytest.raises(Closed, match="closed"):
        loop.run({})
    with pytest.raises(Closed, match="closed"):
        engine.loop(feeds(), FEEDBACK)
    assert not device.blocks
    assert not device.pinned


def test_an_execution_that_an_error_went_through_is_not_used_again(store: Store) -> None:
    backend, device = simulated()
    loop = opened(store, backend).loop(feeds(), FEEDBACK)
    with pytest.raises(ValueError, match=r"noise: float32\[1, 4, 16, 16\]"):
        loop.run({"noise": feeds(side=16)["noise"]})
    assert not device.blocks
    with pytest.raises(Closed, match="closed"):
        loop.read("state")


def test_fifty_requests_hold_no_more_memory_than_one(store: Store) -> None:
    backend, device = simulated()
    engine = opened(store, backend)
    denoised(engine, feeds(), steps=2)
    held = sum(block.size for block in (*device.blocks.values(), *device.pinned.values()))
    for seed in range(50):
        denoised(engine, feeds(seed), steps=2)
    assert sum(block.size for block in (*device.blocks.values(), *device.pinned.values())) == held


def test_a_flipped_bit_is_refused_before_tensorrt_sees_it_c1(store: Store, tmp_path: Path) -> None:
    mine = publish_plans(publish_graphs(tmp_path))
    artefact = mine.find(STEP, TARGET, "fp16")
    path = tmp_path / artefact.files[0].path
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(EngineCorrupt, match="SHA-256"):
        mine.verify(artefact)


@pytest.fixture
def artefact_with(store: Store, tmp_path: Path) -> Any:
    """Open the step engine with another provenance or other bytes."""
    from dataclasses import replace

    found = store.find(STEP, TARGET, "fp16")

    def open_with(backend: TensorRT, data: bytes | None = None, **provenance: str) -> Engine:
        path = tmp_path / "step.engine"
        path.write_bytes((store.root / found.files[0].path).read_bytes() if data is None else data)
        named = {name.replace("_", " "): value for name, value in provenance.items()}
        return backend.open(replace(found, provenance={**found.provenance, **named}), path)

    return open_with


def test_an_engine_of_another_version_is_refused_by_name_c4(artefact_with: Any) -> None:
    with pytest.raises(EngineIncompatible, match=r"built with tensorrt_rtx 1\.6\.0, installed is tensorrt_rtx 1\.7"):
        artefact_with(simulated()[0], package="tensorrt_rtx 1.6.0")


def test_an_engine_of_another_architecture_is_refused_by_name_c5(artefact_with: Any) -> None:
    with pytest.raises(EngineIncompatible, match=r"capability 8\.6; simulated GPU has 8\.9"):
        artefact_with(simulated()[0], compute_capability="8.6")
    with pytest.raises(EngineIncompatible, match=r"has 9\.0.*\n.*--target tensorrt"):
        artefact_with(simulated(SimulatedCuda(capability=(9, 0)))[0])


def test_an_engine_tuned_on_another_gpu_is_a_warning_or_an_error_c5(artefact_with: Any) -> None:
    with pytest.warns(RuntimeWarning, match="tuned on some RTX"):
        artefact_with(simulated()[0], device="some RTX")
    with pytest.raises(EngineIncompatible, match="tuned on"):
        artefact_with(simulated(settings=Settings(strict_device=True))[0], device="some RTX")


@pytest.mark.parametrize("data", [b"", b"not a plan"])
def test_bytes_that_tensorrt_cannot_load_come_back_with_its_words(artefact_with: Any, data: bytes) -> None:
    with pytest.raises(EngineIncompatible, match="magicTag"):
        artefact_with(simulated()[0], data=data)


def test_an_engine_larger_than_the_free_memory_is_refused_before_it_is_loaded(artefact_with: Any) -> None:
    with pytest.raises(DeviceOutOfMemory, match="more than is free"):
        artefact_with(simulated(SimulatedCuda(memory=100))[0])


def test_an_engine_with_other_inputs_than_the_manifest_s_is_refused_c11(store: Store, artefact_with: Any) -> None:
    other = (store.root / store.find(DECODE, TARGET, "fp16").files[0].path).read_bytes()
    with pytest.raises(EngineIncompatible, match="is no step as the manifest has it: it differs in c_in, "):
        artefact_with(simulated()[0], data=other)


def test_engines_are_never_allowed_code_of_their_own_c21(store: Store) -> None:
    backend, _ = simulated()
    opened(store, backend)
    assert [runtime.engine_host_code_allowed for runtime in backend.trt.runtimes] == [False]


@pytest.fixture
def cache(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the step engine's cache is, in a folder of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "clipskip" / f"{store.find(STEP, TARGET, 'fp16').files[0].sha256[:32]}-8.9.{TARGET}"


def test_the_jit_cache_is_kept_in_the_user_s_own_folder_and_thrown_away_when_it_is_damaged_c20(
    artefact_with: Any, cache: Path, tmp_path: Path
) -> None:
    cache.parent.mkdir(mode=0o700)
    cache.write_bytes(b"\xff garbage")
    engine = artefact_with(simulated()[0])
    assert not cache.exists()
    denoised(engine, feeds(), steps=1)
    kept = cache.read_bytes()
    denoised(artefact_with(simulated()[0]), feeds(), steps=1)
    assert cache.read_bytes() == kept
    assert [path.name for path in tmp_path.rglob("*")] == ["step.engine", "clipskip", cache.name]


def test_a_cache_that_others_could_write_to_is_neither_read_nor_written(artefact_with: Any, cache: Path) -> None:
    cache.parent.mkdir()
    cache.parent.chmod(0o777)
    cache.write_bytes(b"\xff planted")
    denoised(artefact_with(simulated()[0]), feeds(), steps=1)
    assert cache.read_bytes() == b"\xff planted"


def test_a_folder_that_cannot_be_written_to_means_no_jit_cache(artefact_with: Any, cache: Path) -> None:
    cache.mkdir(parents=True)  # stands in the way even where root may write anything
    cache.parent.chmod(0o700)
    denoised(artefact_with(simulated()[0]), feeds(), steps=1)


def test_a_cache_file_that_cannot_be_replaced_leaves_no_draft(
    artefact_with: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*paths: Path) -> None:
        raise PermissionError("in use, says Windows")

    monkeypatch.setattr(Path, "replace", refuse)
    denoised(artefact_with(simulated()[0]), feeds(), steps=1)
    assert list(cache.parent.iterdir()) == []


def test_no_context_is_entered_twice_at_once_e1(store: Store) -> None:
    backend, device = simulated(settings=Settings(contexts=2))
    device.faults.seconds = 0.002
    engine = opened(store, backend)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            denoised(engine, feeds(seed), seed, steps=4)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, "the double fails the device when a context is entered twice"


def test_what_was_built_with_loras_is_built_again_with_them(store: Store) -> None:
    artefact = replace(store.find(STEP, TARGET, "fp16"), variant="lora-0123456789ab", provenance={})
    with pytest.raises(EngineIncompatible) as caught:
        simulated()[0].open(artefact, store.verify(store.find(STEP, TARGET, "fp16")))
    assert str(caught.value.hint).endswith(f"build {store.root} --target tensorrt-rtx --lora FILE:WEIGHT")
