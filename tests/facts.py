"""Facts of a model and artefacts of no bytes, for tests that need no engine."""

from clipskip.engines.manifest import Artefact, AxisRange, ModelFacts, Role

MODEL = ModelFacts(
    name="sample",
    family="sd1",
    layers=12,
    width=64,
    vocabulary=990,
    prediction="epsilon",
    beta_start=0.00085,
    beta_end=0.012,
    train_steps=1000,
    scaling_factor=0.4,
    default_size=128,
    size_step=8,
    recommended_clip_skip=1,
    model_sha256="0" * 64,
    sources={},
)


def step_artefact(**axes):
    """A step artefact whose axes are given as (minimum, maximum)."""
    ranges = {name: AxisRange(low, low, high) for name, (low, high) in axes.items()}
    return Artefact(Role("step"), "tensorrt-rtx", "fp16", (), (), ranges)
