"""One opened model: requests in, pictures out. Joins the parts and owns no arithmetic.

The way of a request: `resolve` (every default, every refusal) -> `TextEncoder` (rows of the U-Net) -> `table` (the
sampler's rows) -> `Driver` (the step engine) -> `vae.decode` (the decode engine) -> `Result`.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import PIL.Image

from clipskip.engines.manifest import DECODE, ENCODE, STEP, Role
from clipskip.engines.shapes import LATENT
from clipskip.engines.store import ANY_LORA, Store, build_command
from clipskip.engines.variants import PLAIN, Active

from . import enlarge
from .axes import STORE, Axis, parse_axis
from .backends import Array, Backend
from .backends.providers import BY_TARGET
from .batch import Image
from .conditioning import TextEncoder, check_vectors
from .driver import Driver
from .engine_cache import EngineCache
from .errors import ClipskipError, EngineIncompatible, EngineMissing, RequestError
from .fields import FLAG, at_least, shown
from .inversions import Inversions, with_usable_names
from .ledger import Ledger
from .loras import Loras, a1111_hash, called, notes
from .making import NOT_MASKED, Making, Passes
from .noise import SOURCES
from .request import Request, canonical
from .resolve import Limits, Resolved, noise_model, resolve
from .result import Progress, Result
from .samplers import Row
from .tokenizer import Tokenizer
from .vae import DECODERS, SMALLEST_TILE, Vae

if TYPE_CHECKING:
    from .metadata import Origin
    from .scheduler import Generation, Scheduler
    from .sheet import Sheet

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
    lora_engines: int = 1
    max_queue: int = 64

    def __post_init__(self) -> None:
        at_least("text_engine_budget", self.text_engine_budget, 0)
        at_least("lora_engines", self.lora_engines, 1)
        at_least("max_queue", self.max_queue, 1)
        if self.max_batch is not None:
            at_least("max_batch", self.max_batch, 1)
        FLAG.check("share_lengths", self.share_lengths)
        if self.tile_pixels is not None:
            at_least("tile_pixels", self.tile_pixels, SMALLEST_TILE)
        sizes = self.warm if isinstance(self.warm, (list, tuple)) else [()]
        if not all(isinstance(size, (list, tuple)) and len(size) == 3 for size in sizes):
            message = f"warm is a list of (width, height, images), not {shown(self.warm)}"
            raise RequestError(message, field="warm", hint="such as warm=[(512, 512, 1)]")


class Pipeline:
    """One model, opened. Threads may share it, and share calls of the network. Close it, or use `with`.

    A pickled one is opened anew where it is unpickled, from the same store; EngineIncompatible if that then holds
    another model. Nothing of a device travels: its backend was given by name, or is an OnnxRuntime.
    """

    reopen: Callable[[], Pipeline]  # how `clipskip.open` made this

    def __init__(
        self, store: Store, backend: Backend, inversions: Inversions, settings: Settings, loras: Sequence[str] = ()
    ) -> None:
        self.model = facts = store.manifest().model
        for line in store.exposed():
            warnings.warn(line, RuntimeWarning, stacklevel=3)
        self.backend, self._store = backend, store
        self._engines = EngineCache(store, backend, settings.text_engine_budget, settings.lora_engines)
        self._loras = Loras(loras)
        self._tokenizer = Tokenizer.open(store.verify_tokenizer())
        if self._tokenizer.vocabulary != facts.vocabulary:
            message = f"the tokenizer has {self._tokenizer.vocabulary} tokens, the text engines {facts.vocabulary}"
            raise EngineIncompatible(message, path=store.root, hint=store.command("onnx", "fp32"))
        for each in store.manifest().artefacts:
            if each.role.part == "text" and each.target == backend.target:
                check_vectors(inversions.vectors, each)
        self._inversions = with_usable_names(inversions, self._tokenizer)
        self.noise_model = noise_model(facts)
        self._max_batch, self._max_queue = settings.max_batch, settings.max_queue
        self._limits = self._limits_with(())
        compiles = backend.compiles_per_shape
        self._vae = Vae(self._engines, self._limits, settings.tile_pixels)
        self._text = TextEncoder(self._engines, inversions.vectors, compiles, facts.context_parts)
        self._passes = Passes(self._engines, self._vae, self.noise_model)
        how = {"exact_rows": not compiles, "share_lengths": settings.share_lengths}
        self.driver = Driver(self._engines, self._limits, loops=backend.loops, **how)
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
        request = prompt.over(fields) if isinstance(prompt, Ledger) else as_request(prompt, **fields)
        *_, last = self.steps(request)
        return last.results[0]

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
        self.driver.check_process()
        work = self.begin(requests, [self.check(request) for request in requests])
        total, done, making = work.calls, 0, work.making
        with closing(self._moves(making)) as moves:
            for done in moves:
                yield Progress(done, total, partial(self.previews, [each.image for each in making], done))
        results = self.finish(work)
        yield Progress(done, total, lambda: [image for result in results for image in result.images], results)

    def begin(self, requests: Sequence[Request | Ledger | str], resolved: Sequence[Resolved]) -> Work:
        """The pictures of requests that were checked, before their first call: their texts are encoded here."""
        clock = _Clock()
        ledgers = [request if isinstance(request, Ledger) else None for request in requests]
        self._warn_of_memory(resolved)
        groups = [list(self._passes.of(*each)) for each in zip(resolved, self._text.rows(resolved), strict=True)]
        clock.lap("text")
        return Work(resolved, ledgers, groups, clock)

    def finish(self, work: Work) -> tuple[Result, ...]:
        """The results of pictures that had all of their calls."""
        work.clock.lap("denoise")
        groups = list(zip(work.resolved, work.groups, strict=True))
        decoders = [asked.request.decoder for asked, group in groups for _ in group]
        latents = [each.image.latents for each in work.making]
        decoded = iter(self._vae.decode(latents, "the finished latents", decoders))
        finished = [
            [asked.source.onto(picture) if asked.source else picture for picture in islice(decoded, len(group))]
            for asked, group in groups
        ]
        work.clock.lap("decode")
        made = zip(work.resolved, work.ledgers, work.groups, finished, strict=True)
        return tuple(self._result(*each, work.clock) for each in made)

    def generate(
        self, prompt: str | Request | Ledger, *, timeout: float | None = None, priority: int = 0, **fields: Any
    ) -> Generation:
        """Make the pictures of one request for asyncio: `await` it for the Result, `async for` its Progress.

        Several at once share calls of the network; three threads serve all of them. Cancelling the task that awaits it,
        or its `cancel()`, ends the work within a call of the network. `timeout` in seconds, waiting included:
        DeadlineExceeded. A higher `priority` (-100..100) joins before others. Awaiting it raises what is wrong, as
        `pipe(...)` does, and Busy where too many wait (`max_queue` of clipskip.open).
        """
        try:
            asked = prompt.over(fields) if isinstance(prompt, Ledger) else as_request(prompt, **fields)
            return self.scheduler.submit(asked, timeout, priority)
        except ClipskipError as error:  # nobody expects it here who gathers many of them
            return self.scheduler.refused(prompt, error)

    @cached_property
    def scheduler(self) -> Scheduler:
        """What `generate` puts its requests in front of."""
        from .scheduler import Scheduler  # asyncio loads for those alone who use it

        return Scheduler(self, self._max_queue)

    def grid(self, prompt: str | Request, *axes: Axis | str, **fields: Any) -> Sheet:
        """A sheet: one picture for every combination of the values of up to three axes, such as "clip_skip=1-13".

        `axes.parse_axis` says how they are written; `sheet.steps` is the same with progress. RequestError as above.
        """
        from . import sheet  # it draws, which is not every picture's

        parsed = [parse_axis(axis) if isinstance(axis, str) else axis for axis in axes]
        if any(axis.field == STORE for axis in parsed):
            message = "a pipeline is one store's"
            raise RequestError(message, field="axis", hint="sheet.steps takes a function that opens them")
        *_, last = sheet.steps(as_request(prompt, **fields), parsed, lambda store: nullcontext(self))
        return last.sheet

    def _moves(self, making: Sequence[Making]) -> Generator[int, None, None]:
        """Make pictures, whoever else's are made with them: how many calls are done, whenever they have moved on."""
        total, done = sum(each.calls for each in making), 0
        try:
            self.driver.add([each.image for each in making if not each.image.done])
            while done < total:
                self.driver.advance([each.image for each in making], done - sum(each.past for each in making))
                for each in making:
                    each.follow(self.driver)
                done = sum(each.past + each.image.call for each in making)
                yield done
        finally:
            self.driver.remove([each.image for each in making])

    def _warn_of_memory(self, resolved: Sequence[Resolved]) -> None:
        """Say before the work what this machine will hardly do: attention holds all of its scores, but in a form."""
        on_cpu = self.backend.name in BY_TARGET and BY_TARGET[self.backend.name].kind == "cpu"
        for each in resolved if on_cpu and hasattr(os, "sysconf") else ():  # not so on Windows
            largest = max(each.passes, key=lambda run: run.pixels)
            scores = 0 if self._engines.artefact(STEP).variant else SCORES * (largest.pixels // LATENT**2) ** 2
            needed = {
                scores * len(each.texts): "attention (8 heads)",
                DECODED * min(largest.pixels, self._vae.tile_pixels or largest.pixels): "the decoder",
            }
            size = max(needed)
            there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            if size > there:
                needs = f"{largest.size} on the CPU needs about {size / 1e9:.0f} GB for {needed[size]}"
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
        if called(resolved.request):
            active = self._loras.active(resolved.request, self._engines.changeable())
            said = notes(active, resolved, self.model.kept)
            if replace(limits := self._limits_with(active), build_command=self._limits.build_command) != self._limits:
                resolved = resolve(asked, self.model, limits, self._tokenizer, self._inversions)
            resolved = replace(resolved, loras=active, notes=(*resolved.notes, *said, *self._loras.notes))
        for role in (STEP, *(Role("text", layers) for layers in resolved.depths)):
            self._engines.artefact(role, self._engines.mix(role, resolved.loras))
        self._engines.artefact(DECODERS[resolved.request.decoder])
        return resolved

    def origins(self, resolved: Resolved) -> list[Origin]:
        """What will have made each picture of a request that was checked."""
        unmade = self._result(resolved, None, (), (), _Clock())
        return [unmade.origin(index) for index in range(resolved.request.batch)]

    def _limits_with(self, loras: Sequence[Active]) -> Limits:
        """What the step engine takes that has these LoRAs in it: one of its own may have been built for other sizes."""
        mix = self._engines.mix(STEP, loras)
        step = self._engines.artefact(STEP, mix)
        command = build_command(self._store.root, *step.identity[1:]).replace(ANY_LORA, mix.options)
        command_or_none = None if step.target == "onnx" else command
        return Limits.of(step, self.backend.batch_pixels, self._max_batch, command_or_none)

    def together(self, resolved: Resolved) -> int:
        """How many pictures like those of this request, at least one, share a call of the network."""
        limits = self._limits_with(resolved.loras)
        return max(1, min(limits.batch, limits.pixels // resolved.pixels, limits.rows // len(resolved.texts)))

    @property
    def clip_skips(self) -> list[int]:
        """Those that the store has engines for."""
        there = {each.role.layers for each in self._store.manifest().artefacts if each.target == self.backend.target}
        return [skip for skip, layers in enumerate(self.model.kept, 1) if layers in there]

    def loras(self) -> dict[str, Mapping[str, str]]:
        """The LoRAs that requests may call, by name, and what each file says of itself; folders are read anew."""
        return self._loras.told()

    @property
    def embeddings(self) -> Inversions:
        """The textual inversions that prompts may call."""
        return self._inversions

    def encode(self, picture: Array) -> tuple[Array, Array]:
        """Mean and standard deviation, [4,h,w] each, of the latents of a picture, uint8 [8h,8w,3]."""
        return self._vae.encode(picture)

    def evaluate(self, requests: Sequence[Request], latents: Array, table: Sequence[Row]) -> list[Array]:
        """What the rows of a sampler's table make of latents [4,h,w] for the prompts of each request."""
        resolved = [self.check(request) for request in requests]
        rows, noise = self._text.rows(resolved), SOURCES["cpu"](0)
        making = []
        for own, each in zip(rows, resolved, strict=True):
            inputs = {**NOT_MASKED, "rescale": 0.0, **self._passes.inputs(each.passes[0], None)}
            image = Image(table, own, latents, noise, each.chunks, inputs, mix=PLAIN)
            making.append(Making(image, [], len(table)))
        for _ in self._moves(making):
            pass
        return [each.image.latents for each in making]

    def close(self) -> None:
        """Close the engines. May be called twice; a closed pipeline refuses further requests."""
        if "scheduler" in vars(self):
            self.scheduler.close()
        self._engines.close()

    def __reduce__(self) -> tuple[Callable[..., Pipeline], tuple[object, ...]]:
        return _reopened, (self.reopen, self.model.model_sha256)

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def previews(self, images: Sequence[Image], done: int) -> list[PIL.Image.Image]:
        """What call `done` took for the finished pictures of these images, decoded."""
        decoder = "vae"
        with suppress(EngineMissing):  # previews are looked at and thrown away
            self._engines.artefact(DECODERS["tiny"])
            decoder = "tiny"
        latents = self.driver.latents(images)
        return self._vae.decode(latents, f"the latents after call {done}", [decoder] * len(images))

    def _result(
        self,
        resolved: Resolved,
        ledger: Ledger | None,
        making: Sequence[Making],
        finished: Sequence[PIL.Image.Image],
        clock: _Clock,
    ) -> Result:
        learnt = self._inversions
        inversions = learnt.used(resolved.texts, self._tokenizer.vocabulary) if learnt.digests else {}
        digests = resolved.source.digests if resolved.source else {}
        loras = {each.lora.name: each.lora for each in resolved.loras}
        repeated = ledger.notes(self.model, self._inversions, inversions, loras) if ledger else []
        repeated += ledger.about_pictures(digests) if ledger else []
        texts = {Role("text", layers) for layers in resolved.depths}
        mixes = {role: self._engines.mix(role, resolved.loras) for role in {STEP, *texts}}
        in_pixels = len(resolved.passes) > 1 and resolved.request.hires_upscaler not in enlarge.LATENT
        encodes = resolved.source or in_pixels or self._passes.takes("inpaint_latents")
        others = {DECODERS[resolved.request.decoder], *[ENCODE] * bool(encodes), *[DECODE] * in_pixels}
        used = [self._engines.artefact(role, mixes.get(role, PLAIN)) for role in sorted({*others, *mixes})]
        depths = learnt.about_depths(resolved.texts, self.model)
        stretched = [SHARED_LENGTHS] if any(each.stretched for each in making) else []
        tiled = [TILES] if any(self._vae.tiled(*each.image.latents.shape[1:]) for each in making) else []
        return Result(
            images=tuple(finished),
            seeds=tuple(seed for seed, _ in resolved.seeds),
            request=resolved.request,
            warnings=(*repeated, *resolved.notes, *depths, *learnt.notes, *self._engines.notes, *stretched, *tiled),
            timings=clock.seconds,
            engines={artefact.identity.stem: artefact.key for artefact in used},
            model=self.model,
            inversions=inversions,
            loras={name: lora.sha256 for name, lora in loras.items()},
            lora_hashes={name: a1111_hash(lora) for name, lora in loras.items()},
            pictures=digests,
            ledger=ledger,
        )


@dataclass(frozen=True)
class Work:
    """The pictures of several requests in the making, a group for each."""

    resolved: Sequence[Resolved]
    ledgers: Sequence[Ledger | None]
    groups: Sequence[Sequence[Making]]
    clock: _Clock

    @property
    def making(self) -> list[Making]:
        return [each for group in self.groups for each in group]

    @property
    def calls(self) -> int:
        """How many calls all of them take."""
        return sum(each.calls for each in self.making)

    @property
    def done(self) -> int:
        """How many calls they had."""
        return sum(each.past + each.image.call for each in self.making)


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
