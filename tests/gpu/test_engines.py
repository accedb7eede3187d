"""On an NVIDIA GPU: every engine and whole pictures against the CPU, at every depth, and how long they take.

The inputs are those of the gates. The limit is three times the error that torch itself has at half precision, as the
manifest records it: the graph on the CPU may be twice that from the truth.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

import clipskip
from clipskip import Request
from clipskip.backends import Array, Backend, Engine
from clipskip.backends.onnxruntime import OnnxRuntime
from clipskip.engines import trials
from clipskip.engines.gates import DEVICE_RATIO, FP16_RELATIVE, TORCH_FP16, judge
from clipskip.engines.manifest import Artefact, Dim, Role
from clipskip.engines.store import Store
from clipskip.pipeline import Pipeline

pytestmark = pytest.mark.gpu

DEPTHS = range(13)
FEEDBACK = {"next_state": "state"}
ROUNDS = 20


def milliseconds(work: Callable[[], object], rounds: int = ROUNDS) -> float:
    """The median, after one turn that does not count."""
    work()
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - began))
    return statistics.median(taken)


def relative_error(found: Array, exact: Array) -> float:
    """Relative L2 over everything; NaN and infinity are as wrong as can be."""
    found, exact = found.astype(np.float64), exact.astype(np.float64)
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact)) if np.isfinite(found).all() else np.inf


@pytest.fixture(scope="module", autouse=True)
def heading(backend: Backend, rows: list[str]) -> None:
    """What the lines below it were measured with."""
    rows.append(", ".join(f"{name} {value}" for name, value in backend.describe().items()))


@pytest.fixture
def pair(engines: Path, backend: Backend, variant: str) -> Callable[[str], tuple[Engine, Engine]]:
    """A role's engine, and its exported graph on the CPU."""
    store, cpu = Store(engines), OnnxRuntime()

    def both(name: str) -> tuple[Engine, Engine]:
        role = Role.parse(name)
        if not any(graph.role == role for graph in store.manifest().artefacts):
            pytest.skip(f"{engines} has no {name}")
        built, graph = store.find(role, backend.target, "fp16", variant), store.find(role, "onnx", "fp16")
        return backend.open(built, store.verify(built)), cpu.open(graph, store.verify(graph))

    return both


def fits(artefact: Artefact, feeds: Mapping[str, Array]) -> bool:
    """Whether the engine was built for inputs of these sizes."""
    sizes = {
        dim.axis: size // dim.factor
        for port in artefact.inputs
        for dim, size in zip(port.shape, feeds[port.name].shape, strict=True)
        if isinstance(dim, Dim)
    }
    ranges = artefact.axes.items()
    return all(axis.minimum <= sizes[name] <= axis.maximum for name, axis in ranges if name in sizes)


def judged(built: Engine, graph: Engine, engines: Path) -> str:
    """The engine's errors at the gates, where the CPU is right, and its milliseconds; for the table."""
    role = graph.artefact.role
    model = Store(engines).manifest().model
    trial, *odd = trials.of(role, model, True, ())
    feeds = [trial, *(each for each in odd if model.size_step == 8 and fits(built.artefact, each))]
    outputs = [(built.run(trial), graph.run(trial)) for trial in feeds]
    parity = judge(role, outputs, graph.artefact.parity, f"{built.artefact.identity} on the GPU", DEVICE_RATIO)
    told = ", ".join(f"{name} {value:.2g}" for name, value in parity.items())
    return f"{built.artefact.identity.stem:12} {milliseconds(lambda: built.run(feeds[0])):8.3f} ms   {told}"


def limit(graph: Engine) -> float:
    return min(FP16_RELATIVE["step"], DEVICE_RATIO * graph.artefact.parity[TORCH_FP16])


def step_feeds(width: int, side: int = 8, seed: int = 0) -> dict[str, Array]:
    """One image with guidance, at a noise level in the middle."""
    draw = np.random.default_rng(seed)
    update = np.zeros((1, 6, 8), np.float32)
    update[0, 0, 5] = 1  # the next state is the network's output
    return {
        "state": draw.standard_normal((1, 6, 4, side, side)).astype(np.float32),
        "rows": np.zeros(2, np.int64),
        "c_in": np.full(1, 0.5, np.float32),
        "timestep": np.full(1, 500, np.float32),
        "context": draw.standard_normal((2, 77, width)).astype(np.float16),
        "mix": np.array([[-6, 7]], np.float32),
        "reference": np.zeros((1, 2), np.float32),
        "rescale": np.zeros(1, np.float32),
        "mask": np.ones((1, 1, side, side), np.float32),
        "known": np.zeros((1, 4, side, side), np.float32),
        "pull": np.zeros((1, 2), np.float32),
        "noise": np.zeros((1, 4, side, side), np.float32),
        "update": update,
    }


@pytest.mark.parametrize("layers", DEPTHS)
def test_a_text_engine_gives_what_the_cpu_gives(
    pair: Callable[[str], tuple[Engine, Engine]], engines: Path, rows: list[str], layers: int
) -> None:
    rows.append(judged(*pair(f"text-{layers:02}"), engines))


@pytest.mark.parametrize("role", ["step", "decode", "encode"])
def test_the_networks_give_what_the_cpu_gives(
    pair: Callable[[str], tuple[Engine, Engine]], engines: Path, rows: list[str], role: str
) -> None:
    rows.append(judged(*pair(role), engines))


def test_how_long_a_step_takes_in_a_loop_and_of_that_the_host(
    pair: Callable[[str], tuple[Engine, Engine]], engines: Path, rows: list[str]
) -> None:
    built, _ = pair("step")
    feeds = step_feeds(Store(engines).manifest().model.width)
    loop = built.loop(feeds, FEEDBACK)
    change = {name: feeds[name] for name in ("c_in", "timestep", "update")}

    def enqueue() -> None:
        for _ in range(ROUNDS):
            loop.run(change)

    def steps() -> None:
        enqueue()
        loop.read("state")

    def enqueued() -> float:
        loop.read("state")  # the GPU is idle, so that the host waits for nothing
        began = time.perf_counter()
        loop.run(change)
        return 1000 * (time.perf_counter() - began)

    whole, host = milliseconds(steps) / ROUNDS, statistics.median(enqueued() for _ in range(ROUNDS))
    assert np.isfinite(loop.read("state")).all()
    loop.close()
    rows.append(f"{built.artefact.identity.stem:12} {whole:8.3f} ms   in a loop, of which run() takes {host:.3f} ms")


def test_five_steps_in_a_loop_are_the_cpu_s(pair: Callable[[str], tuple[Engine, Engine]], engines: Path) -> None:
    """A captured graph that is replayed on wrong addresses, or a state that does not advance, shows here."""
    feeds = step_feeds(Store(engines).manifest().model.width)
    feeds["update"][0, 0, :6] = 0.5, 0, 0, 0, 0, 0.5  # the next state is half the last one, half the output
    built, graph = pair("step")
    assert relative_error(five_steps(built, feeds), five_steps(graph, feeds)) <= 5 * limit(graph)


def five_steps(engine: Engine, feeds: dict[str, Array]) -> Array:
    loop = engine.loop(feeds, FEEDBACK)
    loop.run({})
    for timestep in (400, 300, 200, 100):
        loop.run({"timestep": np.full(1, timestep, np.float32)})
    state = loop.read("state")[:, 0]
    loop.close()
    return state


def test_an_image_that_joins_a_running_loop_is_the_cpu_s(
    pair: Callable[[str], tuple[Engine, Engine]], engines: Path
) -> None:
    """Slots are written between two steps that nobody waits for, and read one by one."""
    feeds = two_images(step_feeds(Store(engines).manifest().model.width))
    built, graph = pair("step")
    found, exact = (with_a_newcomer(engine, feeds) for engine in (built, graph))
    assert relative_error(found, exact) <= 5 * limit(graph)  # it is in the batch for three or four steps
    assert relative_error(found[0], found[1]) > 0.1, "the images are different"


def two_images(feeds: dict[str, Array]) -> dict[str, Array]:
    """A batch of two images, of two rows each, that are alike."""
    twice = {name: np.concatenate([array, array]) for name, array in feeds.items()}
    twice["rows"] = np.array([0, 0, 1, 1])
    twice["reference"] = np.zeros((2, 4), np.float32)
    twice["mix"] = np.array([[-6, 7, 0, 0], [0, 0, -6, 7]], np.float32)
    return twice


def with_a_newcomer(engine: Engine, feeds: dict[str, Array]) -> Array:
    new = step_feeds(feeds["context"].shape[-1], seed=1)
    loop = engine.loop(feeds, FEEDBACK)
    loop.run({})
    loop.write("state", 1, new["state"][0])
    loop.write("timestep", 1, np.float32(200))
    for row in (0, 1):
        loop.write("context", 2 + row, new["context"][row])
    for _ in range(3):
        loop.run({})
    states = np.stack([loop.read("state", slot)[0] for slot in (0, 1)])
    loop.close()
    return states


@pytest.fixture(scope="module")
def pipes(engines: Path, backend: Backend) -> Iterator[tuple[Pipeline, Pipeline]]:
    """The GPU's pipeline and the CPU's."""
    with clipskip.open(engines, backend=backend) as gpu, clipskip.open(engines, backend=OnnxRuntime()) as cpu:
        yield gpu, cpu


@pytest.mark.parametrize("layers", DEPTHS)
def test_a_picture_is_the_cpu_s_at_every_depth(
    pipes: tuple[Pipeline, Pipeline], engines: Path, rows: list[str], layers: int
) -> None:
    """30 dB beside each other: what four guided steps, each within its limit, may make of a picture."""
    if not any(str(graph.role) == f"text-{layers:02}" for graph in Store(engines).manifest().artefacts):
        pytest.skip(f"{engines} has no text-{layers:02}")
    request = Request(prompt="a large red circle", clip_skip=13 - layers, seed=1, steps=4, cfg=5, width=64, height=64)
    gpu, cpu = (pipe.run([request])[0] for pipe in pipes)
    found, exact = np.asarray(gpu.images[0], np.float64), np.asarray(cpu.images[0], np.float64)
    decibels = 10 * np.log10(255**2 / max(((found - exact) ** 2).mean(), 1e-9))
    seconds = sum(pipes[0].run([request])[0].timings.values())
    rows.append(
        f"picture at {layers:2} layers, 4 steps   {1000 * seconds:8.3f} ms   {decibels:.0f} dB beside the CPU's"
    )
    assert decibels >= 30
