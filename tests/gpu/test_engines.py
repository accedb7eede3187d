"""On an NVIDIA GPU: every engine and whole pictures against the CPU, at every depth, and how long they take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import clipskip
from clipskip import Request
from clipskip.backends import Array, Backend, Engine
from clipskip.backends.onnxruntime import OnnxRuntime
from clipskip.engines.manifest import Role
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


@pytest.fixture(scope="module")
def pair(engines: Path, backend: Backend) -> Callable[[str], tuple[Engine, Engine]]:
    """A role's engine, and its graph on the CPU."""
    store, cpu = Store(engines), OnnxRuntime()

    def both(role: str) -> tuple[Engine, Engine]:
        built, graph = (
            store.find(Role.parse(role), backend.target, "fp16"),
            store.find(Role.parse(role), "onnx", "fp16"),
        )
        return backend.open(built, store.verify(built)), cpu.open(graph, store.verify(graph))

    return both


def step_feeds(width: int, side: int = 8, seed: int = 0) -> dict[str, Array]:
    """One image with guidance, at a noise level in the middle."""
    draw = np.random.default_rng(seed)
    update = np.zeros((1, 6, 8), np.float32)
    update[0, 0, 6] = 1  # the next state is the network's output
    return {
        "state": draw.standard_normal((1, 6, 4, side, side)).astype(np.float32),
        "rows": np.zeros(2, np.int64),
        "c_in": np.full(1, 0.5, np.float32),
        "timestep": np.full(1, 500, np.float32),
        "context": draw.standard_normal((2, 77, width)).astype(np.float16),
        "mix": np.array([[-6, 7]], np.float32),
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
    model = Store(engines).manifest().model
    built, graph = pair(f"text-{layers:02}")
    tokens = np.random.default_rng(layers).integers(0, model.vocabulary, (2, 77))
    feeds = {"tokens": tokens, "concepts": np.zeros((1, model.width), np.float32)}
    error = relative_error(built.run(feeds)["context"], graph.run(feeds)["context"])
    rows.append(f"text-{layers:02}   {milliseconds(lambda: built.run(feeds)):8.3f} ms   relative error {error:.1e}")
    assert error <= 4e-3


def test_the_step_engine_gives_what_the_cpu_gives(
    pair: Callable[[str], tuple[Engine, Engine]], engines: Path, rows: list[str]
) -> None:
    built, graph = pair("step")
    feeds = step_feeds(Store(engines).manifest().model.width)
    error = relative_error(built.run(feeds)["next_state"][:, 0], graph.run(feeds)["next_state"][:, 0])
    loop = built.loop(feeds, FEEDBACK)
    change = {name: feeds[name] for name in ("c_in", "timestep", "update")}

    def steps() -> None:
        for _ in range(ROUNDS):
            loop.run(change)
        loop.read("state")

    def enqueue() -> None:
        for _ in range(ROUNDS):
            loop.run(change)

    whole, host = milliseconds(steps) / ROUNDS, milliseconds(enqueue, rounds=1) / ROUNDS
    loop.read("state")
    loop.close()
    rows.append(f"step      {whole:8.3f} ms   relative error {error:.1e}   of which run() takes {host:.3f} ms")
    assert error <= 1e-2


@pytest.mark.parametrize("role", ["decode", "encode"])
def test_the_autoencoder_s_engines_give_what_the_cpu_gives(
    pair: Callable[[str], tuple[Engine, Engine]], rows: list[str], role: str
) -> None:
    built, graph = pair(role)
    draw = np.random.default_rng(0)
    latents = {"latents": draw.standard_normal((1, 4, 8, 8)).astype(np.float32)}
    image = {"image": draw.integers(0, 256, (1, 64, 64, 3)).astype(np.uint8)}
    feeds, output = (latents, "image") if role == "decode" else (image, "mean")
    error = relative_error(built.run(feeds)[output], graph.run(feeds)[output])
    rows.append(f"{role}    {milliseconds(lambda: built.run(feeds)):8.3f} ms   relative error {error:.1e}")
    assert error <= 1e-2


def test_five_steps_in_a_loop_are_the_cpu_s(pair: Callable[[str], tuple[Engine, Engine]], engines: Path) -> None:
    """A captured graph that is replayed on wrong addresses, or a state that does not advance, shows here."""
    feeds = step_feeds(Store(engines).manifest().model.width)
    feeds["update"][0, 0, :7] = 0.5, 0, 0, 0, 0, 0, 0.5  # the next state is half the last one, half the output
    found, exact = (five_steps(engine, feeds) for engine in pair("step"))
    assert relative_error(found, exact) <= 1e-2


def five_steps(engine: Engine, feeds: dict[str, Array]) -> Array:
    loop = engine.loop(feeds, FEEDBACK)
    loop.run({})
    for timestep in (400, 300, 200, 100):
        loop.run({"timestep": np.full(1, timestep, np.float32)})
    state = loop.read("state")[:, 0]
    loop.close()
    return state


@pytest.fixture(scope="module")
def pipes(engines: Path, backend: Backend) -> Iterator[tuple[Pipeline, Pipeline]]:
    """The GPU's pipeline and the CPU's."""
    with clipskip.open(engines, backend=backend) as gpu, clipskip.open(engines, backend=OnnxRuntime()) as cpu:
        yield gpu, cpu


@pytest.mark.parametrize("layers", DEPTHS)
def test_a_picture_is_the_cpu_s_at_every_depth(pipes: tuple[Pipeline, Pipeline], rows: list[str], layers: int) -> None:
    request = Request(prompt="a large red circle", clip_skip=13 - layers, seed=1, steps=4, cfg=5, width=64, height=64)
    gpu, cpu = (pipe.run([request])[0] for pipe in pipes)
    found, exact = np.asarray(gpu.images[0], np.float64), np.asarray(cpu.images[0], np.float64)
    decibels = 10 * np.log10(255**2 / max(((found - exact) ** 2).mean(), 1e-9))
    seconds = sum(pipes[0].run([request])[0].timings.values())
    rows.append(
        f"picture at {layers:2} layers, 4 steps   {1000 * seconds:8.3f} ms   {decibels:.0f} dB beside the CPU's"
    )
    assert decibels >= 30
