"""Pictures of every sampler under every schedule, with the settings that some take, against PyTorch's networks.

The tables are the runtime's, which test_samplers_reference holds against other programs and papers. All else is not:
networks, guidance (diffusers' rescaling), churn and the order of draws are torch's, in float64 around the networks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from reference import Reference, Wanted, noise_of

import clipskip
from clipskip.engines.shapes import REMEMBERED, SLOTS
from clipskip.noise import BrownianTree
from clipskip.samplers import SAMPLERS, Plan, Sampler, plan
from clipskip.schedules import SCHEDULES, NoiseModel

STEPS = [1, 2, 3, 5, 20]
PROMPT = "a large red circle on a green background"
NAMED = {sampler.name: sampler for sampler in SAMPLERS}
NEGATIVE = "blue"
LIMIT = 2  # of 255, anywhere
CHOICES = {  # of the settings that are some samplers' alone
    "eta": [None, 0.0, 0.6, 1.0],
    "s_churn": [None, 3.0, 20.0],
    "s_tmin": [None, 0.2],
    "s_tmax": [None, 9.0],
    "s_noise": [None, 0.95, 1.01],
}


@dataclass
class Job:
    """One picture: what is asked for, and the reference's way to it."""

    request: clipskip.Request
    sampler: Sampler
    plan: Plan
    contexts: Sequence[np.ndarray]  # of the prompt and of the negative prompt
    noise: Iterator[np.ndarray]
    state: np.ndarray = field(default_factory=lambda: np.zeros((SLOTS, 4, 8, 8)))

    def guided(self, prompt: np.ndarray, negative: np.ndarray) -> list[np.ndarray]:
        """The guided output, and for CFG++ the unguided one."""
        cfg = self.request.cfg / (12.5 if self.sampler.name == "DDIM CFG++" else 1)
        out, answer = (torch.from_numpy(each)[None] for each in (negative + cfg * (prompt - negative), prompt))
        out = rescale_noise_cfg(out, answer, self.request.cfg_rescale)
        return [out[0].numpy(), negative if "CFG++" in self.sampler.name else np.zeros_like(negative)]


def requests() -> list[clipskip.Request]:
    """Every sampler with every schedule that it takes, with every number of steps, and with every of its settings."""
    made = []
    for i, sampler in enumerate(SAMPLERS):
        schedules = [*SCHEDULES] if sampler.levels is None else ["automatic"] * 4
        for j, schedule in enumerate(schedules):
            steps = 20 if j == i % len(schedules) else [1, 2, 3, 5][(i + j) % 4]
            steps = STEPS[1 + j] if sampler.levels is not None else steps
            given = {
                name: options[(j + k) % len(options)]
                for k, (name, options) in enumerate(CHOICES.items())
                if name in sampler.settings
            }
            rescale = 0.0 if sampler.unguided else [0.0, 0.7][(i + j) // 2 % 2]
            cfg = 1.2 if sampler.name.startswith("Euler") and sampler.unguided else [5.0, 7.5][j % 2]
            cfg = cfg / 5 if sampler.name == "LCM" else cfg  # it is made for little guidance
            made.append(
                clipskip.Request(
                    prompt=PROMPT, negative_prompt=NEGATIVE, sampler=sampler.name, schedule=schedule, steps=steps,
                    cfg=cfg, cfg_rescale=rescale, seed=100 * i + j, width=64, height=64, **given,
                )
            )  # fmt: skip
    return made


REQUESTS = requests()


@pytest.fixture(scope="module")
def pipe(sample_store: Path) -> Iterator[clipskip.Pipeline]:
    with clipskip.open(sample_store) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def pictures(pipe: clipskip.Pipeline) -> list[np.ndarray]:
    """Of all requests at once: pictures of all samplers share calls of the network."""
    return [np.asarray(result.images[0]) for result in pipe.run(REQUESTS)]


@pytest.fixture(scope="module")
def expected(sample_checkpoint: Path) -> np.ndarray:
    truth = reference.load(sample_checkpoint)
    contexts = [truth.text.contexts([((text, 1.0),)], 2, "Original")[0] for text in (PROMPT, NEGATIVE)]
    jobs = [job(request, contexts) for request in REQUESTS]
    for call in range(max(len(each.plan.rows) for each in jobs)):
        advance(truth, [each for each in jobs if call < len(each.plan.rows)], call)
    return truth.decode(np.stack([each.state[0] for each in jobs]))


def job(request: clipskip.Request, contexts: Sequence[np.ndarray]) -> Job:
    sampler = NAMED[request.sampler]
    given = {name: value for name in CHOICES if (value := getattr(request, name)) is not None}
    made = plan(sampler, request.schedule, request.steps, NoiseModel(), given)
    draw = noise_of([Wanted(prompt="", seed=request.seed or 0, width=64, height=64)])
    here = Job(request, sampler, made, contexts, step_noise(request, made, draw))
    here.state[0] = draw()[0] * made.scale
    if made.churn is not None:
        here.state[0] += draw()[0] * made.churn
    return here


def step_noise(request: clipskip.Request, made: Plan, draw: object) -> Iterator[np.ndarray]:
    """What each row is given: nothing, the next draw of torch's generator, or the increment of its interval."""
    tree = BrownianTree(request.seed or 0, "cpu", *made.span) if made.span else None
    for row in made.rows:
        if row.noise is None:
            yield np.zeros((4, 8, 8))
        elif tree:
            yield tree.normal((4, 8, 8), *row.noise).astype(np.float64)
        else:
            yield draw()[0]  # type: ignore[operator]


def advance(truth: Reference, jobs: Sequence[Job], call: int) -> None:
    """One call of the network for all of them, both prompts of each."""
    rows = [each.plan.rows[call] for each in jobs]
    points = np.stack([each.state[0] * row.c_in for each, row in zip(jobs, rows, strict=True)])
    timesteps = np.array([row.timestep for row in rows])
    contexts = np.stack([context for each in jobs for context in each.contexts])
    outs = truth.network(np.repeat(points, 2, axis=0), np.repeat(timesteps, 2), contexts)
    for each, row, (prompt, negative) in zip(jobs, rows, outs.reshape(len(jobs), 2, 4, 8, 8), strict=True):
        memory = [*each.state[:REMEMBERED], *each.guided(prompt, negative), next(each.noise)]
        each.state = np.tensordot(row.update, memory, axes=1)


def test_every_sampler_meets_every_schedule_number_of_steps_and_setting() -> None:
    for sampler in SAMPLERS:
        own = [request for request in REQUESTS if request.sampler == sampler.name]
        assert {request.schedule for request in own} == ({*SCHEDULES} if sampler.levels is None else {"automatic"})
        assert {request.steps for request in own} >= {*STEPS} - {1}
        assert {request.cfg_rescale for request in own} == ({0.0} if sampler.unguided else {0.0, 0.7})
        for name in {*CHOICES}.intersection(sampler.settings):
            assert {getattr(request, name) for request in own} == {*CHOICES[name]}


@pytest.mark.parametrize("name", NAMED)
def test_pictures_of_every_sampler_equal_the_reference(
    name: str, pictures: list[np.ndarray], expected: np.ndarray
) -> None:
    compared = zip(REQUESTS, pictures, expected, strict=True)
    for request, picture, right in [each for each in compared if each[0].sampler == name]:
        assert right.std() > 3, "a picture without content proves nothing"
        assert np.abs(picture.astype(int) - right.astype(int)).max() <= LIMIT, request


@pytest.mark.parametrize("name", NAMED)
def test_a_picture_alone_is_what_it_is_among_pictures_of_all_samplers(
    name: str, pipe: clipskip.Pipeline, pictures: list[np.ndarray]
) -> None:
    number = next(i for i, one in enumerate(REQUESTS) if one.sampler == name and one.steps == 5)
    np.testing.assert_array_equal(np.asarray(pipe(REQUESTS[number]).images[0]), pictures[number])


def test_a_rescaled_picture_of_several_parts_has_the_mean_of_those_that_draw_near(
    pipe: clipskip.Pipeline, sample_checkpoint: Path
) -> None:
    """Of `a :2 AND b AND c :-0.5` the deviation is that of (2 a + b) / 3."""
    truth = reference.load(sample_checkpoint)
    texts, weights = [PROMPT, "a small yellow star", "blue", ""], [2, 1, -0.5]
    prompt = " AND ".join(f"{text} :{weight}" for text, weight in zip(texts, weights, strict=False))
    request = clipskip.Request(
        prompt=prompt, sampler="Euler", steps=5, cfg=4, cfg_rescale=0.6, seed=3, width=64, height=64
    )
    here = job(replace(request, schedule="uniform"), [])
    contexts = np.stack([truth.text.contexts([((text, 1.0),)], 2, "Original")[0] for text in texts])
    for row in here.plan.rows:
        outs = truth.network(np.repeat(here.state[:1] * row.c_in, 4, axis=0), np.full(4, row.timestep), contexts)
        out = outs[3] + 4 * sum(weight * (each - outs[3]) for weight, each in zip(weights, outs, strict=False))
        near = (2 * outs[0] + outs[1]) / 3
        out = rescale_noise_cfg(torch.from_numpy(out)[None], torch.from_numpy(near)[None], 0.6)[0].numpy()
        memory = [*here.state[:REMEMBERED], out, np.zeros_like(out), np.zeros_like(out)]
        here.state = np.tensordot(row.update, memory, axes=1)
    picture, right = np.asarray(pipe(request).images[0]), truth.decode(here.state[:1])[0]
    assert np.abs(picture.astype(int) - right.astype(int)).max() <= LIMIT
