"""A step engine in numpy that records what it is fed, and images to run on it: batches are tested without a network."""

import numpy as np

from clipskip.batch import Batch, Image
from clipskip.conditioning import NetworkRow
from clipskip.engines.manifest import Artefact, AxisRange, Dim, Port, Role
from clipskip.noise import BrownianTree, initial
from clipskip.samplers import SAMPLERS, plan
from clipskip.schedules import NoiseModel

B, N, T, H, W = (Dim(name) for name in "BNThw")
INPUTS = (
    Port("state", "float32", (B, 6, 4, H, W)),
    Port("rows", "int64", (N,)),
    Port("c_in", "float32", (B,)),
    Port("timestep", "float32", (B,)),
    Port("context", "float32", (N, T, 4)),
    Port("mix", "float32", (B, N)),
    Port("reference", "float32", (B, N)),
    Port("mask", "float32", (B, 1, H, W)),
    Port("noise", "float32", (B, 4, H, W)),
    Port("update", "float32", (B, 6, 8)),
)


class FakeStep:
    """Computes the step graph with a network that says `x + mean of the context`.

    `extra` ports are inputs that it takes too: what is fed for a row or an image is added to the network's output.
    """

    def __init__(self, extra=(), **axes):
        limits = {name: most if isinstance(most, AxisRange) else AxisRange(1, 1, most) for name, most in axes.items()}
        self.artefact = Artefact(Role("step"), "onnx", "fp32", (*INPUTS, *extra), (), limits)
        self.loops = []
        self.fail = None

    def loop(self, feeds, feedback):
        assert feedback == {"next_state": "state"}
        assert feeds.keys() == {port.name for port in self.artefact.inputs}
        self.loops.append(FakeLoop(self, feeds))
        return self.loops[-1]


class FakeLoop:
    def __init__(self, engine, feeds):
        self.engine = engine
        self.feeds = {name: np.array(value) for name, value in feeds.items()}
        self.rewritten = []
        self.written = []
        self.closed = False

    def write(self, name, slot, array):
        assert array.shape == self.feeds[name][slot].shape
        self.written.append((name, slot))
        self.feeds[name][slot] = array

    def run(self, feeds):
        assert not self.closed
        if self.engine.fail:
            raise self.engine.fail
        self.rewritten.append(set(feeds))
        for name, value in feeds.items():
            assert value.shape == self.feeds[name].shape, name
        self.feeds.update({name: np.array(value) for name, value in feeds.items()})
        self.feeds["state"] = step(self.feeds)

    def read(self, name, slot=None):
        return np.array(self.feeds[name] if slot is None else self.feeds[name][slot])

    def close(self):
        self.closed = True


def step(feeds):
    state = feeds["state"]
    x = (state[:, 0] * feeds["c_in"][:, None, None, None])[feeds["rows"]]
    out = x + feeds["context"].mean(axis=(1, 2))[:, None, None, None]
    if "pooled" in feeds:
        out = out + feeds["pooled"].mean(axis=1)[:, None, None, None]
    out, reference = (
        (feeds[weights].T[:, :, None, None, None] * out[:, None]).sum(axis=0, dtype=np.float32)
        for weights in ("mix", "reference")
    )
    if "hint" in feeds:
        out = out + feeds["hint"]
    memory = np.concatenate([state[:, :5], out[:, None], reference[:, None], feeds["noise"][:, None]], axis=1)
    return np.stack([np.tensordot(*each, 1) for each in zip(feeds["update"], memory, strict=True)]).astype(np.float32)


MODEL = NoiseModel()
BY_NAME = {sampler.name: sampler for sampler in SAMPLERS}


def row(weight, *values, ends=(1000,), chunks=1, **inputs):
    variants = [{"context": np.full((77 * chunks, 4), value, np.float32), **inputs} for value in values]
    return NetworkRow(weight, tuple(ends), tuple(range(len(values))), tuple(variants))


def image(seed=1, sampler="Euler", steps=5, rows=None, chunks=1, **inputs):
    start, noise = initial(seed, (4, 8, 8), "cpu", None, 0)
    made = plan(BY_NAME[sampler], "karras", steps, MODEL)
    noise = BrownianTree(seed, "cpu", *made.span) if made.span else noise
    rows = rows or (row(1.0, 0.5),)
    return Image(made.rows, rows, start * np.float32(made.scale), noise, chunks, {"mask": 1.0, **inputs})


def finished(engine, *images, exact_rows=True):
    """Run images together from the first call on."""
    batch = Batch(engine, images[0], exact_rows=exact_rows)
    for each in images:
        batch.add(each)
    while batch.images:
        batch.step()
    batch.close()
    return [each.latents for each in images]


SETTINGS = (
    {"seed": 1, "steps": 3},
    {"seed": 2, "sampler": "Euler a", "steps": 7, "rows": (row(6.0, 0.2), row(-5.0, 0.1))},
    {"seed": 3, "sampler": "Heun", "steps": 4, "rows": (row(1.0, 0.3, 0.9, ends=(2, 8)),)},
    {"seed": 4, "sampler": "DPM++ 2M SDE", "steps": 5},
    {"seed": 5, "sampler": "DPM++ 2M", "steps": 9, "rows": (row(7.0, 0.4), row(-6.0, 0.0))},
)
