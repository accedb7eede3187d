"""A Stable Diffusion 1.x of a few thousand random weights: three text layers, and a U-Net of two blocks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

import clipskip
from clipskip.engines.store import Store
from clipskip.export import cases, export
from clipskip.pipeline import Pipeline

MERGES = ["c a", "ca t</w>"]
WIDTH = 32


def _vocabulary() -> list[str]:
    letters = [*ascii_lowercase, *(f"{letter}</w>" for letter in ascii_lowercase)]
    return [*letters, *(merge.replace(" ", "") for merge in MERGES), "<|startoftext|>", "<|endoftext|>"]


def _text() -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(_vocabulary()), hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=2, bos_token_id=54, eos_token_id=55, pad_token_id=55,
    )  # fmt: skip
    return CLIPTextModel(config)


def _unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 16), layers_per_block=0, norm_num_groups=4, cross_attention_dim=WIDTH,
        attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), layers_per_block=0, norm_num_groups=2, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip


def _save(folder: Path, network: torch.nn.Module, config: dict[str, Any], stem: str, prefix: str = "") -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    weights = {prefix + name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(weights, folder / f"{stem}.safetensors")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny model. Not to be changed: see `checkpoint`."""
    root = tmp_path_factory.mktemp("models") / "tiny"
    root.mkdir()
    torch.manual_seed(0)
    text, unet, vae = _text(), _unet(), _vae()
    _save(root / "text_encoder", text, text.config.to_dict(), "model", prefix="text_model.")
    for name, network in (("unet", unet), ("vae", vae)):
        _save(root / name, network, dict(network.config), "diffusion_pytorch_model")
    (root / "tokenizer").mkdir()
    (root / "tokenizer" / "vocab.json").write_text(json.dumps({each: i for i, each in enumerate(_vocabulary())}))
    (root / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    (root / "scheduler").mkdir()
    (root / "scheduler" / "scheduler_config.json").write_text(json.dumps({"beta_schedule": "scaled_linear"}))
    (root / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return root


@pytest.fixture
def checkpoint(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return shutil.copytree(tiny, tmp_path / "tiny")


@pytest.fixture(scope="session")
def store(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """All graphs of the tiny model in fp32. Not to be changed.

    Each parallel worker has its own: diffusers writes configurations in an order that differs between processes, so the
    workers' models are not the same, and one would rebuild what another reads.
    """
    root = tmp_path_factory.mktemp("stores") / "tiny"
    export(tiny, root)
    return Store(root)


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The model in the `folder` of a test module, exported."""
    root = tmp_path_factory.mktemp("stores") / folder.name
    export(folder, root)
    return Store(root)


@pytest.fixture(scope="module")
def opened(exported: Store) -> Iterator[Pipeline]:
    """That, opened."""
    with clipskip.open(exported.root) as pipe:
        yield pipe


@pytest.fixture(scope="session")
def half_store(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """All its graphs in fp16. Not to be changed."""
    root = tmp_path_factory.mktemp("stores") / "tiny-fp16"
    with pytest.MonkeyPatch.context() as patch:
        parts = record(patch)
        export(tiny, root, precision="fp16")
    assert parts == ["text", "step", "decode", "encode"]  # each once, though the step takes the texts too
    return Store(root)


def record(patch: pytest.MonkeyPatch) -> list[str]:
    """The parts that torch is asked for from now on."""
    parts: list[str] = []
    for part in ("text", "step", "decode", "encode"):
        honest = getattr(cases, part)
        patch.setattr(cases, part, lambda *rest, part=part, honest=honest: parts.append(part) or honest(*rest))
    return parts


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parts that torch is asked for."""
    return record(monkeypatch)


@pytest.fixture
def edit() -> Callable[..., None]:
    """Change entries of a JSON file."""

    def change(path: Path, **entries: Any) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return change


@pytest.fixture
def edit_weights() -> Callable[..., None]:
    """Rewrite a safetensors file through a function of its tensors."""

    def change(path: Path, function: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
        save_file(function(load_file(path)), path)

    return change
