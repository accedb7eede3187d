"""One opened model: requests in, pictures out. Joins the parts and owns no arithmetic.

The way of a request: `resolve` (every default, every refusal) -> `TextEncoder` (rows of the U-Net) -> `table` (the
sampler's rows) -> `Driver` (the step engine) -> `vae.decode` (the decode engine) -> `Result`.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import PIL.Image

from clipskip.engines.manifest import DECODE, STEP, ModelFacts, Role
from clipskip.engines.shapes import LATENT
from clipskip.engines.store import Store, build_command

from . import metadata
from .backends import Backend
from .backends.providers import BY_TARGET
from .batch import Image
from .conditioning import NetworkRow, TextEncoder, check_vectors
from .driver import Driver
from .engine_cache import EngineCache
from .errors import EngineIncompatible, RequestError
from .fields import FLAG, at_least, shown
from .inversions import Inversions, with_usable_names
from .ledger import Ledger
from .noise import LARGEST_SEED, SOURCES, BrownianTree, image_seeds, initial
from .request import OWN, Request, canonical
from .resolve import Limits, Resolved, noise_model, resolve
from .samplers import plan
from .tokenizer import Tokenizer
from .vae import SMALLEST_TILE, Vae

LATENT_CHANNELS = 4
NOT_MASKED = {"mask": 1.0, "known": 0.0, "pull": 0.0}  # inpainting's inputs where the whole picture is made
SCORES = 8 * 4  # bytes for two places of a picture, in float32: Stable Diffusion 1 has 8 heads
DECODED = 7_500  # bytes for a pixel, at most, in Stable Diffusion 1's decoder in float32
TILES = "decoded in tiles that overlap (tile_pixels): differs a little from a picture decoded as a whole"
SHARED_LENGTHS = "shared calls of the network with longer prompts (share_lengths): within 1/255 of the picture alone"


@dataclass(frozen=True)
class Settings:
    """How a pipeline works; `clipskip.open` has what each means. RequestError for what means nothing."""

    text_engine_budget: int
    max_batch: int | None
    share_lengths: bool
    tile_pixels: int | None
    warm: Sequence[tuple[int, int, int]]

    def __post_init__(self) -> None:
        at_least("text_engine_budget", self.text_engine_budget, 0)
        if self.max_batch is not None:
            at_least("max_batch", self.max_batch, 1)
        FLAG.check("share_lengths", self.share_lengths)
        if self.tile_pixels is not None:
            at_least("tile_pixels", self.tile_pixels, SMALLEST_TILE)
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
    textual inversion that the prompts used to its SHA-256; `ledger` is that of the picture which was repeated, if one.
    """

    images: tuple[PIL.Image.Image, ...]
    seeds: tuple[int, ...]
    request: Request
    warnings: tuple[str, ...]
    timings: dict[str, float]
    engines: dict[str, str]
    model: ModelFacts = field(repr=False)
    inversions: dict[str, str] = field(default_factory=dict, repr=False)
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
        return metadata.Origin(self.alone(index), self.model, self.engines, self.inversions)

    def alone(self, index: int) -> Request:
        """The request that makes image `index` again by itself."""
        asked = self.request
        assert asked.seed is not None
        seed, subseed = image_seeds(asked.seed, asked.subseed, asked.subseed_strength, asked.batch)[index]
        return replace(asked, seed=seed, subseed=subseed, batch=1)


@dataclass(frozen=True)
class Progress:
    """`call` of `calls` model evaluations, counted per image, are done. The last Progress has one result per request.

    `preview()` decodes what the last call takes for the finished pictures: coarse at first, all but finished near the
    end, noise for one that had no call yet. Of the last one they are the pictures themselves.
    """

    call: int
    calls: int
    preview: Callable[[], list[PIL.Image.Image]] = field(repr=False)
    results: tuple[Result, ...] = ()


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
        step = self._engines.artefact(STEP)
        command = None if step.target == "onnx" else build_command(store.root, step.target, step.precision)
        self._limits = Limits.of(step, backend.batch_pixels, settings.max_batch, command)
        compiles = backend.compiles_per_shape
        self._vae = Vae(self._engines, self._limits, settings.tile_pixels)
        self._text = TextEncoder(self._engines, inversions.vectors, round_up=compiles)
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
        groups = [list(self._images(*each)) for each in zip(resolved, self._text.rows(resolved), strict=True)]
        images = [image for group in groups for image in group]
        clock.lap("text")
        total, done = sum(len(image.table) for image in images), 0
        try:
            self._driver.add(images)
            while done < total:
                self._driver.advance(images, done)
                done = sum(image.call for image in images)
                yield Progress(done, total, partial(self._previews, images, done))
        finally:
            self._driver.remove(images)
        clock.lap("denoise")
        decoded = iter(self._vae.decode([image.latents for image in images], "the finished latents"))
        pictures = [list(islice(decoded, len(group))) for group in groups]
        clock.lap("decode")
        made = zip(resolved, ledgers, groups, pictures, strict=True)
        results = tuple(self._result(*each, clock) for each in made)
        yield Progress(done, total, lambda: [image for group in pictures for image in group], results)

    def _warn_of_memory(self, resolved: Sequence[Resolved]) -> None:
        """Say before the work what this machine will hardly do: attention holds all of its scores, but in a form."""
        on_cpu = self.backend.name in BY_TARGET and BY_TARGET[self.backend.name].kind == "cpu"
        for each in resolved if on_cpu and hasattr(os, "sysconf") else ():  # not so on Windows
            pixels = each.width * each.height
            scores = 0 if self._engines.artefact(STEP).variant else SCORES * (pixels // LATENT**2) ** 2
            needed = {
                scores * len(each.texts): "attention (8 heads)",
                DECODED * min(pixels, self._vae.tile_pixels or pixels): "the decoder",
            }
            size = max(needed)
            there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            if size > there:
                needs = f"{each.width}x{each.height} on the CPU needs about {size / 1e9:.0f} GB for {needed[size]}"
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
        limits, pixels = self._limits, resolved.width * resolved.height
        return max(1, min(limits.batch, limits.pixels // pixels, limits.rows // len(resolved.texts)))

    def close(self) -> None:
        """Close the engines. May be called twice; a closed pipeline refuses further requests."""
        self._engines.close()

    def __reduce__(self) -> tuple[Callable[..., Pipeline], tuple[object, ...]]:
        return _reopened, (self.reopen, self.model.model_sha256)

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _images(self, resolved: Resolved, rows: Sequence[NetworkRow]) -> Iterator[Image]:
        """The images of one request: they share everything but their noise."""
        request = resolved.request
        given = {name: value for name in OWN if (value := getattr(request, name)) is not None}
        made = plan(resolved.sampler, resolved.schedule, request.steps, self._noise_model, given, request.sigmas or ())
        shape = LATENT_CHANNELS, resolved.height // LATENT, resolved.width // LATENT
        for seed, subseed in resolved.seeds:
            start, noise = initial(seed, shape, request.rng, subseed, request.subseed_strength)
            if request.eta_noise_seed_delta:
                noise = SOURCES[request.rng]((seed + request.eta_noise_seed_delta) & LARGEST_SEED)
            latents = start * np.float32(made.scale)
            if made.churn is not None:
                latents += np.float32(made.churn) * noise.normal(shape)
            tree = BrownianTree(seed, request.rng, *made.span) if made.span else None
            yield Image(made.rows, rows, latents, tree or noise, resolved.chunks, NOT_MASKED)

    def _previews(self, images: Sequence[Image], done: int) -> list[PIL.Image.Image]:
        return self._vae.decode(self._driver.latents(images), f"the latents after call {done}")

    def _result(
        self,
        resolved: Resolved,
        ledger: Ledger | None,
        images: Sequence[Image],
        pictures: Sequence[PIL.Image.Image],
        clock: _Clock,
    ) -> Result:
        learnt = self._inversions
        inversions = learnt.used(resolved.texts, self._tokenizer.vocabulary) if learnt.digests else {}
        repeated = ledger.notes(self.model, self._inversions, inversions) if ledger else []
        texts = {Role("text", layers) for layers in resolved.depths}
        used = [self._engines.artefact(role) for role in sorted({STEP, DECODE, *texts})]
        stretched = [SHARED_LENGTHS] if any(image.stretched for image in images) else []
        tiled = [TILES] if self._vae.tiled(*images[0].latents.shape[1:]) else []
        return Result(
            images=tuple(pictures),
            seeds=tuple(seed for seed, _ in resolved.seeds),
            request=resolved.request,
            warnings=(*repeated, *resolved.notes, *self._inversions.notes, *self._engines.notes, *stretched, *tiled),
            timings=clock.seconds,
            engines={artefact.identity.stem: artefact.key for artefact in used},
            model=self.model,
            inversions=inversions,
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
