"""SD 2.x: its pictures are those of torch's networks, whatever they predict; clip skip changes none of them."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir
import pytest
import reference
import tiny_families
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from onnx.reference import ReferenceEvaluator
from reference import Wanted
from reference_solvers import Diffusion

import clipskip
from clipskip import Pipeline, metadata
from clipskip.engines import gates
from clipskip.engines.manifest import Dim, Port, Role
from clipskip.engines.store import Store
from clipskip.export import onnxfile
from clipskip.export.checkpoint import open_checkpoint
from clipskip.export.families.sd2 import SD2
from clipskip.export.graphs import Graph
from clipskip.export.models import float_attention, load
from clipskip.schedules import LEAST

LIMIT = 2  # of 255, anywhere
SHORT, LONG = "a cat", "a b c d e f g h " * 12  # of 77 and of 154 tokens
NO_EFFECT = "clip skip has no effect on this model"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_families.sd2(tmp_path_factory.mktemp("models") / "two")


def diffusion(prediction: str, zero_snr: bool) -> Diffusion:
    """The noise of the model, rescaled by diffusers; A1111's last level, which is not quite without a signal."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = (1 - (rescale_zero_terminal_snr(betas) if zero_snr else betas)).cumprod(0).numpy()
    kept[-1] = LEAST if zero_snr else kept[-1]
    return Diffusion(np.sqrt((1 - kept) / kept), prediction)


@pytest.mark.parametrize(
    ("prediction", "zero_snr", "prompt", "sampler"),
    [
        ("epsilon", False, SHORT, "Euler"),
        ("v_prediction", False, LONG, "DDIM"),
        ("v_prediction", True, SHORT, "DPM++ 2M"),
        ("v_prediction", True, LONG, "Euler"),
    ],
)
def test_pictures_are_those_of_torch_whatever_the_network_predicts(
    folder: Path, exported: Store, tmp_path: Path, prediction: str, zero_snr: bool, prompt: str, sampler: str
) -> None:
    right = reference.load(folder)
    right = replace(right, text=replace(right.text, padding=0), diffusion=diffusion(prediction, zero_snr))
    wanted = Wanted(prompt=prompt, negative="b", seed=3, steps=8, cfg=4.0, sampler=sampler, width=96, height=64)
    root = shutil.copytree(exported.root, tmp_path / "two")  # the same graphs: only the tables differ
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["model"] |= {"prediction": prediction, "zero_snr": zero_snr}
    (root / "manifest.json").write_text(json.dumps(manifest))
    with clipskip.open(root) as pipe:
        made = pipe(
            prompt, negative_prompt="b", seed=3, steps=8, cfg=4.0, sampler=sampler, schedule="uniform", rng="cpu",
            width=96, height=64,
        )  # fmt: skip
    got, exact = np.asarray(made.images[0], dtype=float), right.pictures([wanted])[0]
    assert exact.std() > 10
    assert np.abs(got - exact).max() <= LIMIT


def test_every_clip_skip_gives_the_same_picture_and_one_note(opened: Pipeline) -> None:
    results = {skip: opened(SHORT, clip_skip=skip, steps=2, seed=1) for skip in (1, 2, 12)}
    pixels = {result.images[0].tobytes() for result in results.values()}
    assert len(pixels) == 1
    assert {Role("text", 3)} == {Role.parse(name) for name in results[12].engines if name.startswith("text")}
    for result in results.values():
        assert len(result.warnings) == 1
        assert result.warnings[0].startswith(NO_EFFECT)
        assert "Clip skip" not in metadata.parameters(result.origin(0))
    assert not opened(SHORT, steps=1, seed=1).warnings
    inside = opened("a <clipskip:5> cat", negative_clip_skip="[1:3:0.5]", steps=2, seed=1)
    assert [note for note in inside.warnings if note.startswith(NO_EFFECT)] == [*inside.warnings]


def test_folders_keep_23_layers_and_of_24_the_last_one_is_left_out() -> None:
    for layers in (23, 24):
        assert {*SD2.clip_skips(layers)} == {23}
    assert len(SD2.clip_skips(23)) >= 13  # what people send for SD 1.x


class Alone(torch.nn.Module):
    """One attention layer, whose queries and keys are many times its input."""

    def __init__(self, processor: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.attention = Attention(16, heads=2, dim_head=8, processor=processor)
        for layer in (self.attention.to_q, self.attention.to_k):
            layer.weight.data = torch.eye(16) * 20

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.attention(states)


@pytest.mark.parametrize(("processor", "sound"), [(AttnProcessor2_0(), False), (float_attention, True)])
def test_attention_overflows_in_fp16_unless_it_is_computed_in_fp32(
    processor: Callable[..., torch.Tensor], sound: bool
) -> None:
    """By ONNX's own definition of its operators, for no CPU computes attention in fp16."""
    torch.manual_seed(0)
    layer, states = Alone(processor).requires_grad_(False), torch.randn(3, 154, 16) * 10
    exact = layer(states).numpy()
    shape = Dim("N"), Dim("T"), 16
    ports = Port("states", "float16", shape), Port("seen", "float16", shape)
    model = onnx_ir.to_proto(onnxfile.trace(Graph("attention", layer.half(), ports[:1], ports[1:]), {}))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        (seen,) = ReferenceEvaluator(model).run(None, {"states": states.half().numpy()})
    assert np.isfinite(seen).all() == sound
    assert not sound or gates.relative_l2(seen.astype(np.float64), exact) < 0.5


def test_the_u_net_of_sd_2_has_its_attention_in_fp32_and_that_of_others_where_their_configuration_says_so(
    folder: Path, tiny: Path, tmp_path: Path, edit: Callable[..., None]
) -> None:
    def processors(root: Path) -> set[bool]:
        return {each is float_attention for each in load(open_checkpoint(root)).unet.attn_processors.values()}

    assert processors(folder) == {True}
    assert processors(tiny) == {False}
    upcast = shutil.copytree(tiny, tmp_path / "upcast")
    edit(upcast / "unet" / "config.json", upcast_attention=True)
    assert processors(upcast) == {True}
