"""Which clip skip a model wants: the rule on kept losses, the losses against torch, and the verb on drawn pictures."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from copies import copy_of
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

import clipskip
from clipskip import __main__ as command
from clipskip.basis import out, x
from clipskip.errors import RequestError
from clipskip.recommend import LEAST, ROUND, Verdict, recommend
from clipskip.samplers import denoiser
from clipskip.schedules import NoiseModel

LOSSES = np.load(Path(__file__).parent / "data" / "depth_losses.npz")
SKIPS = tuple(range(1, 14))
sys.path.append(str(Path(__file__).parent / "data"))

from make_depth_losses import captioned  # noqa: E402


def test_a_last_layer_that_the_network_never_saw_makes_it_the_second_surely() -> None:
    verdict = Verdict(SKIPS, LOSSES["second"])
    assert verdict.recommended == 2
    above, error = verdict.worse(1)
    assert above > 5 * error
    assert verdict.evidence.startswith("clip skip 2: on 64 captioned pictures the least loss is ")
    assert verdict.alike == (2, 3, 4)  # and the first of them it was trained at


def test_depths_that_are_alike_give_no_answer() -> None:
    verdict = Verdict(SKIPS, LOSSES["even"])
    assert verdict.recommended is None
    assert {1, 2, 3, 4} <= set(verdict.alike)
    assert 13 not in verdict.alike
    assert "cannot tell" in verdict.evidence


def test_no_order_of_the_pictures_gives_a_wrong_answer_early() -> None:
    rng, answers = np.random.default_rng(0), {"even": set[int | None](), "second": set[int | None]()}
    for name, found in answers.items():
        for _ in range(20):
            losses = LOSSES[name][rng.permutation(64)]
            rounds = (Verdict(SKIPS, losses[:count]).recommended for count in range(ROUND, 65, ROUND))
            found.add(next(filter(None, rounds), None))
    assert answers["second"] <= {2, None}
    assert 2 in answers["second"]
    assert answers["even"] == {None}


def test_few_pictures_give_no_answer_however_clear() -> None:
    clear = np.random.default_rng(0).normal([1.0, 2.0], 0.01, (LEAST, 2))
    assert Verdict((1, 2), clear[:-1]).recommended is None
    assert Verdict((1, 2), clear).recommended == 1


def test_depths_that_are_alike_are_recommended_only_where_another_and_the_first_are_worse() -> None:
    second = LOSSES["second"]
    assert Verdict((1, 2, 3), second[:, :3]).recommended == 2
    for skips in ((3, 4, 5), (2, 13), (3, 13), (2,)):
        verdict = Verdict(skips, second[:, [skip - 1 for skip in skips]])
        assert verdict.recommended is None or verdict.alike == (verdict.recommended,)
        assert verdict.evidence
    assert Verdict((3, 4, 5), second[:, 2:5]).recommended is None
    rng = np.random.default_rng(0)
    alike = rng.normal([1.0, 1.0, 2.0], 0.01, (LEAST, 3))
    assert Verdict((2, 3, 5), alike).recommended is None


def test_the_least_of_those_that_are_alike_is_no_answer_where_it_is_not_close_to_the_best() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.01, (LEAST, 3))
    noise -= noise.mean(0)
    for above, answer in ((0.0, 2), (0.004, None)):  # about 2 standard errors, of the 3 that make it worse
        verdict = Verdict((1, 2, 3), noise + np.array([1, above, 0]))
        assert verdict.alike == (2, 3)
        assert verdict.recommended == answer
    assert "cannot tell" in verdict.evidence


def test_clip_skips_of_a_single_layer_are_refused_before_a_picture_is_read() -> None:
    pipe: Any = SimpleNamespace(model=SimpleNamespace(kept=(12, 12, 11)), clip_skips=[1])
    for skips in (None, (2,), (1, 2), (2, 2)):
        with pytest.raises(RequestError, match="is one layer") as caught:
            recommend(pipe, [], skips)
        assert caught.value.field == "skips"
    with pytest.raises(RequestError, match=r"skips must be 1\.\.3, not 4"):
        recommend(pipe, [], (1, 4))
    with pytest.raises(RequestError, match="0 captioned pictures"):
        recommend(pipe, [], (1, 3))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_error_of_the_picture_weighs_what_that_of_the_networks_output_does(prediction: str) -> None:
    sigma, (clean, noise, off) = 3.0, np.random.default_rng(1).standard_normal((3, 50))
    alpha, vp = 1 / math.sqrt(sigma**2 + 1), sigma / math.sqrt(sigma**2 + 1)
    right = noise if prediction == "epsilon" else alpha * noise - vp * clean
    D = denoiser(NoiseModel(prediction=prediction))(sigma)
    seen = D @ np.outer(x, clean + sigma * noise) + D @ np.outer(out, right + off)
    assert np.allclose((seen - clean) ** 2 * (D @ out) ** -2, off**2)


def test_losses_are_those_that_torch_computes(sample_checkpoint: Path, sample_store: Path) -> None:
    skips, (picture, caption) = (1, 6, 13), captioned(1)[0]
    with clipskip.open(sample_store) as pipe:
        verdict = recommend(pipe, [(picture, caption)] * 2, skips)  # the second has other noise
    parts = {name: sample_checkpoint / name for name in ("vae", "unet", "text_encoder", "tokenizer")}
    vae, unet = (
        AutoencoderKL.from_pretrained(parts["vae"], low_cpu_mem_usage=False),
        UNet2DConditionModel.from_pretrained(parts["unet"], low_cpu_mem_usage=False),
    )
    text = CLIPTextModel.from_pretrained(parts["text_encoder"], dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(parts["tokenizer"])
    ids = tokenizer(caption, padding="max_length", max_length=77, return_tensors="pt").input_ids
    abar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    with torch.no_grad():
        pixels = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None] / 127.5 - 1
        clean = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
        states = text(ids, output_hidden_states=True).hidden_states
        for number in range(2):
            draw, expected = np.random.default_rng(number), np.zeros(3)
            for level in range(3):
                t = 20 + 320 * (level + draw.uniform())
                log = np.interp(t, np.arange(1000), np.log((1 - abar) / abar) / 2)
                alpha = 1 / math.sqrt(1 + math.exp(2 * log))
                noise = torch.from_numpy(draw.standard_normal((4, 16, 16)).astype(np.float32))[None]
                noisy = alpha * clean + math.sqrt(1 - alpha**2) * noise
                for place, skip in enumerate(skips):
                    context = text.final_layer_norm(states[13 - skip])
                    given = unet(noisy, torch.tensor([t]), context, return_dict=False)[0]
                    expected[place] += float((given - noise).square().mean()) / 3
            assert np.allclose(verdict.losses[number], expected, rtol=1e-3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Captioned pictures, and one without a caption."""
    root = tmp_path / "pictures"
    root.mkdir()
    for number, (picture, caption) in enumerate(captioned(LEAST)):
        picture.save(root / f"{number:02}.png")
        (root / f"{number:02}.txt").write_text(caption)
    picture.save(root / "none.png")
    return root


def said(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    assert command.main([*map(str, arguments), "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_the_answer_becomes_the_stores_own_with_its_evidence(
    sample_store: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = copy_of(sample_store, tmp_path / "store")
    asked = "recommend", store, "--pictures", folder, "--skips", "3,13"
    found = said(capsys, *asked, "--plot", tmp_path / "plot.png")
    assert (found["recommended"], found["written"], found["pictures"]) == (3, False, LEAST)
    assert found["plot"] == str(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
    assert [depth["clip_skip"] for depth in found["depths"]] == [3, 13]
    assert clipskip.open(store).model.recommended_clip_skip == 2
    assert said(capsys, *asked, "--write")["written"]
    with clipskip.open(store) as pipe:
        assert (pipe.model.recommended_clip_skip, pipe.model.evidence) == (3, found["evidence"])
    assert command.main(["inspect", str(store)]) == 0
    assert f"measured: {found['evidence']}" in capsys.readouterr().out


def test_what_gives_no_answer_is_refused_before_the_store_is_opened(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "00.txt").unlink()
    for pictures, word in (
        (folder, f"{LEAST - 1} captioned pictures (left out of {LEAST + 1} pictures: 2 with no caption)"),
        (tmp_path / "no", "no folder"),
    ):
        assert command.main(["recommend", str(tmp_path), "--pictures", str(pictures)]) == 2
        assert word in capsys.readouterr().err


def test_a_broken_picture_is_named(sample_store: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "00.png").write_bytes(b"nothing")
    assert command.main(["recommend", str(sample_store), "--pictures", str(folder)]) == 3
    assert "00.png" in capsys.readouterr().err
