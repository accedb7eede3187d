"""A Stable Diffusion 1.x of a few thousand random weights: three text layers, and a U-Net of two blocks."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from string import ascii_lowercase
from types import SimpleNamespace
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

import clipskip
from clipskip.engines.forms import origins
from clipskip.engines.store import Store
from clipskip.export import build, cases, export, onnxfile
from clipskip.export.graphs import Graph
from clipskip.export.models import float_attention
from clipskip.pipeline import Pipeline

MERGES = ["c a", "ca t</w>"]
WIDTH = 32
Once = Callable[[str, Callable[[Path], object]], Path]


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


def _tiny(root: Path) -> None:
    root.mkdir()
    torch.manual_seed(0)
    text, unet, vae = _text(), _unet(), _vae()
    _save(root / "text_encoder", text, text.config.to_dict(), "model", prefix="text_model.")
    for name, network in (("unet", unet), ("vae", vae)):
        said = {key: value for key, value in network.config.items() if key != "_use_default_values"}  # never in a file
        _save(root / name, network, said, "diffusion_pytorch_model")
    (root / "tokenizer").mkdir()
    (root / "tokenizer" / "vocab.json").write_text(json.dumps({each: i for i, each in enumerate(_vocabulary())}))
    (root / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    (root / "scheduler").mkdir()
    (root / "scheduler" / "scheduler_config.json").write_text(json.dumps({"beta_schedule": "scaled_linear"}))
    (root / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))


PLAIN = (bool, int, float, str, tuple, type(None))


@pytest.fixture(scope="session", autouse=True)
def traced_once(once: Once) -> Iterator[None]:
    """No export traces what torch traced in this run with the same weights; it measures it all the same."""

    def trace(graph: Graph, names: Mapping[torch.Tensor, str]) -> ir.Model:
        module, content = graph.module, hashlib.sha256()
        for name, value in module.state_dict(keep_vars=True).items():
            content.update(repr((name, value.dtype, names.get(value))).encode())
            content.update(value.detach().contiguous().numpy().tobytes())
        for each in module.modules():
            plain = {name: value for name, value in vars(each).items() if isinstance(value, PLAIN)}
            processor = type(getattr(each, "processor", None)), getattr(each, "processor", None) is float_attention
            config = getattr(each, "config", {})
            config = config.to_dict() if isinstance(config, CLIPTextConfig) else dict(config)
            said = sorted((key, repr(value)) for key, value in config.items() if key[0] != "_")  # no paths
            content.update(repr((type(each), plain, processor, said)).encode())
        content.update(repr((graph.role, graph.inputs, graph.outputs)).encode())

        def make(path: Path) -> None:
            model = onnxfile.trace(graph, names)
            marks = {name: origins.of(value) for name, value in model.graph.initializers.items()}
            path.write_bytes(pickle.dumps((ir.to_proto(model).SerializeToString(), marks)))

        stored, marks = pickle.loads(once(f"traced-{content.hexdigest()}", make).read_bytes())
        model = ir.from_proto(onnx.load_model_from_string(stored))
        for name, origin in marks.items():
            origins.mark(model.graph.initializers[name], origin)
        return model

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "onnxfile", SimpleNamespace(**{**vars(onnxfile), "trace": trace}))
        yield


@pytest.fixture(scope="session")
def tiny(once: Once) -> Path:
    """The folder of the tiny model. Not to be changed: see `checkpoint`."""
    return once("tiny", _tiny)


@pytest.fixture
def checkpoint(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return shutil.copytree(tiny, tmp_path / "tiny")


@pytest.fixture(scope="session")
def store(tiny: Path, once: Once) -> Store:
    """All graphs of the tiny model in fp32. Not to be changed."""
    return Store(once("tiny-store", lambda root: export(tiny, root)))


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
def half_store(tiny: Path, once: Once) -> Store:
    """All its graphs in fp16. Not to be changed."""

    def make(root: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            parts = record(patch)
            export(tiny, root, precision="fp16")
        assert parts == ["text", "step", "decode", "encode"]  # each once, though the step takes the texts too

    return Store(once("tiny-fp16", make))


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
