"""What TensorRT-RTX needs for a Stable Diffusion of full size: `python -m clipskip.bench.full_size FOLDER TOKENIZER`.

Makes SD 1.5's networks with random weights (no picture comes out of them, but every matrix has its size), exports them
in fp16, and builds all sixteen engines for 256 to 768 pixels, one to four images and three chunks. Whatever stands in
FOLDER already is used again. Prints a table for people and ends with one JSON line for machines. No GPU is needed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import clipskip.engines.tensorrt as tensorrt
from clipskip.engines.manifest import AxisRange, Role
from clipskip.engines.shapes import BuildOptions
from clipskip.engines.store import Store

OPTIONS = BuildOptions(sizes=AxisRange(256, 512, 768), max_batch=4, max_chunks=3)
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
             "prediction_type": "epsilon"}  # fmt: skip


def make_checkpoint(folder: Path, tokenizer: Path) -> None:
    """SD 1.5's networks with random weights in fp16, and the tokenizer of a smaller model."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12)
    widths = (128, 256, 512, 512)
    networks: dict[str, Callable[[], Any]] = {
        "text_encoder": lambda: CLIPTextModel(text),
        "unet": lambda: UNet2DConditionModel(cross_attention_dim=768, sample_size=64),
        "vae": lambda: AutoencoderKL(
            block_out_channels=widths, down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4, layers_per_block=2, latent_channels=4, sample_size=512,
        ),
    }  # fmt: skip
    for name, make in networks.items():
        make().half().save_pretrained(folder / name)
    shutil.copytree(tokenizer, folder / "tokenizer")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    (folder / "model_index.json").write_text(json.dumps(INDEX))  # last: a checkpoint with it is complete


def measure(folder: Path, tokenizer: Path) -> dict[str, Any]:
    """Seconds and bytes of every engine, and of the whole; those that were up to date count as nothing."""
    from clipskip.export import export

    checkpoint, store = folder / "checkpoint", folder / "store"
    if not (checkpoint / "model_index.json").exists():
        shutil.rmtree(checkpoint, ignore_errors=True)
        make_checkpoint(checkpoint, tokenizer)
    began = time.monotonic()
    export(checkpoint, store, precision="fp16", progress=print)
    exported = time.monotonic()
    built = tensorrt.build(Store(store), target="tensorrt-rtx", options=OPTIONS, progress=print)
    done = time.monotonic()
    artefacts = {engine.role: Store(store).find(Role.parse(engine.role), "tensorrt-rtx", "fp16") for engine in built}
    return {
        "export_seconds": round(exported - began, 1),
        "build_seconds": round(done - exported, 1),
        "peak_bytes": max(engine.peak_bytes for engine in built),
        "engines": {
            engine.role: {
                "seconds": round(engine.seconds, 1),
                "peak_bytes": engine.peak_bytes,
                "bytes": artefacts[engine.role].files[0].size,
                "decomposed": engine.decomposed,
            }
            for engine in built
        },
    }


def table(figures: dict[str, Any]) -> str:
    """The figures for people."""
    rows = [
        f"{role:<10}{engine['seconds']:>9.1f} s{engine['peak_bytes'] / 1e9:>10.2f} GB{engine['bytes'] / 1e6:>10.1f} MB"
        for role, engine in figures["engines"].items()
    ]
    total = f"all engines in {figures['build_seconds']:.1f} s after an export of {figures['export_seconds']:.1f} s"
    return "\n".join([f"{'engine':<10}{'build':>11}{'peak memory':>13}{'size':>13}", *rows, total])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Build the engines of a full-size model with random weights.")
    parser.add_argument("folder", type=Path, help="where to work; 10 GB are needed")
    parser.add_argument("tokenizer", type=Path, help="a tokenizer folder, such as export/sample/tokenizer")
    args = parser.parse_args(arguments)
    figures = measure(args.folder, args.tokenizer)
    print(table(figures))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
