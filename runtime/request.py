"""What a user asks for, and the table of its fields that every front end is made from. Knows nothing of models."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from clipskip.engines import strict

from .errors import ManifestError, RequestError
from .fields import PICTURE, Field, did_you_mean, shown

if TYPE_CHECKING:
    import os

    import numpy as np
    import numpy.typing as npt
    import PIL.Image

    Picture = str | os.PathLike[str] | PIL.Image.Image | npt.NDArray[np.uint8]

LARGEST = 64 << 20  # bytes of a request in JSON, which may hold two photos
RECALLED = "sha256:"  # before the digest of a picture of which metadata have no more
NO_PATHS = "data:", RECALLED
LINE = re.compile(r"\s*/render", re.IGNORECASE)  # how a prompt begins that front ends read, before it comes to a model
UPSCALERS = (
    "Latent", "Latent (antialiased)", "Latent (bicubic)", "Latent (bicubic antialiased)", "Latent (nearest)",
    "Latent (nearest-exact)", "Lanczos", "Nearest",
)  # fmt: skip
EMPHASES = ("Original", "No norm", "Ignore", "None")


def setting(default: Any, help: str, *aliases: str, **row: Any) -> Any:
    """A field of Request, with what else its row in FIELDS says (see `fields.Field`)."""
    return dataclasses.field(default=default, metadata={"help": help, "aliases": aliases, **row})


@dataclass(frozen=True, kw_only=True)
class Request:
    """One picture, or `batch` pictures that differ only in their seed. Conventions are AUTOMATIC1111's (1.10).

    None means the default, for every field but the prompt. Beside what each row says: prompts have up to 64 KiB each,
    in the grammar of `clipskip.prompt`; the negative is without AND, and not used at a cfg of 1 (unless AND needs it),
    as the prompt is not at 0. A fraction of a clip skip counts as the whole number below it; the default is the model's
    recommended one; "[9:1:0.4]" changes it over the steps, as prompt editing changes words. Image i of a batch has seed
    + i, or subseed + i where subseed_strength is above 0. Names of samplers and schedules are matched without case,
    spaces and punctuation; "DPM++ 2M Karras" names both, and those of k-diffusion, ComfyUI and diffusers are known.
    DDIM, PLMS and UniPC take at most as many steps as the model was trained on. What a sampler or schedule does not
    take (eta to sigmas) is left out, with a note. Sizes are multiples of 8 (of 64 in stores made before) that the
    engines were built for. `check_types` checks types, `resolve` ranges.
    """

    prompt: str
    negative_prompt: str = setting("", "what the picture should not show", "negative", "neg", option="--negative")
    clip_skip: int | float | str | None = setting(
        None, "1 is no skip, 2 the penultimate layer, 13 leaves only the embeddings; [9:1:0.4] is 9, then 1",
        "clipskip", infotext="Clip skip",
    )  # fmt: skip
    clip_skip_diffusers: int | float | None = setting(None, "the same in the numbering of diffusers (one less)")
    negative_clip_skip: int | float | str | None = setting(
        None, "another depth for the negative prompt (default: the same)", "neg_clip_skip",
        infotext="Negative clip skip",
    )  # fmt: skip
    seed: int | None = setting(None, "0..2^64-1; -1 draws one (the default)", infotext="Seed")
    subseed: int | None = setting(
        None, "the seed that a variation goes towards", "variation_seed", infotext="Variation seed"
    )
    subseed_strength: float = setting(
        0.0, "how far it goes, 0..1", "variation_strength", low=0, high=1, infotext="Variation seed strength"
    )
    eta_noise_seed_delta: int = setting(
        0, "added to the seed for the noise of the steps, not for the first noise", "ensd", infotext="ENSD"
    )
    steps: int = setting(20, "default 20", "num_inference_steps", low=1, high=10_000, infotext="Steps")
    cfg: float = setting(
        7.0, "guidance, default 7", "guidance", "guidance_scale", "cfg_scale", low=0, high=100, infotext="CFG scale"
    )
    cfg_rescale: float = setting(
        0.0,
        "how far guidance keeps the contrast of the prompt's own answer, 0..1 (default 0; about 0.7 where cfg burns)",
        "guidance_rescale", "cfg_rescale_phi", low=0, high=1, infotext="CFG rescale",
    )  # fmt: skip
    sampler: str = setting("DPM++ 2M", 'default "DPM++ 2M"', "sampler_name", "sampling_method")
    schedule: str = setting("automatic", "automatic, or one of `clipskip schedules`", "scheduler")
    eta: float | None = setting(
        None, "how much fresh noise a step has (default: 1, DDIM 0)", "eta_ddim", low=0, high=1, infotext="Eta"
    )
    s_churn: float | None = setting(None, "noise before each step, in all", low=0, high=100, infotext="Sigma churn")
    s_tmin: float | None = setting(None, "least level of that noise", low=0, high=1000, infotext="Sigma tmin")
    s_tmax: float | None = setting(None, "most; 0: no limit", low=0, high=1000, infotext="Sigma tmax")
    s_noise: float | None = setting(None, "what noise is multiplied with", low=0, high=2, infotext="Sigma noise")
    rho: float | None = setting(
        None, "of karras (default 7) and polyexponential (1)", low=0.1, high=100, infotext="Schedule rho"
    )
    sigma_min: float | None = setting(
        None, "the schedule's last level", low=0.0001, high=10_000, infotext="Schedule min sigma"
    )
    sigma_max: float | None = setting(
        None, "the schedule's first level", low=0.0001, high=10_000, infotext="Schedule max sigma"
    )
    sigmas: tuple[float, ...] | None = setting(
        None, "the levels themselves, as 14.6,7,2.5,0.6: falling, a step each", infotext="Sigmas"
    )
    loras: tuple[str, ...] | None = setting(
        None, "LoRAs as in a tag: name:0.8,other:1:0.5 (text:unet)", "lora", option="--lora"
    )
    width: int | None = setting(None, "in pixels (default: the model's)")
    height: int | None = setting(None, "in pixels (default: the model's)")
    image: Picture | None = setting(None, "a file: the picture that it is made from", "init_img", "init_image")  # noqa: RUF009
    strength: float | None = setting(
        None, "how much of it is made anew, 0..1 (default 0.75; of hires 0.7)", "denoising_strength", low=0, high=1,
        infotext="Denoising strength",
    )  # fmt: skip
    exact_steps: bool = setting(
        False, "true: make all of the steps at any strength, not that part of them", "img2img_fix_steps",
        infotext="Exact steps",
    )  # fmt: skip
    resize_mode: str = setting(
        "Just resize",
        "Just resize, Crop and resize, Resize and fill, or Just resize (latent upscale)",
        choices=("Just resize", "Crop and resize", "Resize and fill", "Just resize (latent upscale)"),
        infotext="Resize mode",
    )
    mask: Picture | None = setting(None, "a picture as large as image, white where it is painted anew", "mask_image")  # noqa: RUF009
    mask_blur: int = setting(4, "softens its edge, in pixels, default 4", low=0, high=64, infotext="Mask blur")
    mask_invert: bool = setting(False, "true: paint where it is black", "inpainting_mask_invert", infotext="Mask mode")
    fill: str = setting(
        "original", "what painting starts from: original, fill (colours around), latent noise, latent nothing",
        "inpainting_fill", "masked_content", choices=("original", "fill", "latent noise", "latent nothing"),
        infotext="Masked content",
    )  # fmt: skip
    inpaint_area: str = setting(
        "Whole picture", "Whole picture; Only masked: at the size of the request, and laid back",
        choices=("Whole picture", "Only masked"), infotext="Inpaint area",
    )  # fmt: skip
    mask_padding: int = setting(
        32, "pixels around it that are seen with Only masked", "inpaint_full_res_padding", low=0, high=256,
        infotext="Masked area padding",
    )  # fmt: skip
    hires_scale: float | None = setting(
        None, "enlarge what is made so many times, and go on", "hr_scale", low=1, high=8, infotext="Hires upscale",
    )  # fmt: skip
    hires_size: str | None = setting(None, "or to this size, such as 1024x1536", infotext="Hires resize")
    hires_steps: int = setting(
        0, "steps after that; 0: as before", "hr_second_pass_steps", low=0, high=10_000, infotext="Hires steps"
    )
    hires_upscaler: str = setting(
        "Latent", "how it is enlarged", "hr_upscaler", choices=UPSCALERS, infotext="Hires upscaler"
    )
    batch: int = setting(
        1, "number of pictures, each with the next seed", "batch_size", "batch_count", "n_iter", low=1, high=100
    )
    rng: str = setting("cpu", "cpu or nv: whose random numbers", choices=("cpu", "nv"))
    emphasis: str = setting("Original", "Original, No norm, Ignore or None", choices=EMPHASES, infotext="Emphasis")
    comma_backtrack: int = setting(
        20, "tokens to look back for a comma when a chunk is full", low=0, high=74, infotext="Comma backtrack"
    )
    decoder: str = setting(
        "vae", "vae, or tiny: TAESD's fast one, where the store has it", "vae_decoder", choices=("vae", "tiny"),
        infotext="VAE Decoder",
    )  # fmt: skip
    compat: str | None = setting(
        None, "a1111: read `text:2` as a weight without AND, too", choices=("a1111",), infotext="Compat"
    )
    pad_cond_uncond: bool = setting(
        False, "true: fill up the shorter prompt with empty chunks, not with repeats of itself", infotext="Pad conds"
    )

    @classmethod
    def from_json(cls, source: str | bytes | Mapping[str, Any], base: Mapping[str, str] | None = None) -> Request:
        """A request from JSON text of up to 64 MiB or a parsed object; fields may have any of their names.

        What it does not say is as typed in `base`, or has its default. RequestError for another, strange fields and
        wrong types.
        """
        if not isinstance(source, (str, bytes, Mapping)):
            raise RequestError(f"a request in JSON must be text or an object, not {shown(source)}")
        try:
            text = source.encode("utf-8", "surrogatepass") if isinstance(source, str) else source
            given = text if isinstance(text, Mapping) else strict.parse(text, LARGEST, strict.LARGEST)
        except ManifestError as error:
            raise RequestError(f"the request is not a JSON object: {error.message[:200]}", field=error.field) from error
        if not isinstance(given, Mapping):
            raise RequestError(f"the request must be a JSON object, not {shown(given)}")
        return cls._of({**_read(base or {}), **without_paths(canonical(given))})

    @classmethod
    def _of(cls, fields: Mapping[str, Any]) -> Request:
        if "prompt" not in fields:
            raise RequestError("the field 'prompt' is missing", field="prompt")
        return check_types(cls(**fields))

    @classmethod
    def from_text(cls, given: Mapping[str, str], base: Request | None = None) -> Request:
        """A request from fields whose values were typed, as on a command line: numbers are plain ASCII decimals.

        What is not given is as in `base` (see `over`), or has its default.
        """
        return cls._of(_read(given)) if base is None else check_types(base.over(_read(given)))

    def over(self, fields: Mapping[str, Any]) -> Request:
        """This request with other values for some fields, under any of their names.

        A new clip skip takes the place of the old one in either numbering, and of a negative prompt's that followed it.
        """
        fields, base = canonical(fields), self
        if {"clip_skip", "clip_skip_diffusers"} & fields.keys():
            negative = None if self.negative_clip_skip == self.clip_skip else self.negative_clip_skip
            base = replace(self, clip_skip=None, clip_skip_diffusers=None, negative_clip_skip=negative)
        return replace(base, **fields)

    def to_json(self) -> str:
        """The request as a JSON object in ASCII, every field included; `from_json` reads it back.

        Pictures are in it as data URLs. CheckpointError, StorageError: one cannot be read; RequestError: above 64 MiB.
        """
        if len(text := json.dumps(asdict(without_files(self)))) > LARGEST:
            message = f"the request has {len(text)} bytes with its pictures; JSON takes {LARGEST}"
            raise RequestError(message, field="image", hint="save them smaller, as JPEG or WEBP")
        return text


OWN = ("eta", "s_churn", "s_tmin", "s_tmax", "s_noise", "rho", "sigma_min", "sigma_max")  # to samplers, schedules
FIELDS = {field.name: Field.of(field) for field in dataclasses.fields(Request)}
PICTURES = [field.name for field in FIELDS.values() if field.kind is PICTURE]
ALIASES = {alias: field.name for field in FIELDS.values() for alias in field.aliases}


def _read(typed: Mapping[str, str]) -> dict[str, Any]:
    return {name: FIELDS[name].kind.read(value) for name, value in canonical(typed).items()}


def changed(request: Request) -> dict[str, Any]:
    """The fields that have not their default."""
    return {name: value for name, field in FIELDS.items() if (value := getattr(request, name)) != field.default}


def check_types(request: Request) -> Request:
    """The request with plain Python numbers, and with the default for every None; RequestError for a wrong type."""
    return replace(request, **{name: field.check(getattr(request, name)) for name, field in FIELDS.items()})


def without_files(request: Request) -> Request:
    """The checked request with its pictures as data URLs. CheckpointError or StorageError for an unreadable file."""
    request, urls = check_types(request), dict[str, Any]()
    for name in PICTURES:
        if (value := getattr(request, name)) and not value.startswith(NO_PATHS):
            from .pictures import data_url

            urls[name] = data_url(value)
    return replace(request, **urls)


def without_paths(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields that came from elsewhere; RequestError for a path in them, for it would be read here."""
    for name in PICTURES:
        if isinstance(value := fields.get(name), str) and not value.startswith(NO_PATHS):
            message = f"{name} must be a data URL here (data:image/png;base64,...), not {shown(value)}"
            raise RequestError(message, field=name, hint="files are taken from Python and from options such as --image")
    return fields


def canonical(given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` by field of Request, aliases replaced. RequestError for a name that is none, and for one field twice."""
    fields: dict[str, Any] = {}
    for name, value in given.items():
        field = ALIASES.get(name, name)
        if field not in FIELDS:
            raise unknown_field(str(name))
        if field in fields:
            raise given_twice(field)
        fields[field] = value
    return fields


def check_names(given: Iterable[str], *others: str) -> None:
    """RequestError for a name that is neither a field's nor one of `others`."""
    for name in [each for each in given if each not in (*FIELDS, *ALIASES, *others)]:
        raise unknown_field(name, *others)


def given_twice(field: str) -> RequestError:
    """The RequestError for a field that has two values, also where two of its names were used."""
    return RequestError(f"{field} is given twice", field=field, hint="leave one of them out")


def unknown_field(name: str, *others: str) -> RequestError:
    """The RequestError for a field that Request does not have, with the closest one, also of `others`, as the hint."""
    return unknown("field", name, {field: field for field in (*FIELDS, *others)}, ALIASES)


def unknown(kind: str, name: str, known: Mapping[str, str], aliases: Mapping[str, str] | None = None) -> RequestError:
    """The RequestError for a name that is not among `known`; the closest one's value is the hint, if there is one."""
    every = {**known, **(aliases or {})}
    hint = did_you_mean(name.lower(), every, 0.75) or f"known: {', '.join(dict.fromkeys(known.values()))}"
    return RequestError(f"unknown {kind} {shown(name)}", field=name, hint=hint)
