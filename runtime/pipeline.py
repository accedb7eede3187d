"""One opened model: requests in, pictures out. Joins the parts and owns no arithmetic.

The way of a request: `resolve` (every default, every refusal) -> `TextEncoder` (rows of the U-Net) -> `table` (the
sampler's rows) -> `Driver` (the step engine) -> `vae.decode` (the decode engine) -> `Result`.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import PIL.Image

from clipskip.engines.manifest import DECODE, ENCODE, STEP, ModelFacts, Role
from clipskip.engines.shapes import LATENT
from clipskip.engines.store import Store, build_command

from . import enlarge, img2img, metadata, pictures, vae
from .backends import Array, Backend
from .backends.providers import BY_TARGET
from .batch import Image
from .conditioning import NetworkRow, TextEncoder, check_vectors
from .driver import Driver
from .engine_cache import EngineCache
from .errors import EngineIncompatible, NumericalError, RequestError
from .fields import FLAG, at_least, shown
from .img2img import Pass
from .inversions import Inversions, with_usable_names
from .ledger import Ledger
from .noise import LARGEST_SEED, SOURCES, BrownianTree, image_seeds, initial
from .request import OWN, Request, canonical
from .resolve import Limits, Resolved, noise_model, resolve
from .samplers import Plan, plan
from .tokenizer import Tokenizer

LATENT_CHANNELS = 4
REMEMBERED_SIZES = 4
NOT_MASKED = {"mask": 1.0, "known": 0.0, "pull": 0.0}  # inpainting's inputs where the whole picture is made
SCORES = 8 * 4  # bytes for two places of a picture, in float32: Stable Diffusion 1 has 8 heads
SHARED_LENGTHS = "shared calls of the network with longer prompts (share_lengths): within 1/255 of the picture alone"


@dataclass(frozen=True)
class Settings:
    """How a pipeline works; `clipskip.open` has what each means. RequestError for what means nothing."""

    text_engine_budget: int
    max_batch: int | None
    share_lengths: bool
    warm: Sequence[tuple[int, int, int]]

    def __post_init__(self) -> None:
        at_least("text_engine_budget", self.text_engine_budget, 0)
        if self.max_batch is not None:
            at_least("max_batch", self.max_batch, 1)
        FLAG.check("share_lengths", self.share_lengths)
        sizes = self.warm if isinstance(self.warm, (list, tuple)) else [()]
        if not all(isinstance(size, (list, tuple)) and len(size) == 3 for size in sizes):
            message = f"warm is a list of (width, height, images), not {shown(self.warm)}"
            raise RequestError(message, field="warm", hint="such as warm=[(512, 512, 1)]")


@dataclass(frozen=True)
class Result:
    """What one request gave.

    `images` are 8-bit RGB pictures, one per seed of `seeds`; `request` is the request with every default filled in;
    `warnings` is what the user should know; `timings` are seconds per stage of the run that made it; `engines` maps
    what took part, such as "text-12" or "step-cuda" (a form), to the key of its artefact; `inversions` maps each
    textual inversion that the prompts used to its SHA-256, `pictures` each field that had one to the picture's;
    `ledger` is that of the picture which was repeated, if one.
    """

    images: tuple[PIL.Image.Image, ...]
    seeds: tuple[int, ...]
    request: Request
    warnings: tuple[str, ...]
    timings: dict[str, float]
    engines: dict[str, str]
    model: ModelFacts = field(repr=False)
    inversions: dict[str, str] = field(default_factory=dict, repr=False)
    pictures: dict[str, str] = field(default_factory=dict, repr=False)
    ledger: Ledger | None = field(default=None, repr=False)

    def save(
        self, target: metadata.Target, index: int = 0, format: str | None = None, *, overwrite: bool = True
    ) -> None:
        """Write image `index` with the whole request in its metadata; a file is written, and replaced, in one step.

        The suffix says the format: .png, .jpg or .jpeg (quality 95), .webp (lossless). An open binary file gets a PNG.
        `format` ("PNG", "JPEG", "WEBP") overrules both. Without `overwrite`, FileExistsError where a file is there.
        RequestError for another index, target or format.
        """
        metadata.save(self._image(index), target, self.origin(index), overwrite, format)

    def png(self, index: int = 0) -> bytes:
        """Image `index` as the bytes of a PNG, with the whole request in its metadata."""
        return metadata.encode(self._image(index), self.origin(index))

    def _image(self, index: int) -> PIL.Image.Image:
        if at_least("index", index, 0) >= len(self.images):
            raise RequestError(f"index must be 0..{len(self.images) - 1}, not {shown(index)}", field="index")
        return self.images[index]

    def origin(self, index: int) -> metadata.Origin:
        """What made image `index`, for its metadata."""
        return metadata.Origin(self.alone(index).over(self.pictures), self.model, self.engines, self.inversions)

    def alone(self, index: int) -> Request:
        """The request that makes image `index` again by itself."""
        asked = self.request
        assert asked.seed is not None
        seed, subseed = image_seeds(asked.seed, asked.subseed, asked.subseed_strength, asked.batch)[index]
        return replace(asked, seed=seed, subseed=subseed, batch=1)


@dataclass(frozen=True)
class Progress:
    """`call` of `calls` model evaluations, counted per image, are done. The last Progress has one result per request.

    `preview()` decodes what the images look like now, noise included; of the last one they are the pictures themselves.
    """

    call: int
    calls: int
    preview: Callable[[], list[PIL.Image.Image]] = field(repr=False)
    results: tuple[Result, ...] = ()


@dataclass(frozen=True)
class _Stage:
    """What the images of one pass share."""

    resolved: Resolved
    run: Pass
    plan: Plan
    rows: Sequence[NetworkRow]
    inputs: Mapping[str, Any]

    def image(self, seeds: tuple[int, int | None], origin: Array | None = None) -> Image:
        """The image of a seed and subseed, from noise and from the latents that `origin` is."""
        request, made, seed = self.resolved.request, self.plan, seeds[0]
        shape = LATENT_CHANNELS, self.run.height // LATENT, self.run.width // LATENT
        start, noise = initial(seed, shape, request.rng, seeds[1], request.subseed_strength)
        if request.eta_noise_seed_delta:
            noise = SOURCES[request.rng]((seed + request.eta_noise_seed_delta) & LARGEST_SEED)
        latents = start * np.float32(made.scale)
        if origin is not None and made.picture:
            source = self.resolved.source
            if source is not None and source.mask is not None:
                origin = img2img.content(origin, source.mask, start, request.fill)
            latents += np.float32(made.picture) * origin
        if made.churn is not None:
            latents += np.float32(made.churn) * noise.normal(shape)
        tree = BrownianTree(seed, request.rng, *made.span) if made.span else None
        return Image(made.rows, self.rows, latents, tree or noise, self.resolved.chunks, self.inputs)


@dataclass(eq=False)
class _Making:
    """One picture in the making: its image in the batch, and what makes the next one of its latents.

    It takes `calls` calls in all; `past` are those of images before this one.
    """

    image: Image
    then: list[partial[Image]]
    calls: int
    past: int = 0
    stretched: bool = False

    def follow(self, driver: Driver) -> None:
        """Let the next image take the place of one that is done."""
        self.stretched |= self.image.stretched
        if self.image.done and self.then:
            self.past += self.image.call
            self.image = self.then.pop(0)(self.image.latents)
            if not self.image.done:
                driver.add([self.image])


class Pipeline:
    """One model, opened. Threads may share it, and share calls of the network. Close it, or use `with`.

    A pickled one is opened anew where it is unpickled, from the same store; EngineIncompatible if that then holds
    another model. Nothing of a device travels: its backend was given by name, or is an OnnxRuntime.
    """

    reopen: Callable[[], Pipeline]  # how `clipskip.open` made this

    def __init__(self, store: Store, backend: Backend, inversions: Inversions, settings: Settings) -> None:
        self.model = facts = store.manifest().model
        for line in store.exposed():
            warnings.warn(line, RuntimeWarning, stacklevel=3)
        self.backend = backend
        self._engines = EngineCache(store, backend, settings.text_engine_budget)
        self._tokenizer = Tokenizer.open(store.verify_tokenizer())
        if self._tokenizer.vocabulary != facts.vocabulary:
            message = f"the tokenizer has {self._tokenizer.vocabulary} tokens, the text engines {facts.vocabulary}"
            raise EngineIncompatible(message, path=store.root, hint=store.command("onnx", "fp32"))
        for each in store.manifest().artefacts:
            if each.role.part == "text" and each.target == backend.target:
                check_vectors(inversions.vectors, each)
        self._inversions = with_usable_names(inversions, self._tokenizer)
        self._noise_model = noise_model(facts)
        self._mid_grey = lru_cache(REMEMBERED_SIZES)(partial(vae.encode_mid_grey, self._engines))
        step = self._engines.artefact(STEP)
        command = None if step.target == "onnx" else build_command(store.root, step.target, step.precision)
        self._limits = Limits.of(step, backend.batch_pixels, settings.max_batch, command)
        compiles = backend.compiles_per_shape
        self._text = TextEncoder(self._engines, inversions.vectors, compiles, facts.context_parts)
        how = {"exact_rows": not compiles, "share_lengths": settings.share_lengths}
        self._driver = Driver(self._engines, self._limits, loops=backend.loops, **how)
        try:
            for size in settings.warm:
                self._warm(*size)
        except BaseException:
            self.close()
            raise

    def __call__(self, prompt: str | Request | Ledger, **fields: Any) -> Result:
        """Make the pictures of one request: a Request, one read from a picture (a Ledger), or a prompt; and any fields.

        Raises RequestError before any engine runs, EngineMissing for a depth that was not built, and NumericalError
        instead of returning a broken picture.
        """
        if isinstance(prompt, Ledger):
            return self.run([prompt.over(fields)])[0]
        return self.run([as_request(prompt, **fields)])[0]

    def run(self, requests: Sequence[Request | Ledger | str]) -> list[Result]:
        """The results of several requests, which share calls of the network wherever size and length allow."""
        if isinstance(requests, (str, Request, Ledger)):
            raise RequestError("run() takes a list of requests; call the pipeline itself for one", field="requests")
        *_, last = self.steps(*requests)
        return list(last.results)

    def steps(self, *requests: Request | Ledger | str) -> Iterator[Progress]:
        """As `run`, yielding whenever the pictures have moved on; to cancel, stop iterating.

        They move on by calls that other threads make as well: who looks rarely sees fewer of them.
        """
        self._driver.check_process()
        clock = _Clock()
        ledgers = [request if isinstance(request, Ledger) else None for request in requests]
        resolved = [self.check(request) for request in requests]
        self._warn_of_memory(resolved)
        groups = [list(self._making(*each)) for each in zip(resolved, self._text.rows(resolved), strict=True)]
        making = [each for group in groups for each in group]
        clock.lap("text")
        total, done = sum(each.calls for each in making), 0
        try:
            self._driver.add([each.image for each in making if not each.image.done])
            while done < total:
                self._driver.advance([each.image for each in making], done - sum(each.past for each in making))
                for each in making:
                    each.follow(self._driver)
                images, done = [each.image for each in making], sum(each.past + each.image.call for each in making)
                yield Progress(done, total, partial(self._previews, images, done))
        finally:
            self._driver.remove([each.image for each in making])
        clock.lap("denoise")
        what = "the finished latents"
        finished = [[vae.decode(self._engines, each.image.latents, what) for each in group] for group in groups]
        finished = [
            [each.source.onto(picture) if each.source else picture for picture in group]
            for each, group in zip(resolved, finished, strict=True)
        ]
        clock.lap("decode")
        made = zip(resolved, ledgers, groups, finished, strict=True)
        results = tuple(self._result(*each, clock) for each in made)
        yield Progress(done, total, lambda: [image for group in finished for image in group], results)

    def _warn_of_memory(self, resolved: Sequence[Resolved]) -> None:
        """Say before the work what this machine will hardly do: on the CPU attention holds all of its scores."""
        on_cpu = self.backend.name in BY_TARGET and BY_TARGET[self.backend.name].kind == "cpu"
        for each in resolved if on_cpu and hasattr(os, "sysconf") else ():  # not so on Windows
            largest = max(each.passes, key=lambda run: run.pixels)
            size = SCORES * (largest.pixels // LATENT**2) ** 2 * len(each.texts)
            there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            if size > there:
                needs = f"{largest.size} on the CPU needs about {size / 1e9:.0f} GB for attention (8 heads)"
                warnings.warn(f"{needs}; this machine has {there / 1e9:.0f} GB", RuntimeWarning, stacklevel=3)

    def _warm(self, width: int, height: int, images: int) -> None:
        try:
            self("", negative_prompt="warm", width=width, height=height, batch=images, steps=1, seed=0)
        except RequestError as error:
            message = f"warm has ({width!r}, {height!r}, {images!r}): {error.message}"
            raise RequestError(message, field="warm", hint=error.hint) from error

    def check(self, request: Request | Ledger | str) -> Resolved:
        """What a request means to this model. RequestError and EngineMissing as when it is made; no engine runs."""
        asked = request.request if isinstance(request, Ledger) else as_request(request)
        resolved = resolve(asked, self.model, self._limits, self._tokenizer, self._inversions)
        for layers in resolved.depths:
            self._engines.artefact(Role("text", layers))
        return resolved

    def together(self, resolved: Resolved) -> int:
        """How many pictures like those of this request, at least one, share a call of the network."""
        limits = self._limits
        return max(1, min(limits.batch, limits.pixels // resolved.pixels, limits.rows // len(resolved.texts)))

    def close(self) -> None:
        """Close the engines. May be called twice; a closed pipeline refuses further requests."""
        self._engines.close()

    def __reduce__(self) -> tuple[Callable[..., Pipeline], tuple[object, ...]]:
        return _reopened, (self.reopen, self.model.model_sha256)

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _making(self, resolved: Resolved, rows: Sequence[NetworkRow]) -> Iterator[_Making]:
        """The pictures of one request: they share everything but their noise."""
        known = self._known(resolved) if resolved.source else None
        last = tuple(replace(row, ends=row.ends[-1:], which=row.which[-1:]) for row in rows)
        first, *later = (
            self._stage(resolved, run, texts, known) for run, texts in zip(resolved.passes, (rows, last), strict=False)
        )
        calls = len(first.plan.rows) + sum(len(stage.plan.rows) for stage in later)
        for seeds in resolved.seeds:
            follow = [partial(self._enlarged, stage, seeds) for stage in later]
            yield _Making(first.image(seeds, known), follow, calls)

    def _stage(self, resolved: Resolved, run: Pass, rows: Sequence[NetworkRow], known: Array | None) -> _Stage:
        request, sampler, source = resolved.request, resolved.sampler, resolved.source
        given = {name: value for name in OWN if (value := getattr(request, name)) is not None}
        levels = request.sigmas or ()
        if run.strength == 1:
            made = plan(sampler, resolved.schedule, run.steps, self._noise_model, given, levels)
        else:
            made = img2img.plan_of(run, sampler, resolved.schedule, self._noise_model, given, levels)
        inputs = {**NOT_MASKED, **self._model_inputs(run, source)}
        if source is not None and source.mask is not None:
            made = img2img.masked(made, sampler, self._noise_model)
            inputs |= {"mask": source.mask[None], "known": known}
        return _Stage(resolved, run, made, rows, inputs)

    def _known(self, resolved: Resolved) -> Array:
        """The latents [4,h,w] of the picture that another is made from."""
        assert resolved.source is not None
        known = vae.encode(self._engines, resolved.source.pixels)[0]
        if not np.isfinite(known).all():
            raise NumericalError("the latents of image are not finite", hint="try engines at fp32")
        size = resolved.height // LATENT, resolved.width // LATENT
        return known if known.shape[1:] == size else enlarge.resized(known, size, "Latent")

    def _enlarged(self, stage: _Stage, seeds: tuple[int, int | None], latents: Array) -> Image:
        """The image of the second pass, made from the finished latents of the first."""
        upscaler, run = stage.resolved.request.hires_upscaler, stage.run
        if upscaler in enlarge.LATENT:
            return stage.image(seeds, enlarge.covering(latents, (run.height // LATENT, run.width // LATENT), upscaler))
        picture = vae.decode(self._engines, latents, "the latents of the first pass")
        pixels = pictures.enlarged(picture, (run.width, run.height), upscaler)
        return stage.image(seeds, vae.encode(self._engines, pixels)[0])

    def _model_inputs(self, run: Pass, source: pictures.Source | None) -> dict[str, Any]:
        """What the step engine of some models takes for each image, by name."""
        height, width = run.height, run.width
        listed = {port.name for port in self._engines.artefact(STEP).inputs}
        inputs: dict[str, Any] = {}
        if "size_ids" in listed:  # as if the picture had had this size and been cut nowhere
            inputs["size_ids"] = np.array([height, width, 0, 0, height, width], np.float32)
        if "inpaint_mask" not in listed:
            return inputs
        if source is None or source.hidden is None:  # as A1111: everything is to be made, of a picture that is mid-grey
            return inputs | {"inpaint_mask": 1.0, "inpaint_latents": self._mid_grey(height, width)}
        mask, painted = source.painted()
        return inputs | {"inpaint_mask": mask, "inpaint_latents": vae.encode(self._engines, painted)[0]}

    def _previews(self, images: Sequence[Image], done: int) -> list[PIL.Image.Image]:
        return [
            vae.decode(self._engines, each, f"the latents after call {done}") for each in self._driver.latents(images)
        ]

    def _result(
        self,
        resolved: Resolved,
        ledger: Ledger | None,
        making: Sequence[_Making],
        finished: Sequence[PIL.Image.Image],
        clock: _Clock,
    ) -> Result:
        learnt = self._inversions
        inversions = learnt.used(resolved.texts, self._tokenizer.vocabulary) if learnt.digests else {}
        digests = resolved.source.digests if resolved.source else {}
        repeated = ledger.notes(self.model, self._inversions, inversions) if ledger else []
        repeated += ledger.about_pictures(digests) if ledger else []
        texts = {Role("text", layers) for layers in resolved.depths}
        in_pixels = len(resolved.passes) > 1 and resolved.request.hires_upscaler not in enlarge.LATENT
        encoded = [ENCODE] if resolved.source or in_pixels else []
        used = [self._engines.artefact(role) for role in sorted({STEP, DECODE, *texts, *encoded})]
        stretched = [SHARED_LENGTHS] if any(each.stretched for each in making) else []
        return Result(
            images=tuple(finished),
            seeds=tuple(seed for seed, _ in resolved.seeds),
            request=resolved.request,
            warnings=(*repeated, *resolved.notes, *self._inversions.notes, *self._engines.notes, *stretched),
            timings=clock.seconds,
            engines={artefact.identity.stem: artefact.key for artefact in used},
            model=self.model,
            inversions=inversions,
            pictures=digests,
            ledger=ledger,
        )


def _reopened(reopen: Callable[[], Pipeline], model_sha256: str) -> Pipeline:
    pipeline = reopen()
    if pipeline.model.model_sha256 != model_sha256:
        pipeline.close()
        raise EngineIncompatible("the store holds another model than the pickled pipeline's", hint="open it anew")
    return pipeline


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
    """A Request from a prompt and fields, or a Request with some replaced; fields may have any of their names."""
    return prompt.over(fields) if isinstance(prompt, Request) else Request(prompt=prompt, **canonical(fields))
