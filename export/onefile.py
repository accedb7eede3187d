"""Models of Stable Diffusion in one file: a table by family, and what a file's header says. Reads no tensor.

Such a file holds weights only: its configurations are the family's own. What it predicts is said in one of several
places, or nowhere.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib import resources
from pathlib import Path

from clipskip.engines import identify
from clipskip.engines.errors import CheckpointError, UnsupportedModelError
from clipskip.engines.shapes import Shape
from clipskip.engines.tensorfile import Entry, Header
from clipskip.export import names, parts
from clipskip.export.parts import Config, Part


@dataclass(frozen=True)
class Layout:
    """How the models of a family stand in one file: their configurations, and what their text encoder is called."""

    family: str
    text: Config
    unet: Config
    vae: Config
    encoder: str  # before the names of the text encoder's tensors
    modern: Callable[[str], str]  # today's name of such a tensor
    beyond: str = "(?!)"  # a pattern of the names of layers that no picture needs
    ambiguous: bool = False  # some of its models predict noise and others v, and nothing in their tensors tells


VAE: Config = {
    "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4, "layers_per_block": 2, "latent_channels": 4, "scaling_factor": 0.18215,
}  # fmt: skip
SD1 = Layout(
    family="sd1",
    text={
        "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
    },
    unet={
        "sample_size": 64, "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768,
        "attention_head_dim": 8, "layers_per_block": 2,
    },
    vae=VAE, encoder="cond_stage_model.transformer.", modern=names.text_from_file,
)  # fmt: skip
SD2 = Layout(
    family="sd2",
    text={
        "vocab_size": 49408, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23,
        "num_attention_heads": 16, "max_position_embeddings": 77, "hidden_act": "gelu",
    },
    unet={
        "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20], "layers_per_block": 2, "use_linear_projection": True,
    },
    vae=VAE, encoder="cond_stage_model.model.", modern=names.open_clip_from_file,
    beyond=r"cond_stage_model\.model\.transformer\.resblocks\.23\..*", ambiguous=True,
)  # fmt: skip
LAYOUTS = (SD1, SD2)
SUPPORTED = "SD 1.x and SD 2.x are supported in one file"
_UNET, _AVERAGES = "model.diffusion_model.", "model_ema.diffusion_model"
BARE_VAE = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
VAE_PREFIXES = tuple(f"first_stage_model.{half}" for half in BARE_VAE)
_UNUSED = r"""model_ema\..*
    | (optimizer|lr_scheduler|callbacks|loops|embedding_manager)\w*(\..*)?  # of the training
    | betas | \w*alphas_cumprod\w* | posterior_\w+ | lvlb_weights | logvar | scale_factor | global_step | epoch
    | (.*\.)?scaled_fp8 | v_pred | ztsnr  # how the file is to be read: said elsewhere
    | first_stage_model\.(loss|model_ema|logvar)\b.*
    | cond_stage_model\.(.*\.)?(logit_scale|text_projection|visual|visual_projection|vision_model)\b.*
    """
_OTHER_MODELS = ("SDXL", "an SDXL refiner", "SD 3", "Flux")
_CHANNELS = {5: "a depth-to-image model", 7: "an upscaler", 8: "an instruct-pix2pix model"}
_OTHERS = {
    "control_model.": "is a ControlNet", "motion_modules.": "makes films",
    "label_emb.": "is conditioned on a class or a picture (label_emb)",
}  # fmt: skip


@dataclass(frozen=True)
class OneFile:
    """What stands in the file; `notes` are for the user."""

    text: Part
    unet: Part
    vae: Part | None
    scheduler: Config
    schedule: Path  # where that is said
    notes: tuple[str, ...]


def read(path: Path) -> OneFile:
    """A whole model, told from its header. CheckpointError, UnsupportedModelError."""
    header = parts.read_header(path)
    tensors = header.tensors
    layout = _layout(path, tensors)
    averaged = not any(name.startswith(_UNET) for name in tensors)
    unused = re.compile(f"{_UNUSED}|{layout.beyond}", re.VERBOSE)
    config = {**layout.unet, "in_channels": _channels(tensors) or 4}
    expected = shapes(layout.family)
    width, _, *kernel = expected["unet"]["conv_in.weight"]
    expected = {**expected, "unet": {**expected["unet"], "conv_in.weight": (width, config["in_channels"], *kernel)}}

    def part(name: str, config: Config, prefixes: tuple[str, ...], modern: Callable[[str], str]) -> Part:
        mine = {key: entry for key, entry in tensors.items() if key.startswith(prefixes)}
        if name != "unet":  # of which averages may be all there is
            mine = {key: entry for key, entry in mine.items() if not unused.fullmatch(key)}
        found = Part(name, config, path, path, mine, modern)
        if mine or name != "vae":
            found.check(expected[name])
        return found

    numbered = names.unet_from_average if averaged else names.unet_from_file
    modern = partial(numbered, layers=config["layers_per_block"])
    unet = part("unet", config, (_AVERAGES if averaged else _UNET,), modern)
    text = part("text_encoder", layout.text, (layout.encoder,), layout.modern)
    modern = partial(names.vae_from_file, blocks=len(layout.vae["block_out_channels"]))
    coder = part("vae", layout.vae, VAE_PREFIXES, modern)
    scheduler, schedule, notes = _scheduler(path, header, layout)
    if averaged:
        notes.append("the U-Net is that of the moving averages (model_ema.*): the file has no other")
    left = tensors.keys() - unet.tensors.keys() - text.tensors.keys() - coder.tensors.keys()
    unknown = sorted(name for name in left if not unused.fullmatch(name))
    if counts := Counter(name.partition(".")[0] for name in left.difference(unknown)):
        listed = ", ".join(f"{count} {head}" for head, count in sorted(counts.items()))
        notes.append(f"ignored, for no picture needs them: {counts.total()} tensors ({listed})")
    if unknown:
        notes.append(f"warning: {parts.counted('unknown and not used', unknown)}")
    return OneFile(text, unet, coder if coder.tensors else None, scheduler, schedule, tuple(notes))


@cache
def shapes(family: str) -> Mapping[str, Mapping[str, Shape]]:
    """The shape of every weight by part and today's name, so that no network has to be made to miss one."""
    packed = resources.files("clipskip.export").joinpath("shapes.json.gz").read_bytes()
    parts = json.loads(gzip.decompress(packed))[family]
    return {part: {name: tuple(shape) for name, shape in weights.items()} for part, weights in parts.items()}


def _channels(tensors: Mapping[str, Entry]) -> int | None:
    """How many channels the U-Net sees."""
    for name in (f"{_UNET}input_blocks.0.0.weight", f"{_AVERAGES}input_blocks00weight"):
        if name in tensors and len(tensors[name].shape) == 4:
            return tensors[name].shape[1]
    return None


def _layout(path: Path, tensors: Mapping[str, Entry]) -> Layout:
    """The family's, told from what its parts are called; refused by name where it is no whole model that is known."""
    kind, channels = identify.describe_keys(tensors), _channels(tensors)
    layout = next((layout for layout in LAYOUTS if any(name.startswith(layout.encoder) for name in tensors)), None)
    has_unet = any(name.startswith((_UNET, _AVERAGES)) for name in tensors)
    what = next((what for mark, what in _OTHERS.items() if any(mark in name for name in tensors)), None)
    if kind in _OTHER_MODELS or not (layout or has_unet):
        what = f"is {kind or 'of an unknown kind'}"
    elif channels not in (None, 4, 9):
        what = f"is {_CHANNELS.get(channels or 0, 'of an unknown kind')} (its U-Net sees {channels} channels)"
    if what:
        raise UnsupportedModelError(f"{path} {what}; {SUPPORTED}", path=path)
    if not layout or not has_unet:
        part, prefix = ("unet", _UNET) if layout else ("text_encoder", "cond_stage_model.")
        raise CheckpointError(f"{path} has no {part} in it (no tensor {prefix}*)", path=path)
    return layout


def _scheduler(path: Path, header: Header, layout: Layout) -> tuple[Config, Path, list[str]]:
    """What the file predicts and where that is said, its noise levels, and notes; "" where it had to be said."""
    beside = path.with_suffix(".yaml")
    text = parts.read(beside).decode("utf-8", errors="replace") if beside.is_file() else ""
    said = list(identify.said_predictions(header, text, beside.name))
    predicted, source = said[0] if said else ("", "")
    where = beside if source == beside.name else path
    notes = []
    if len({prediction for prediction, _ in said}) > 1:
        listed = ", ".join(f"{source} says {prediction}" for prediction, source in said)
        notes.append(f"warning: {listed}; {predicted} is used, and --prediction overrules all of them")
    scheduler: dict[str, object] = {"prediction_type": predicted} if said or layout.ambiguous else {}
    if identify.says_zero_snr(header, text):
        scheduler["rescale_betas_zero_snr"] = True
    return scheduler, where, notes
