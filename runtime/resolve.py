"""From a request to what will be run: the one place that refuses one. Knows nothing of how engines run."""

from __future__ import annotations

import math
import re
import secrets
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from clipskip.engines.manifest import Artefact, AxisRange, ModelFacts
from clipskip.engines.shapes import LATENT, TOKENS
from clipskip.engines.variants import Active

from . import loras, pictures
from .errors import RequestError
from .fields import SD1_LAYERS, shown
from .img2img import Pass, steps_at
from .inversions import Inversions
from .noise import LARGEST_SEED, image_seeds
from .prompt import check_text, networks, parts
from .prompt.parts import Depths, Guidance, Text
from .request import FIELDS, OWN, PICTURES, RECALLED, Request, check_types
from .samplers import Sampler, choice, sampler_named, schedule_named, split_schedule
from .schedules import SCHEDULES, NoiseModel, settings
from .tokenizer import Tokenizer

MAX_PIXELS = 2048 * 2048
MOST_LEVELS, LEAST_LEVEL, LARGEST_LEVEL = 10_000, 0.0001, 10_000  # of noise, listed in a request
DEEP_CLIP_SKIPS = ((2, "pictures tend to look like those of a low guidance"), (5, "results are erratic"))
NO_EFFECT = "clip skip has no effect on this model: its text encoder always gives the same layer"
BURNT = 2  # the guidance above which CFG++, whose own range is 0 to 1, leaves no picture
UNBOUNDED = AxisRange(1, 1, 2**31 - 1)

MOST_STEPS = 10_000  # of a schedule
OF_IMAGE, OF_MASK = ("exact_steps", "resize_mode"), ("mask_blur", "mask_invert", "fill", "inpaint_area", "mask_padding")
OF_HIRES = ("hires_steps", "hires_upscaler")

CLOSEST_CHOICES = {**dict.fromkeys(("gpu", "cuda", "nvidia", "philox"), "nv"), "taesd": "tiny", "full": "vae"}
CLOSEST_CHOICES |= {"whole": "Whole picture", "masked": "Only masked", "none": "Lanczos"}
CLOSEST_CHOICES |= {"crop": "Crop and resize", "latent": "Just resize (latent upscale)"}
_SIDES = re.compile(r"([0-9]{1,5})x([0-9]{1,5})", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Limits:
    """What one call of the step engine takes. Heights and widths are latents, `rows` those of the U-Net's batch."""

    height: AxisRange
    width: AxisRange
    batch: int
    pixels: int
    rows: int
    chunks: int
    build_command: str | None  # None: the graphs are exported without a choice of shapes

    @classmethod
    def of(cls, step: Artefact, batch_pixels: int, max_batch: int | None, build_command: str | None) -> Limits:
        """The limits of a step artefact, its backend, and the caller's wish for at most `max_batch` images at once."""
        h, w, images, rows, tokens = (step.axes.get(axis, UNBOUNDED) for axis in ("h", "w", "B", "N", "T"))
        batch = min(max_batch or images.maximum, images.maximum)
        return cls(h, w, batch, batch_pixels, rows.maximum, tokens.maximum // TOKENS, build_command)

    def rebuild(self, option: str) -> str | None:
        """The command that builds engines which take more."""
        return None if self.build_command is None else f"{self.build_command} {option}"

    def check_texts(self, texts: tuple[Text, ...]) -> None:
        """Refuse a prompt of more parts (AND, and the negative) or more chunks than the engines take."""
        if len(texts) > self.rows:
            message = f"the prompt has {len(texts)} parts with its negative; the engines take {self.rows}"
            raise RequestError(message, field="prompt", hint=self.rebuild(f"--max-batch {-(-len(texts) // 2)}"))
        longest = max(text.length for text in texts)
        if longest > self.chunks:
            message = f"the prompt needs {longest} chunks of 75 tokens; the engines take {self.chunks}"
            raise RequestError(message, field="prompt", hint=self.rebuild(f"--max-chunks {longest}") or "shorten it")


ANY_MODEL = ModelFacts(  # of Stable Diffusion 1; where there is none
    "", "sd1", SD1_LAYERS, 768, 49408, "epsilon", 0.00085, 0.012, 1000, 0.18215, 512, LATENT, 1, "", {}
)
ANY_LIMITS = Limits(UNBOUNDED, UNBOUNDED, 1, MAX_PIXELS, 2, 1, None)


@dataclass(frozen=True)
class Resolved:
    """A request without open questions; `request` has every None filled in, for metadata and repeats."""

    request: Request
    seeds: tuple[tuple[int, int | None], ...]  # seed and subseed of each image
    sampler: Sampler
    schedule: str
    passes: tuple[Pass, ...]  # the second one enlarges what the first one made
    source: pictures.Source | None
    texts: tuple[Text, ...]
    chunks: int  # of every U-Net row's context: each text is repeated up to it
    notes: tuple[str, ...]
    loras: tuple[Active, ...] = ()  # those that the pipeline found for the request

    @property
    def width(self) -> int:
        return self.passes[0].width

    @property
    def height(self) -> int:
        return self.passes[0].height

    @property
    def pixels(self) -> int:
        """The most that are worked at."""
        return max(run.pixels for run in self.passes)

    @property
    def calls(self) -> int:
        """About how many evaluations of the network a picture takes."""
        return sum(run.made for run in self.passes) * self.sampler.calls_per_step

    @property
    def depths(self) -> set[int]:
        """How many layers of the text encoder its chunks are encoded with."""
        return {layers for text in self.texts for variant in text.encoded() for layers, _ in variant}


def resolve(
    request: Request, model: ModelFacts, limits: Limits, tokenizer: Tokenizer, inversions: Inversions
) -> Resolved:
    """Check every field, fill in every default, parse the prompts. RequestError names the field and what is valid."""
    typed = check_types(request)
    request = _checked(typed)
    request, sampler, unused = _sampler_and_schedule(request, noise_model(model))
    evaluations = request.steps * sampler.calls_per_step
    request, skips, notes = _clip_skips(request, model, evaluations)
    request, idle = _pictures(request)
    image, mask = (None if value is None else pictures.opened(name, value) for name, value in _given(request).items())
    request, fitted = _fitted(request, image, model)
    notes += [*parts.notes(typed, request), *unused, *idle, *fitted]
    width, height = _size(request, model, limits)
    request = replace(request, width=width, height=height)
    passes = _passes(request, (width, height), sampler, model, limits)
    if image is not None and request.resize_mode not in pictures.RESIZE:  # its latents are resized
        width, height = max(image.width // LATENT, 1) * LATENT, max(image.height // LATENT, 1) * LATENT
        whose = f"{request.resize_mode}, unlike the other modes, encodes image at its own size"
        _check_size((width, height), replace(model, size_step=LATENT), limits, "resize_mode", whose)
    source = None if image is None else pictures.prepared(image, mask, request, (width, height))
    request = drawn(request)
    assert request.seed is not None
    seeds = tuple(image_seeds(request.seed, request.subseed, request.subseed_strength, request.batch))
    spans = tuple(inversions.spans.items())
    request, guidance, idle = _guidance(request, sampler)
    texts = parts.parse(request, guidance, skips, model.kept, evaluations, (tokenizer, spans))
    limits.check_texts(texts)
    notes += [*parts.unused(request, guidance), *idle]
    if request.pad_cond_uncond:
        texts = parts.padded(texts, tokenizer)
    texts, padding = parts.joined(texts, limits.chunks, tokenizer)
    chunks, notes = math.lcm(*(text.length for text in texts)), notes + padding
    return Resolved(request, seeds, sampler, request.schedule, passes, source, texts, chunks, tuple(notes))


def noise_model(model: ModelFacts) -> NoiseModel:
    """The noise that the model was trained on."""
    return NoiseModel(model.beta_start, model.beta_end, model.train_steps, model.prediction, model.zero_snr)


def refusals(request: Request) -> dict[str, RequestError]:
    """What `resolve` refuses of a request whatever the model, by field: each as if it were the only one."""
    found: dict[str, RequestError] = {}
    while True:
        try:
            checked = _checked(check_types(request))
            _sampler_and_schedule(checked, NoiseModel())
            _clip_skips(checked, ANY_MODEL, checked.steps)
            checked, _ = _pictures(checked)
            _size(checked, ANY_MODEL, ANY_LIMITS)
            return found
        except RequestError as error:
            if (field := str(error.field)) in found:
                return found
            found[field] = error
            request = request.over({field: "" if field == "prompt" else FIELDS[field].default})


def _checked(request: Request) -> Request:
    """The request with its prompts, ranges and choices checked, and choices as they are spelled."""
    choices: dict[str, Any] = {}
    for name in ("prompt", "negative_prompt"):
        choices[name] = parts.without_comments(check_text(getattr(request, name), name))
    for kind, arguments in networks(choices["prompt"])[1]:
        if kind.lower() == "hypernet":  # without it, it would be another picture
            message = f"the prompt asks for <{kind}:{arguments}>, and hypernetworks are not supported"
            raise RequestError(message, field="prompt", hint="take it out of the prompt")
    loras.called(replace(request, prompt=choices["prompt"]))
    for name, field in FIELDS.items():
        value = getattr(request, name)
        if field.low is not None and field.high is not None and value is not None:
            if not field.low <= value <= field.high:
                typed = shown(value) if isinstance(value, int) else f"{value:.15g}"
                raise RequestError(f"{name} must be {field.low:g}..{field.high:g}, not {typed}", field=name)
        elif field.choices and value is not None:
            choices[name] = choice(name, value, field.choices, closest=CLOSEST_CHOICES)
        elif name in ("seed", "subseed") and value is not None and not -1 <= value <= LARGEST_SEED:
            raise RequestError(f"{name} must be 0..2^64-1, or -1 for a random one, not {value}", field=name)
    if abs(request.eta_noise_seed_delta) > LARGEST_SEED:
        message = f"eta_noise_seed_delta must be within 2^64-1 of 0, not {request.eta_noise_seed_delta}"
        raise RequestError(message, field="eta_noise_seed_delta")
    return replace(request, **choices)


def _clip_skips(
    request: Request, model: ModelFacts, evaluations: int
) -> tuple[Request, tuple[Depths, Depths], list[str]]:
    """The request with its clip skips counted from 1; the prompt's and the negative's over the evaluations; notes."""
    if request.clip_skip is not None and request.clip_skip_diffusers is not None:
        message = "clip_skip and clip_skip_diffusers are two numberings of one setting: give one of them"
        raise RequestError(message, field="clip_skip_diffusers", hint="clip_skip is clip_skip_diffusers + 1")
    names = ("clip_skip", "clip_skip_diffusers", "negative_clip_skip")
    given = {name: value for name in names if (value := getattr(request, name)) is not None}
    most = len(model.kept) - 1
    named = {name: parts.numbers(name, value, most) for name, value in given.items()}
    depths = {name: parts.depths(name, value, evaluations, most) for name, value in given.items()}
    own = depths.get("clip_skip", depths.get("clip_skip_diffusers", ((evaluations, model.recommended_clip_skip),)))
    negative = depths.get("negative_clip_skip", own)
    skip = request.clip_skip if isinstance(request.clip_skip, str) else own[0][1]
    negative_skip = request.negative_clip_skip if isinstance(request.negative_clip_skip, str) else negative[0][1]
    if "negative_clip_skip" not in given:
        negative_skip = skip
    notes = [
        f"{name} {value} counts as {math.floor(value)}: only whole numbers change the picture"
        for name, values in named.items()
        for value in values
        if value != math.floor(value)
    ]
    request = replace(request, clip_skip=skip, clip_skip_diffusers=None, negative_clip_skip=negative_skip)
    if len({*model.kept}) == 1:
        asked = given or parts.tagged(request.prompt, most)
        return request, (own, negative), [*notes, *[NO_EFFECT] * bool(asked)]
    used = {"clip_skip": {each for _, each in own} | {*parts.tagged(request.prompt, most).values()}}
    if (recommended := model.recommended_clip_skip) > 1:  # 1 is nobody's recommendation
        if not given.keys() & {"clip_skip", "clip_skip_diffusers"}:
            notes.append(f"no clip_skip was given: {skip} is used, which the model recommends")
        elif used["clip_skip"] != {recommended}:
            notes.append(f"clip_skip {skip}: the model recommends {recommended}; depths suit models trained with them")
    elif any(model.kept[each - 1] != model.kept[0] for each in used["clip_skip"] | {each for _, each in negative}):
        if (suggested := model.suggested_clip_skip) is None:
            notes.append(f"clip_skip above 1: only for models trained with it, and nothing says so of {model.name}")
        elif used["clip_skip"] != {suggested}:
            notes.append(f"clip_skip {skip}: the model's file suggests {suggested}; only for models trained with it")
    elif (suggested := model.suggested_clip_skip or 1) > 1:
        notes.append(f"clip_skip {skip} is used; the model's file suggests {suggested}")
    used |= {"negative_clip_skip": {each for _, each in negative}} if skip != negative_skip else {}
    for name, value in [(name, value) for name, values in used.items() for value in sorted(values)]:
        notes += [f"{name} {value}: above {limit} {what}" for limit, what in DEEP_CLIP_SKIPS if value > limit]
    return request, (own, negative), notes


def _sampler_and_schedule(request: Request, noise: NoiseModel) -> tuple[Request, Sampler, list[str]]:
    """The request with its schedule by name and nothing that has no effect; its sampler; and what the result says.

    A sampler's name may end in its schedule's, as in "DPM++ 2M Karras"; an explicit schedule must agree with it.
    """
    name, suffix = split_schedule(request.sampler)
    sampler, schedule = sampler_named(name), schedule_named(request.schedule)
    suffix = schedule_named(suffix or "automatic")
    if schedule not in (suffix, "automatic") and suffix != "automatic":
        message = f"sampler {request.sampler!r} names the schedule {suffix}, and schedule says {schedule}"
        raise RequestError(message, field="schedule", hint="give one of them")
    schedule = suffix if schedule == "automatic" else schedule
    request = replace(request, sampler=sampler.name, schedule=schedule)
    request, notes = _levels(request, sampler, noise)
    unused = [name for name in OWN if getattr(request, name) is not None and name not in _taken(request, sampler)]
    notes += [f"{name} is not used by {sampler.name} with schedule {request.schedule}" for name in unused]
    dropped: dict[str, Any] = dict.fromkeys(unused)
    return replace(request, **dropped), sampler, notes


def _taken(request: Request, sampler: Sampler) -> tuple[str, ...]:
    own = sampler.levels is not None or request.sigmas is not None
    return sampler.settings if own else (*sampler.settings, *settings(SCHEDULES[request.schedule]))


def _guidance(request: Request, sampler: Sampler) -> tuple[Request, Guidance, list[str]]:
    """The request without a rescaling that has no effect; how its texts are weighted; and what the result says."""
    guidance = Guidance(request.cfg * sampler.cfg_unit, "negative" if sampler.unguided else "")
    notes = [f"cfg_rescale is not used by {sampler.name}"] * bool(request.cfg_rescale)
    if sampler.unguided:
        if guidance.cfg > BURNT:
            made_for = f"0 to {1 / sampler.cfg_unit:g}"
            notes.append(f"cfg {request.cfg:g} is high for {sampler.name}, which is made for {made_for}")
        return replace(request, cfg_rescale=0.0), guidance, notes
    if not request.cfg_rescale:
        return request, guidance, []
    rescaled = Guidance(request.cfg, "prompt")
    _, weights, reference = zip(*parts.mix(request, rescaled), strict=True)
    if any(reference) and request.cfg and weights != reference:
        return request, rescaled, []
    note = f"cfg_rescale is not used at cfg {request.cfg:g}: the guided answer is one prompt's alone"
    return replace(request, cfg_rescale=0.0), guidance, [note]


def _levels(request: Request, sampler: Sampler, noise: NoiseModel) -> tuple[Request, list[str]]:
    """The request with what says its noise levels checked, and only that; and what the result says."""
    given = request.schedule if request.schedule not in ("automatic", sampler.automatic) else None
    schedule = given or sampler.automatic
    if sampler.levels is None:
        own = sampler.noise_model(**asdict(noise))
        low, high = request.sigma_min or own.sigma_min, request.sigma_max or own.sigma_max
        if request.sigmas is None:
            if low >= high and "sigma_min" in settings(SCHEDULES[schedule]):
                field = "sigma_max" if request.sigma_min is None else "sigma_min"
                raise RequestError(f"sigma_min {low:.6g} must be below sigma_max {high:.6g}", field=field)
            return replace(request, schedule=schedule), []
        levels = _falling(request.sigmas)
        asked = request.steps not in (FIELDS["steps"].default, len(levels))
        ignored = [f"schedule {given}"] * bool(given) + [f"steps {request.steps}"] * asked
        notes = [f"sigmas has the noise levels of {len(levels)} steps: {each} is not used" for each in ignored]
        return replace(request, schedule=sampler.automatic, sigmas=levels, steps=len(levels)), notes
    most = noise.steps if sampler.unit else request.steps
    least = 1 if len(sampler.levels(1, noise)) > 1 else 2
    if not least <= request.steps <= most:
        message = f"steps must be {least}..{most} for {sampler.name}, not {request.steps}"
        raise RequestError(message, field="steps")
    unused = [f"schedule {given}"] * bool(given) + ["sigmas"] * bool(request.sigmas)
    notes = [f"{sampler.name} has timesteps of its own: {each} is not used" for each in unused]
    return replace(request, schedule=sampler.automatic, sigmas=None), notes


def _falling(sigmas: tuple[float, ...]) -> tuple[float, ...]:
    """The noise levels that a request lists, without a last 0. RequestError for what no sampler can visit."""
    levels = sigmas[:-1] if sigmas and sigmas[-1] == 0 else sigmas
    falling = all(high > low for high, low in pairwise(levels))
    if not (falling and 1 <= len(levels) <= MOST_LEVELS and levels[-1] >= LEAST_LEVEL and levels[0] <= LARGEST_LEVEL):
        message = f"sigmas must be 1 to {MOST_LEVELS} falling numbers, {LEAST_LEVEL} to {LARGEST_LEVEL}, not"
        raise RequestError(f"{message} {shown(sigmas)}", field="sigmas", hint="0 may follow as the last one")
    return levels


def _size(request: Request, model: ModelFacts, limits: Limits) -> tuple[int, int]:
    """Width and height in pixels, which the model and the engines must be able to make."""
    width, height = (model.default_size if side is None else side for side in (request.width, request.height))
    step, sides = model.size_step, (("width", width, limits.width), ("height", height, limits.height))
    for name, value, axis in sides:
        low, high = max(step, axis.minimum * LATENT), axis.maximum * LATENT
        if value < step or value % step:
            below = max(low, min(value // step * step, high))
            near = f"{below}" if value < low or below == high else f"{below} or {below + step}"
            raise RequestError(f"{name} must be a multiple of {step} pixels, not {value}; nearest: {near}", field=name)
    if width * height > MAX_PIXELS:
        raise RequestError(f"{width}x{height} is above the limit of {MAX_PIXELS} pixels", field="width")
    for name, value, axis in sides:
        low, high = axis.minimum * LATENT, axis.maximum * LATENT
        if not low <= value <= high:
            message = f"{name} {value} is outside {low}..{high}, which the engines were built for"
            raise RequestError(message, field=name, hint=limits.rebuild("--sizes ..."))
    return width, height


def _check_size(size: tuple[int, int], model: ModelFacts, limits: Limits, field: str, whose: str) -> None:
    """RequestError, in this field's name, for a size other than the request's that cannot be worked at."""
    try:
        _size(Request(prompt="", width=size[0], height=size[1]), model, limits)
    except RequestError as error:
        raise RequestError(f"{whose}: {error.message}", field=field, hint=error.hint) from error


def _given(request: Request) -> dict[str, str | None]:
    """The pictures of a request by field. RequestError for one of which metadata have the digest alone."""
    given = {name: getattr(request, name) for name in PICTURES}
    for name, value in given.items():
        if value is not None and value.startswith(RECALLED):
            message = f"{name} is a picture with the SHA-256 {value.removeprefix(RECALLED)[:12]}..., which is not in"
            raise RequestError(f"{message} the metadata", field=name, hint=f"give the picture itself as {name}")
    return given


def _pictures(request: Request) -> tuple[Request, list[str]]:
    """The request with its strength, and without what has no effect for want of a picture, a mask or a second pass."""
    given, hires = _given(request), request.hires_scale is not None or request.hires_size is not None
    if request.mask is not None and request.image is None:
        raise RequestError("mask says where image is painted anew, and there is no image", field="mask")
    if request.hires_scale is not None and request.hires_size is not None:
        raise RequestError("hires_scale and hires_size are one setting: give one of them", field="hires_size")
    if request.image is not None and hires:
        field = "hires_size" if request.hires_scale is None else "hires_scale"
        message = f"{field} enlarges what is made from a prompt alone, and there is an image"
        raise RequestError(message, field=field, hint="give image with a larger width and height")
    if request.mask is not None and request.resize_mode not in pictures.RESIZE:
        message = f"resize_mode {request.resize_mode!r} resizes latents, and mask needs the picture's own pixels"
        raise RequestError(message, field="resize_mode")
    reasons = {
        "without image, hires_scale or hires_size": () if given["image"] or hires else ("strength",),
        "without image": () if given["image"] else OF_IMAGE,
        "without mask": () if given["mask"] else OF_MASK,
        "without inpaint_area 'Only masked'": () if request.inpaint_area == "Only masked" else ("mask_padding",),
        "without hires_scale or hires_size": () if hires else OF_HIRES,
        "with sigmas": ("exact_steps", "hires_steps") if request.sigmas else (),
        "at strength 1, which starts from noise alone": ("fill",) if request.strength == 1 else (),
    }
    idle: dict[str, str] = {}
    for reason, names in reasons.items():
        for name in names:
            if getattr(request, name) != FIELDS[name].default:
                idle.setdefault(name, f"{name} {getattr(request, name)} is not used {reason}")
    dropped: dict[str, Any] = {name: FIELDS[name].default for name in idle}
    if request.strength is None and (given["image"] or hires):
        dropped["strength"] = 0.7 if hires else 0.75
    return replace(request, **dropped), list(idle.values())


def _fitted(request: Request, image: Any, model: ModelFacts) -> tuple[Request, list[str]]:
    """The request with the size of its picture where it says none: in proportion to a side that it does say."""
    if image is None or request.inpaint_area == "Only masked" or (request.width and request.height):
        return request, []
    scale = (request.width or 0) / image.width or (request.height or 0) / image.height or 1
    sides = [max(1, round(side * scale / model.size_step)) * model.size_step for side in image.size]
    width, height = request.width or sides[0], request.height or sides[1]
    made = f"image has {image.width}x{image.height} pixels: it is made anew at {width}x{height}"
    return replace(request, width=width, height=height), [made] if (width, height) != image.size else []


def _passes(
    request: Request, size: tuple[int, int], sampler: Sampler, model: ModelFacts, limits: Limits
) -> tuple[Pass, ...]:
    """The passes of a request, the first at this size. RequestError for a second one that is out of limits."""
    steps = request.steps
    strength = 1.0 if request.strength is None or request.image is None else request.strength
    passes = [Pass(*size, *steps_at(strength, steps, request.exact_steps), strength)]
    if (bigger := _enlarged(request, size, model.size_step)) is not None:
        assert request.strength is not None
        field = "hires_size" if request.hires_scale is None else "hires_scale"
        _check_size(bigger, model, limits, field, f"{field} enlarges")
        steps = request.hires_steps or steps
        passes.append(Pass(*bigger, *steps_at(request.strength, steps, request.sigmas is None), request.strength))
    least, most = (2, model.train_steps) if sampler.unit else (1, MOST_STEPS)
    for run in passes:
        if 0 < run.strength < 1 and not least <= run.steps <= most:
            message = f"{steps} steps at strength {run.strength:g} are the end of a schedule of {run.steps}"
            raise RequestError(f"{message}: {sampler.name} takes {least}..{most}", field="strength")
    return tuple(passes)


def _enlarged(request: Request, size: tuple[int, int], step: int) -> tuple[int, int] | None:
    """The size of the second pass; a side of 0 is in proportion to the other one."""
    if request.hires_scale is not None:
        return int(size[0] * request.hires_scale / step) * step, int(size[1] * request.hires_scale / step) * step
    if request.hires_size is None:
        return None
    if (sides := _SIDES.fullmatch(request.hires_size)) is None or not any(map(int, sides.groups())):
        message = f"hires_size must be width x height, such as 1024x1536, not {shown(request.hires_size)}"
        raise RequestError(message, field="hires_size")
    w, h = map(float, sides.groups())
    w, h = w or h * size[0] / size[1], h or w * size[1] / size[0]
    return int(w / step) * step, int(h / step) * step


def drawn(request: Request) -> Request:
    """The request with the seeds that it leaves open drawn: made again, it gives the same pictures."""
    varied = request.subseed_strength or request.subseed is not None
    names = ("seed", "subseed") if varied else ("seed",)
    seeds: dict[str, Any] = {name: random_seed() for name in names if getattr(request, name) in (None, -1)}
    return replace(request, **seeds)


def random_seed() -> int:
    """A seed below 2^32, which other programs take too."""
    return secrets.randbelow(2**32)
