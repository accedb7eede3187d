"""A request in AUTOMATIC1111's form as ours: what each field means, what is refused, and what is left out.

Names, defaults and meanings are those of its API (1.10), and of clients that send more. Knows no route.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clipskip import infotext, ledger, render
from clipskip.errors import RequestError
from clipskip.fields import FRACTION, TEXT, WHOLE, at_least, number, shown
from clipskip.request import FIELDS, Request

from .foreign import data_url

DEFAULTS: Mapping[str, Any] = {
    "prompt": "", "negative_prompt": "", "seed": -1, "subseed": -1, "subseed_strength": 0, "steps": 50,
    "cfg_scale": 7.0, "width": 512, "height": 512, "sampler_index": "Euler", "scheduler": "automatic", "batch_size": 1,
    "n_iter": 1,
}  # fmt: skip
PLAIN = ("prompt", "negative_prompt", "seed", "subseed_strength", "steps", "cfg_scale", "width", "height")
NOISE = {"eta": None, "s_churn": 0, "s_tmin": 0, "s_tmax": 0, "s_noise": 1}  # what is the same as not given
HIRES = {  # of the second pass -> the first one's: one that differs is refused
    "hr_sampler_name": "sampler_name", "hr_scheduler": "scheduler", "hr_checkpoint_name": "", "hr_prompt": "prompt",
    "hr_negative_prompt": "negative_prompt",
}  # fmt: skip
SKIP = "CLIP_stop_at_last_layers"
SETTINGS = {  # A1111's -> fields
    SKIP: "clip_skip", "eta_noise_seed_delta": "eta_noise_seed_delta", "randn_source": "rng",
    "emphasis": "emphasis", "comma_padding_backtrack": "comma_backtrack", "pad_cond_uncond": "pad_cond_uncond",
}  # fmt: skip
CHECKPOINT, AUTOMATIC = "sd_model_checkpoint", ("", "automatic", "none")
REFUSED: Mapping[str, Any] = {  # what is not supported -> what it is beside None, false, 0 and -1 when it is off
    "styles": [], "restore_faces": False, "tiling": False, "script_name": "None", "seed_resize_from_h": -1,
    "seed_resize_from_w": -1, "refiner_checkpoint": "None", "firstpass_image": "", "initial_noise_multiplier": 1.0,
    "s_min_uncond": 0.0, "disable_extra_networks": False, "controlnet_units": [],
}  # fmt: skip
UNUSED = (  # known, and of no meaning here
    "send_images", "save_images", "do_not_save_samples", "do_not_save_grid", "script_args", "force_task_id", "comments",
    "refiner_switch_at", "include_init_images", "image_cfg_scale", "mask_round", "override_settings_restore_afterwards",
)  # fmt: skip
STRENGTH = {"denoising_strength": 0.75}
SECOND: Mapping[str, Any] = {  # of the second pass of txt2img
    **STRENGTH, "hr_scale": 2, "hr_upscaler": "Latent", "hr_second_pass_steps": 0, "hr_resize_x": 0, "hr_resize_y": 0,
    "firstphase_width": 0, "firstphase_height": 0,
}  # fmt: skip
OF_IMAGE: Mapping[str, Any] = {
    **STRENGTH, "init_images": [], "resize_mode": 0, "mask": "", "mask_blur": 4, "mask_blur_x": 4, "mask_blur_y": 4,
    "inpainting_fill": 0, "inpaint_full_res": True, "inpaint_full_res_padding": 0, "inpainting_mask_invert": 0,
}  # fmt: skip
READ: Mapping[str, Any] = {  # what it is where it is not given
    **DEFAULTS, **NOISE, **dict.fromkeys(HIRES), "sampler_name": None, "clip_skip": None, "override_settings": {},
    "alwayson_scripts": {}, "infotext": "", "enable_hr": False, **SECOND,
}  # fmt: skip
KNOWN = {*READ, *REFUSED, *UNUSED, *OF_IMAGE}
FILLS = ("fill", "original", "latent noise", "latent nothing")


@dataclass(frozen=True)
class Settings:
    """Settings that were read: fields of Request, the checkpoint, and the names of those that clipskip has not."""

    fields: Mapping[str, Any]
    checkpoint: str | None
    ignored: tuple[str, ...]

    @classmethod
    def of(cls, given: object) -> Settings:
        """From `override_settings`, or the body of POST options. RequestError."""
        if not isinstance(given, Mapping):
            raise RequestError(f"settings must be an object, not {shown(given)}", field="override_settings")
        vae = given.get("sd_vae")
        if vae is not None and str(vae).lower() not in AUTOMATIC:
            raise not_here("sd_vae", "a checkpoint's own VAE is used")
        fields = {SETTINGS[name]: value for name, value in _whole(given).items() if name in SETTINGS}
        if "clip_skip" in fields:
            fields["clip_skip"] = clip_skip(SKIP, fields["clip_skip"])
        if "rng" in fields:
            fields["rng"] = str(TEXT.check("randn_source", fields["rng"])).lower().replace("gpu", "nv")
        checkpoint = given.get(CHECKPOINT)
        name = None if checkpoint is None else str(TEXT.check(CHECKPOINT, checkpoint))
        unknown = [name for name in given if name not in (*SETTINGS, CHECKPOINT, "sd_vae")]
        return cls(fields, name if name and name.lower() not in AUTOMATIC else None, tuple(unknown))


def request_of(
    given: Mapping[str, Any], overrides: Mapping[str, Any], base: Mapping[str, Any], image: bool
) -> tuple[Request, list[str]]:
    """The request, and what its user must know.

    What a `/render` line as its prompt says comes first, then its own fields and `overrides`, as in A1111; then what is
    in an infotext, or else `base`. `image`: of img2img.
    """
    for name, off in REFUSED.items():
        if (value := given.get(name)) and value != off and value != -1 and str(value).lower() != "none":
            raise not_here(name)
    _check_scripts(given.get("alwayson_scripts"))
    fields = dict(overrides)
    text = given.get("infotext")
    info = infotext.read(str(TEXT.check("infotext", text))) if text else None
    if text and info is None:
        raise RequestError("infotext has no line of settings (Steps: ..., Sampler: ..., Seed: ...)", field="infotext")
    whole = {**({} if info else DEFAULTS), **_whole(given)}
    fields |= {name: whole[name] for name in PLAIN if name in whole}
    whole["sampler_name"] = whole.get("sampler_name") or whole.get("sampler_index")
    fields |= {name: whole[name] for name in ("sampler_name", "scheduler") if whole.get(name)}
    fields |= _noise(whole)
    if counts := [at_least(name, whole[name], 1) for name in ("batch_size", "n_iter") if name in whole]:
        fields["batch"] = math.prod(counts)
    if whole.get("subseed_strength"):
        fields["subseed"] = whole.get("subseed", -1)
    if "clip_skip" in whole:
        skip = clip_skip("clip_skip", whole["clip_skip"])
        if (told := overrides.get("clip_skip", skip)) != skip:
            message = f"clip_skip is {skip}, and {SKIP} in override_settings {told}"
            raise RequestError(message, field=SKIP, hint="give one of them, or both the same")
        fields["clip_skip"] = skip
    if image:
        fields |= _picture(whole)
    elif whole.get("enable_hr"):
        fields |= _hires(whole)
    found = None if info is None else ledger.of_text(info).over(fields)
    told = {name: getattr(found.request, name) for name in FIELDS} if found else {**base, **fields}
    return render.read(Request.from_json(told)), found.notes() if found else []


def ignored(given: Mapping[str, Any], settings: Settings, image: bool) -> list[str]:
    """The names of what was given and changes nothing; no values, which may be secrets."""
    silent = KNOWN if image else KNOWN - {"init_images", "mask"}
    names = [name for name in given if name not in silent or (name == "save_images" and given[name])]
    return [name[:60] for name in (*names, *(f"override_settings.{name}" for name in settings.ignored))][:50]


def _whole(given: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, where some clients write whole numbers as 3.0, and null for nothing."""
    known = {name: value for name, value in given.items() if value is not None}
    return {name: int(each) if isinstance(each, float) and each.is_integer() else each for name, each in known.items()}


def not_here(name: str, why: str = "leave it out") -> RequestError:
    """The RequestError for what is asked for and not supported."""
    return RequestError(f"{name} is not supported here", field=name, hint=why)


def clip_skip(name: str, value: object) -> int:
    """A whole number from 1 on, also as a float; how far it may go is the model's."""
    given = number(value)
    if given is None or given != int(given) or given < 1:
        message = f"{name} must be a whole number from 1 on, not {shown(value)}: 1 is the last layer, 2 the penultimate"
        raise RequestError(message, field=name)
    return int(given)


def _noise(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of noise, where they say anything.

    webuiapi sends an eta of 1 with every request, which changes DDIM alone; elsewhere it is the default.
    """
    fields = {name: given[name] for name, off in NOISE.items() if name in given and given[name] != off}
    if fields.get("eta") == 1 and "ddim" not in str(given.get("sampler_name")).lower():
        del fields["eta"]
    return fields


def _check_scripts(scripts: object) -> None:
    """RequestError for a script that is on: none are here. `[]` and `[false, ...]` say that one is off."""
    scripts = scripts or {}
    if not isinstance(scripts, Mapping):
        raise RequestError(f"alwayson_scripts must be an object, not {shown(scripts)}", field="alwayson_scripts")
    for name, script in scripts.items():
        args = script.get("args") if isinstance(script, Mapping) else script
        units = args if isinstance(args, list) else [args]
        off = not units or not units[0]
        if not off and not all(isinstance(unit, Mapping) and unit.get("enabled") is False for unit in units):
            raise not_here(f"alwayson_scripts.{name[:60]}")


def _picture(told: Mapping[str, Any]) -> dict[str, Any]:
    """What img2img takes."""
    given = {**OF_IMAGE, **told}
    images = given["init_images"]
    if not isinstance(images, list) or len(images) != 1:
        raise RequestError("init_images must be a list of one picture in base64", field="init_images")
    fields = {
        "image": data_url("init_images", images[0]),
        "strength": FRACTION.check("denoising_strength", given["denoising_strength"]),
        "resize_mode": _nth("resize_mode", given["resize_mode"], FIELDS["resize_mode"].choices),
    }
    if not (mask := given["mask"]):
        return fields
    blurs = [told[name] for name in ("mask_blur", "mask_blur_x", "mask_blur_y") if name in told] or [given["mask_blur"]]
    if any(blur != blurs[0] for blur in blurs[1:]) and "mask_blur" not in told:
        raise not_here("mask_blur_y", "mask_blur_x and mask_blur_y must be the same")
    fields |= {"mask": data_url("mask", mask), "mask_blur": WHOLE.check("mask_blur", blurs[0])}
    fields["fill"] = _nth("inpainting_fill", given["inpainting_fill"], FILLS)
    fields["mask_invert"] = bool(given["inpainting_mask_invert"])
    if given["inpaint_full_res"]:
        padding = WHOLE.check("inpaint_full_res_padding", given["inpaint_full_res_padding"])
        fields |= {"inpaint_area": "Only masked", "mask_padding": padding}
    return fields


def _hires(told: Mapping[str, Any]) -> dict[str, Any]:
    """What the second pass of txt2img takes; of a size with one side, the other follows from the first pass."""
    for name, first in HIRES.items():
        value = told.get(name)
        if value and value != told.get(first) and not str(value).lower().startswith("use same"):
            raise not_here(name, "both passes have the same")
    given = {**DEFAULTS, **SECOND, **told}
    if given["firstphase_width"] or given["firstphase_height"]:
        raise not_here("firstphase_width", "width and height are those of the first pass")
    fields = {
        "strength": FRACTION.check("denoising_strength", given["denoising_strength"]),
        "hires_steps": given["hr_second_pass_steps"],
        "hires_upscaler": given["hr_upscaler"],
    }
    width, height = (at_least(name, given[name], 1) for name in ("width", "height"))
    x, y = (at_least(name, given[name], 0) for name in ("hr_resize_x", "hr_resize_y"))
    if x or y:
        return {**fields, "hires_size": f"{x or y * width // height}x{y or x * height // width}"}
    return {**fields, "hires_scale": given["hr_scale"]}


def _nth(name: str, value: object, choices: tuple[str, ...]) -> str:
    """The choice of this number. RequestError for another."""
    given = number(value)
    if given is None or given not in range(len(choices)):
        listed = ", ".join(f"{index}: {choice}" for index, choice in enumerate(choices))
        raise RequestError(f"{name} must be one of {listed}; not {shown(value)}", field=name)
    return choices[int(given)]
