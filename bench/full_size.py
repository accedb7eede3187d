"""A Stable Diffusion of full size to measure with: `python -m clipskip.bench.full_size FOLDER`.

Makes SD 1.5's networks with random weights and CLIP's own tokenizer in FOLDER/random-sd15 (its pictures are noise, but
every matrix has its size) and exports them to FOLDER/store. With `--target tensorrt-rtx` it exports in fp16, to
FOLDER/store-fp16, and builds all engines for 256 to 768 pixels, one to four images and three chunks, without a GPU; it
prints what each took. Whatever stands in FOLDER already is used again. The last line is JSON for machines.
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
from clipskip.export import export, tokenizer

OPTIONS = BuildOptions(sizes=AxisRange(256, 512, 768), max_batch=4, max_chunks=3)
INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "requires_safety_checker": False,
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    **dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"), (None, None)),
}
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
             "prediction_type": "epsilon"}  # fmt: skip


def make_checkpoint(folder: Path) -> None:
    """SD 1.5's networks with random weights in fp16, and CLIP's tokenizer."""
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
    for name in ("tokenizer", "scheduler"):
        (folder / name).mkdir()
    for name, content in tokenizer.clip().items():
        (folder / "tokenizer" / name).write_bytes(content)
    end = dict.fromkeys(("eos_token", "unk_token", "pad_token"), tokenizer.END)
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "bos_token": tokenizer.START, **end}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    (folder / "model_index.json").write_text(json.dumps(INDEX))  # last: a checkpoint with it is complete


def measure(folder: Path, target: str) -> dict[str, Any]:
    """Seconds of the export and, of TensorRT-RTX's engines, seconds and bytes; what was up to date costs nothing."""
    checkpoint, store = folder / "random-sd15", folder / ("store" if target == "onnxruntime" else "store-fp16")
    if not (checkpoint / "model_index.json").exists():
        shutil.rmtree(checkpoint, ignore_errors=True)
        make_checkpoint(checkpoint)
    began = time.monotonic()
    export(checkpoint, store, precision="fp32" if target == "onnxruntime" else "fp16", progress=print)
    figures: dict[str, Any] = {"store": str(store), "export_seconds": round(time.monotonic() - began, 1), "engines": {}}
    if target == "onnxruntime":
        return figures
    began = time.monotonic()
    built = tensorrt.build(Store(store), target=target, options=OPTIONS, progress=print)
    figures["build_seconds"] = round(time.monotonic() - began, 1)
    for engine in built:
        size = Store(store).find(Role.parse(engine.role), target, "fp16").files[0].size
        facts = {"seconds": round(engine.seconds, 1), "peak_bytes": engine.peak_bytes, "decomposed": engine.decomposed}
        figures["engines"][engine.role] = {**facts, "bytes": size}
    return figures


def table(figures: dict[str, Any]) -> str:
    """The figures for people."""
    rows = [
        f"{role:<10}{engine['seconds']:>9.1f} s{engine['peak_bytes'] / 1e9:>10.2f} GB{engine['bytes'] / 1e6:>10.1f} MB"
        for role, engine in figures["engines"].items()
    ]
    titles = [f"{'engine':<10}{'build':>11}{'peak memory':>13}{'size':>13}"] if rows else []
    built = [f"all engines in {figures['build_seconds']:.1f} s"] if rows else []
    return "\n".join([*titles, *rows, *built, f"exported to {figures['store']} in {figures['export_seconds']:.1f} s"])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="clipskip.bench.full_size", description="A model of full size, of noise.")
    parser.add_argument("folder", type=Path, help="where to work; 10 GB are needed")
    parser.add_argument("--target", default="onnxruntime", choices=("onnxruntime", "tensorrt-rtx"))
    args = parser.parse_args(arguments)
    figures = measure(args.folder, args.target)
    print(table(figures))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
