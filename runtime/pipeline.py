"""One opened model: requests in, pictures out. Joins the parts and owns no arithmetic.

The way of a request: `resolve` (every default, every refusal) -> `TextStage` (contexts) -> `table` (the sampler's rows)
-> `denoise` (the step engine) -> `_pictures` (the decode engine) -> `Result`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from clipskip.engines.manifest import ModelFacts, Role
from clipskip.engines.shapes import LATENT
from clipskip.engines.store import Store, build_command, export_command

from . import metadata
from .backends import Array, Backend
from .context import Conditioning, TextStage
from .denoise import Image, Snapshot, denoise
from .embeddings import Concepts, check_names
from .errors import EngineIncompatible, NumericalError, RequestError
from .limits import Limits
from .noise import image_seeds, initial
from .plan import Job, batches
from .request import Request, unknown_field
from .residents import Residents, text_role
from .resolve import Resolved, resolve
from .samplers import table
from .schedules import NoiseModel, sigmas
from .tokenizer import Tokenizer

LATENT_CHANNELS = 4


@dataclass(frozen=True)
class Result:
    """What one request gave.

    `images` are 8-bit RGB pictures, one per seed of `seeds`; `request` is the request with every default filled in;
    `warnings` is what the user should know; `timings` are seconds per stage of the run that made it; `engines` maps
    each role that took part to the key of its artefact.
    """

    images: tuple[PIL.Image.Image, ...]
    seeds: tuple[int, ...]
    request: Request
    warnings: tuple[str, ...]
    timings: dict[str, float]
    engines: dict[str, str]
    model: ModelFacts = field(repr=False)

    def save(self, path: str | Path, index: int = 0) -> None:
        """Write image `index` as a PNG that carries the whole request; an existing file is replaced in one step."""
        metadata.save(self.images[index], Path(path), self.alone(index), self.model, self.engines)

    def alone(self, index: int) -> Request:
        """The request that makes image `index` again by itself."""
        asked = self.request
        assert asked.seed is not None
        seed, subseed = image_seeds(asked.seed, asked.subseed, asked.subseed_strength, asked.batch)[index]
        return replace(asked, seed=seed, subseed=subseed, batch=1)


@dataclass(frozen=True)
class Progress:
    """`call` of `calls` calls of the network are done. The last Progress carries one result per request.

    `preview()` decodes what the images of the current batch look like now, noise included.
    """

    call: int
    calls: int
    preview: Callable[[], list[PIL.Image.Image]] = field(repr=False)
    results: tuple[Result, ...] = ()


class Pipeline:
    """One model, opened. Threads may share it. Close it, or use it in a `with` statement."""

    def __init__(
        self, store: Store, backend: Backend, *, concepts: Concepts, text_engine_budget: int, max_batch: int | None
    ) -> None:
        self.model = store.manifest().model
        self.backend = backend
        facts = self.model
        self._noise_model = NoiseModel(facts.beta_start, facts.beta_end, facts.train_steps, facts.prediction)
        self._concepts = concepts
        self._residents = Residents(store, backend, concepts.vectors, text_engine_budget)
        step = self._residents.artefact(Role("step"))
        command = None if step.target == "onnx" else build_command(store.root, step.target, step.precision)
        self._limits = Limits.of(step, backend.batch_pixels, max_batch, command)
        tokenizer = Tokenizer.open(store.verify_tokenizer())
        if tokenizer.vocabulary != facts.vocabulary:
            message = f"the tokenizer has {tokenizer.vocabulary} tokens, the text engines {facts.vocabulary}"
            raise EngineIncompatible(message, path=store.root, hint=export_command(store.root))
        check_names(concepts, tokenizer)
        self._text = TextStage(tokenizer, concepts, self._residents.encode, self._limits)

    def __call__(self, prompt: str | Request, **fields: Any) -> Result:
        """Make the pictures of one request, given as a Request or as a prompt and any fields of Request.

        Raises RequestError before any engine runs, EngineMissing for a depth that was not built, and NumericalError
        instead of returning a broken picture.
        """
        return self.run([as_request(prompt, **fields)])[0]

    def run(self, requests: Sequence[Request | str]) -> list[Result]:
        """The results of several requests, which share calls of the network wherever size and length allow."""
        if isinstance(requests, (str, Request)):
            raise RequestError("run() takes a list of requests; call the pipeline itself for one", field="requests")
        *_, last = self.steps(*requests)
        return list(last.results)

    def steps(self, *requests: Request | str) -> Iterator[Progress]:
        """As `run`, yielding after every call of the network; to cancel, stop iterating."""
        clock = _Clock()
        wanted = [resolve(as_request(each), self.model) for each in requests]
        jobs = self._jobs(wanted)
        clock.lap("text")
        together = batches(jobs, self._limits)
        done, calls = 0, sum(max(len(job.image.table) for job in batch) for batch in together)
        latents: list[Array] = [np.empty(0)] * len(jobs)
        for batch in together:
            for snapshot in self._denoise(batch, latents):
                done += 1
                yield Progress(done, calls, partial(self._preview, snapshot))
        clock.lap("denoise")
        pictures = iter([self._picture(each, "the finished latents") for each in latents])
        clock.lap("decode")
        yield Progress(done, calls, list, tuple(self._result(each, pictures, clock) for each in wanted))

    def close(self) -> None:
        """Close the engines. May be called twice; a closed pipeline refuses further requests."""
        self._residents.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _jobs(self, wanted: Sequence[Resolved]) -> list[Job]:
        """One job per image. Whatever can be refused is refused here, before the first call of the network."""
        for each in wanted:
            self._limits.check_size(each)
            for layers in {each.layers, each.negative_layers}:
                self._residents.artefact(text_role(layers))
        conditionings = self._text.condition(wanted)
        images = [
            (each, image)
            for each, conditioning in zip(wanted, conditionings, strict=True)
            for image in self._images(each, conditioning)
        ]
        return [Job(index, each, image) for index, (each, image) in enumerate(images)]

    def _images(self, wanted: Resolved, conditioning: Conditioning) -> Iterator[Image]:
        """The images of one request: they share everything but their noise."""
        levels = sigmas(wanted.schedule, wanted.request.steps, self._noise_model)
        rows = table(wanted.sampler, levels, self._noise_model)
        shape = LATENT_CHANNELS, wanted.height // LATENT, wanted.width // LATENT
        for seed, subseed in wanted.seeds:
            start, noise = initial(seed, shape, wanted.request.rng, subseed, wanted.request.subseed_strength)
            yield Image(rows, conditioning, start * np.float32(levels[0]), noise)

    def _denoise(self, batch: Sequence[Job], latents: list[Array]) -> Iterator[Snapshot]:
        """Run one batch and put the finished latents where its jobs want them."""
        with self._residents.use(Role("step")) as engine:
            for snapshot in denoise(engine, [job.image for job in batch]):
                yield snapshot
            for job, finished in zip(batch, snapshot.latents(), strict=True):
                latents[job.index] = finished

    def _preview(self, snapshot: Snapshot) -> list[PIL.Image.Image]:
        return [self._picture(each, f"the latents after call {snapshot.call}") for each in snapshot.latents()]

    def _picture(self, latents: Array, what: str) -> PIL.Image.Image:
        """Decode [4,h,w] latents. NaN and infinity are an error, never a black picture."""
        if not np.isfinite(latents).all():
            raise NumericalError(f"{what} are not finite", hint="try a lower cfg, or engines at fp32")
        with self._residents.use(Role("decode")) as engine:
            outputs = engine.run({"latents": latents[None]})
        if not outputs["finite"][0]:
            raise NumericalError(f"the decoder's output for {what} is not finite", hint="try engines at fp32")
        return PIL.Image.fromarray(outputs["image"][0])

    def _result(self, wanted: Resolved, pictures: Iterator[PIL.Image.Image], clock: _Clock) -> Result:
        roles = (Role("step"), Role("decode"), *{text_role(wanted.layers), text_role(wanted.negative_layers)})
        return Result(
            images=tuple(islice(pictures, len(wanted.seeds))),
            seeds=tuple(seed for seed, _ in wanted.seeds),
            request=wanted.request,
            warnings=(*wanted.notes, *self._concepts.notes),
            timings=clock.seconds,
            engines={str(role): self._residents.artefact(role).key for role in sorted(roles)},
            model=self.model,
        )


class _Clock:
    """Seconds per stage, each from the end of the one before."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = now - self._last
        self._last = now


def as_request(prompt: str | Request, **fields: Any) -> Request:
    """A Request from a prompt and fields, or a Request with some fields replaced."""
    try:
        return replace(prompt, **fields) if isinstance(prompt, Request) else Request(prompt=prompt, **fields)
    except TypeError:
        unknown = sorted(set(fields) - set(Request.__dataclass_fields__))
        if not unknown:
            raise
        raise unknown_field(unknown[0]) from None
