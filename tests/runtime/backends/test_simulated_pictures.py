"""Whole pictures through our TensorRT and CUDA code, on the doubles, against the same graphs in ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from copies import copy_of
from doubles.cuda import SimulatedCuda
from doubles.onnxruntime import SimulatedOnnxRuntime
from doubles.store import TARGET, publish_plans, simulated

import clipskip
from clipskip import Request
from clipskip.backends.onnxruntime import OnnxRuntime
from clipskip.backends.tensorrt import Settings
from clipskip.engines.manifest import STEP
from clipskip.engines.store import Store
from clipskip.errors import DeviceLost, DeviceOutOfMemory, EngineCorrupt, NumericalError, RequestError
from clipskip.pipeline import Pipeline
from clipskip.result import Result

SMALL_SIZE = {"width": 64, "height": 64}
SMALL = {**SMALL_SIZE, "steps": 3, "cfg": 5.0}
DEPTHS = {0: 13, 5: 8, 11: 2, 12: 1}  # layers kept -> A1111's clip skip


@pytest.fixture(scope="module")
def store(sample_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample model's graphs, and plans that compute them; in fp32, which the double's processor is faster at."""
    root = tmp_path_factory.mktemp("plans") / "store"
    copy_of(sample_store, root)
    publish_plans(Store(root), precision="fp32")
    return root


@pytest.fixture(scope="module")
def expected(store: Path) -> Iterator[Pipeline]:
    """The pipeline on ONNX Runtime, with as many threads as the double uses, and the graphs that the plans compute."""
    backend = OnnxRuntime(threads=1)
    backend.variants = ("",)
    with clipskip.open(store, backend=backend) as pipe:
        yield pipe


def pixels(results: list[Result]) -> list[np.ndarray]:
    return [np.asarray(image) for result in results for image in result.images]


def same(one: list[Result], other: list[Result]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(pixels(one), pixels(other), strict=True))


@pytest.mark.parametrize(("layers", "graphs"), [(0, True), (5, False), (11, False), (12, True)])
def test_a_picture_at_every_depth_is_onnx_runtime_s_bit_for_bit(
    store: Path, expected: Pipeline, layers: int, graphs: bool
) -> None:
    request = Request(
        prompt="a (large:1.2) red circle", negative_prompt="blue", clip_skip=DEPTHS[layers], seed=5, **SMALL
    )
    with clipskip.open(store, backend=simulated(settings=Settings(graphs=graphs))[0]) as pipe:
        assert same(pipe.run([request]), expected.run([request]))


def different(seed: int = 0) -> list[Request]:
    """Three requests that share a batch and little else."""
    size = {"width": 64, "height": 64}
    return [
        Request(prompt="a red circle", clip_skip=1, seed=seed, steps=3, cfg=7.0, **size),
        Request(prompt="a blue square", clip_skip=2, seed=seed + 1, steps=5, sampler="Euler a", cfg=3.0, **size),
        Request(prompt="[green:white:0.5] ring AND star", clip_skip=8, seed=seed + 2, steps=4, sampler="Heun", **size),
    ]


@pytest.mark.parametrize("graphs", [True, False])
def test_a_batch_of_three_different_requests_is_onnx_runtime_s_bit_for_bit(
    store: Path, expected: Pipeline, graphs: bool
) -> None:
    with clipskip.open(store, backend=simulated(settings=Settings(graphs=graphs))[0]) as pipe:
        assert same(pipe.run(different()), expected.run(different()))


def test_twenty_steps_cost_twenty_launches_and_copies_two_synchronisations_and_no_memory(store: Path) -> None:
    backend, device = simulated()
    twenty = {**SMALL, "steps": 20}
    with clipskip.open(store, backend=backend) as pipe:
        pipe.run([Request(prompt="a red circle", seed=1, **twenty)])  # opens, compiles, captures, encodes the prompt
        device.trace.clear()
        pipe.run([Request(prompt="a red circle", seed=2, **twenty)])
        trace = list(device.trace)
    first = [call.name for call in trace].index("launch")
    assert {(call.name, call.direction) for call in trace[:first]} == {("copy", "HostToDevice")}
    assert Counter((call.name, call.direction) for call in trace[first:]) == {
        ("copy", "HostToDevice"): 19 + 1,  # one a step; and the decoder's latents
        ("launch", ""): 20 + 1,
        ("copy", "DeviceToHost"): 2,
        ("synchronise", ""): 2,
    }
    steps = [call.size for call in trace[first:] if call.direction == "HostToDevice"][:19]
    assert max(steps) < 2048


def test_the_second_request_at_a_depth_opens_and_allocates_nothing(store: Path) -> None:
    backend, device = simulated()
    with clipskip.open(store, backend=backend) as pipe:
        pipe.run([Request(prompt="a red circle", negative_prompt="blue", clip_skip=2, seed=1, **SMALL)])
        device.trace.clear()
        pipe.run([Request(prompt="a blue ring", negative_prompt="red", clip_skip=2, seed=1, **SMALL)])
        pipe.run([Request(prompt="a ring", negative_prompt="red", clip_skip=2, seed=1, **SMALL)])  # one new text
        assert not [call for call in device.trace if call.name in ("malloc", "pin", "capture")]


def test_the_number_of_texts_changes_no_picture_and_few_shapes_are_compiled(store: Path, expected: Pipeline) -> None:
    prompts = ["a red circle", "a ring AND a star", "a red star AND a blue ring AND a cross AND a white square"]
    backend, _ = simulated()
    with clipskip.open(store, backend=backend) as pipe:
        for prompt in prompts:
            request = Request(prompt=prompt, seed=1, **{**SMALL, "cfg": 1.0, "steps": 1})
            assert same(pipe.run([request]), expected.run([request]))
        shapes = [dict(key[0]) for pool in backend.device._pools for key in pool._idle.values()]  # type: ignore[call-overload]
        assert sorted(shape["tokens"][0] for shape in shapes if "tokens" in shape) == [2, 4]


def test_a_picture_through_cuda_graphs_of_onnx_runtime_is_the_cpu_s_bit_for_bit(
    store: Path, expected: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = SimulatedOnnxRuntime().installed(monkeypatch).cuda.devices[0]
    with clipskip.open(store, backend="onnxruntime-cuda") as pipe:
        assert same(pipe.run(different()), expected.run(different()))
        assert same(pipe.run(different(7)), expected.run(different(7)))
    assert "launch" in {call.name for call in device.trace}


def test_thirteen_depths_within_a_budget_for_one_give_the_same_pictures(store: Path, expected: Pipeline) -> None:
    requests = [
        Request(prompt="a red circle", clip_skip=skip, seed=1, **{**SMALL, "steps": 1}) for skip in range(1, 14)
    ]
    backend, device = simulated()
    with clipskip.open(store, backend=backend, text_engine_budget=1) as pipe:
        assert same(pipe.run(requests), expected.run(requests))
    assert not device.blocks, "closing the pipeline left memory on the device"
    assert not device.pinned


def test_eight_threads_with_mixed_depths_and_sizes_get_what_they_get_alone_e1(store: Path, expected: Pipeline) -> None:
    sizes = [(64, 64), (128, 64), (64, 128)]
    requests = [
        Request(prompt="a red circle", clip_skip=1 + i, seed=i, steps=2, width=sizes[i % 3][0], height=sizes[i % 3][1])
        for i in range(8)
    ]
    alone = [expected.run([request]) for request in requests]
    backend, _ = simulated()
    with clipskip.open(store, backend=backend) as pipe, ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda request: pipe.run([request]), requests))
    assert all(same(one, other) for one, other in zip(alone, together, strict=True))


def test_nan_in_a_step_is_a_numerical_error_and_the_next_request_is_intact_e10(store: Path, expected: Pipeline) -> None:
    request = Request(prompt="a red circle", seed=1, **SMALL)
    backend, device = simulated()
    with clipskip.open(store, backend=backend) as pipe:
        pipe.run([request])
        device.faults.nan = 2
        with pytest.raises(NumericalError):
            pipe.run([request])
        assert same(pipe.run([request]), expected.run([request]))


def test_out_of_memory_leaves_the_next_request_intact_e8(store: Path, expected: Pipeline) -> None:
    request = Request(prompt="a red circle", seed=1, **SMALL)
    backend, device = simulated()
    with clipskip.open(store, backend=backend) as pipe:
        device.faults.allocation = 1  # the text engine's first
        with pytest.raises(DeviceOutOfMemory):
            pipe.run([request])
        assert same(pipe.run([request]), expected.run([request]))


def test_memory_that_idle_engines_hold_is_given_up_for_another(store: Path, expected: Pipeline) -> None:
    request = Request(prompt="a red circle", seed=1, **SMALL)
    backend, device = simulated()
    with clipskip.open(store, backend=backend) as pipe:
        device.faults.allocation = 8  # the step engine's, when the text engine has done its work
        assert same(pipe.run([request]), expected.run([request]))
        assert len(device.blocks) == 6, "inputs, outputs and scratch memory of the step engine and of the decoder"


def test_a_lost_device_refuses_all_further_work_e9(store: Path) -> None:
    request = Request(prompt="a red circle", seed=1, **SMALL)
    backend, device = simulated()
    with clipskip.open(store, backend=backend) as pipe:
        device.faults.sticky = 3
        with pytest.raises(DeviceLost):
            pipe.run([request])
        with pytest.raises(DeviceLost, match="failed earlier"):
            pipe.run([Request(prompt="another", seed=1, **SMALL)])


def test_a_cancelled_request_gives_its_context_back_e3(store: Path, expected: Pipeline) -> None:
    request = Request(prompt="a red circle", seed=1, **SMALL)
    backend, device = simulated(settings=Settings(contexts=1, timeout=0.1))
    with clipskip.open(store, backend=backend) as pipe:
        steps = pipe.steps(request)
        next(steps)
        device.trace.clear()
        steps.close()
        assert not [call for call in device.trace if call.name == "launch"], "nothing more is computed for it"
        wide = replace(request, width=72)  # another shape needs the one context for itself
        assert same(pipe.run([wide]), expected.run([wide]))
        assert Counter(call.name for call in device.trace)["launch"] == wide.steps + 1, "its own, and the decoder's"
        assert same(pipe.run([request]), expected.run([request]))


def test_a_size_outside_the_engines_is_refused_before_any_gpu_work(store: Path) -> None:
    backend, device = simulated()
    with clipskip.open(store, backend=backend) as pipe, pytest.raises(RequestError, match="--sizes"):
        pipe.run([Request(prompt="a red circle", width=512, height=512, steps=1)])
    assert not device.trace


def test_a_flipped_bit_in_an_engine_is_refused_before_tensorrt_sees_it(store: Path, tmp_path: Path) -> None:
    root = tmp_path / "store"
    copy_of(store, root)
    path = root / Store(root).find(STEP, TARGET, "fp32").files[0].path
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    backend, device = simulated()
    with clipskip.open(root, backend=backend) as pipe, pytest.raises(EngineCorrupt, match="SHA-256"):
        pipe.run([Request(prompt="a red circle", seed=1, **SMALL)])
    assert [call.name for call in device.trace if call.name == "launch"] == ["launch"], "the text engine's"


def test_after_warming_up_the_first_request_opens_compiles_captures_and_allocates_nothing(store: Path) -> None:
    backend, device = simulated()
    with clipskip.open(store, backend=backend, warm=[(64, 64, 1)]) as pipe:
        assert [call.name for call in device.trace if call.name == "capture"] == ["capture"] * 3
        device.trace.clear()
        pipe("a red circle", negative_prompt="blue", seed=1, **SMALL)
        assert not [call for call in device.trace if call.name in ("malloc", "pin", "capture", "stream")]


def test_joining_costs_one_slot_written_and_leaving_one_slot_read_and_nothing_is_allocated(
    store: Path, expected: Pipeline
) -> None:
    requests = [
        Request(prompt="a red circle", negative_prompt="blue", seed=seed, steps=12, **SMALL_SIZE) for seed in range(4)
    ]
    backend, device = simulated()
    with clipskip.open(store, backend=backend, warm=[(64, 64, count) for count in (1, 2, 4)]) as pipe:
        pipe("a red circle", negative_prompt="blue", seed=9, steps=1, **SMALL_SIZE)
        running = [pipe.steps(request) for request in requests]
        for steps in running[:3]:
            next(steps)
        slot = 6 * 4 * 8 * 8 * 4  # bytes of one image's state
        device.trace.clear()
        next(running[3])  # joins three others in a loop for four
        joining = [(call.name, call.direction) for call in device.trace]
        sizes = [call.size for call in device.trace if call.direction == "HostToDevice"]
        assert Counter(joining) == {("copy", "HostToDevice"): 2, ("launch", ""): 1}
        assert sizes[0] == slot
        device.trace.clear()
        next(running[3])
        assert [call.name for call in device.trace] == ["copy", "launch"]
        assert device.trace[0].size < 4096
        running.pop(1).close()  # leaves, and its slot stays free
        next(running[0])  # what the others' calls have done for it meanwhile
        device.trace.clear()
        next(running[0])
        assert [call.name for call in device.trace] == ["copy", "launch"]
        device.trace.clear()
        *_, last = running[0]
        assert not [call for call in device.trace if call.name in ("malloc", "pin", "capture", "stream")]
        assert same(list(last.results), expected.run(requests[:1]))
        for steps, request in zip(running[1:], requests[2:], strict=True):
            *_, last = steps
            assert same(list(last.results), expected.run([request]))


def test_two_pipelines_on_two_devices_of_one_process_leave_each_other_alone(store: Path, expected: Pipeline) -> None:
    machine = SimulatedCuda(devices=2)
    request = Request(prompt="a red circle", seed=1, **SMALL)
    backends = [simulated(machine, index=index)[0] for index in range(2)]
    with clipskip.open(store, backend=backends[0]) as one, clipskip.open(store, backend=backends[1]) as other:
        assert same(one.run([request]), expected.run([request]))
        assert not machine.devices[1].trace
        machine.devices[0].trace.clear()
        assert same(other.run([request]), expected.run([request]))
        assert not machine.devices[0].trace


@pytest.mark.parametrize("graphs", [True, False])
def test_threads_that_share_a_device_get_what_they_get_alone(store: Path, expected: Pipeline, graphs: bool) -> None:
    requests = [
        Request(prompt=prompt, clip_skip=1 + seed, seed=seed, steps=2 + seed % 3, sampler=sampler, **SMALL_SIZE)
        for seed, (prompt, sampler) in enumerate(
            [("a red circle", "Euler a"), ("a ring AND a star", "Heun"), ("[a:b:1]", "DPM++ 2M")] * 4
        )
    ]
    alone = [expected.run([request]) for request in requests]
    backend, device = simulated(settings=Settings(graphs=graphs))
    with clipskip.open(store, backend=backend) as pipe, ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda request: pipe.run([request]), requests))
    assert all(same(one, other) for one, other in zip(alone, together, strict=True))
    assert not device.blocks, "closing the pipeline left memory on the device"


def test_with_captured_graphs_a_batch_that_changes_needs_few_of_them(
    store: Path, expected: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    ort = SimulatedOnnxRuntime().installed(monkeypatch)
    requests = [
        Request(prompt="a ring", seed=seed, steps=2 + seed, cfg=(1.0, 5.0)[seed % 2], **SMALL_SIZE) for seed in range(4)
    ]
    with clipskip.open(store, backend="onnxruntime-cuda") as pipe:
        assert same(pipe.run(requests), expected.run(requests))
    shapes = {(each.overrides["B"], each.overrides["N"]) for each in ort.sessions if "N" in each.overrides}
    assert shapes == {(4, 8), (2, 4), (1, 2)}
