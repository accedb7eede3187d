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
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import clipskip.engines.tensorrt as tensorrt
from clipskip.engines import files, report
from clipskip.engines.manifest import AxisRange, Role
from clipskip.engines.shapes import BuildOptions
from clipskip.engines.store import Store
from clipskip.export import export, tokenizer
from clipskip.export.onefile import SD1

OPTIONS = BuildOptions(sizes=AxisRange(256, 512, 768), max_batch=4, max_chunks=3)


def make_checkpoint(folder: Path) -> None:
    """SD 1.5's networks with random weights in fp16, and CLIP's tokenizer."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        paths = {name: Path(scratch, name) for name in ("vocab.json", "merges.txt")}
        for name, content in tokenizer.clip().items():
            paths[name].write_bytes(content)
        schedule: dict[str, Any] = {"beta_schedule": "scaled_linear", "steps_offset": 1, "clip_sample": False}
        StableDiffusionPipeline(
            text_encoder=CLIPTextModel(CLIPTextConfig(**SD1.text)).half(),
            unet=UNet2DConditionModel(**SD1.unet).half(),
            vae=AutoencoderKL(**SD1.vae).half(),
            tokenizer=CLIPTokenizer(*map(str, paths.values())),
            scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, **schedule),
            **dict.fromkeys(("safety_checker", "feature_extractor")), requires_safety_checker=False,
        ).save_pretrained(folder)  # fmt: skip


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
    rows = [("engine", "build", "peak memory", "size")]
    for role, engine in figures["engines"].items():
        sizes = files.readable_size(engine["peak_bytes"]), files.readable_size(engine["bytes"])
        rows.append((role, f"{engine['seconds']:.1f} s", *sizes))
    built = [report.table(rows), f"all engines in {figures['build_seconds']:.1f} s"] if rows[1:] else []
    return "\n".join([*built, f"exported to {figures['store']} in {figures['export_seconds']:.1f} s"])


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
