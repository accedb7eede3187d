"""Makes the sample checkpoint: `python export/sample/train.py --out DIR`. Run again, it goes on where it stopped.

With `--start FOLDER` it takes a finished checkpoint and trains its U-Net further, all else frozen.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from diffusers import AutoencoderKL
from latents import encoded, scaling_factor, train_decoder
from networks import new_vae, save_pipeline
from sampling import load
from text_phase import Reader, train_text, understanding
from torch import nn
from torch.multiprocessing.spawn import start_processes
from training import Plan, cosine, linear, rank, write_torch
from unet_phase import Generator, Stage, train_unet
from vae_phase import train_vae
from words import Words, write_tokenizer

PROCESSES = 2
VAE_FILE, READER_FILE, MEETING = "vae.pt", "reader.pt", "meeting"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result."""

    seed: int
    pictures: int
    vae: Plan
    text: Plan
    coarse: Stage
    fine: Stage
    polish: Stage
    decoder: Plan
    further: Stage


# What made the checkpoint in this folder.
RECIPE = Recipe(
    seed=1,
    pictures=12_000,
    vae=Plan("vae", 2050, 2e-3, linear, 0.4, 0.995),
    text=Plan("text", 1300, 2e-3, linear, 0.4, 0.995),
    coarse=Stage(Plan("coarse", 900, 1.2e-3, cosine, 0.45, 0.998), 64, 2, 40, False),
    fine=Stage(Plan("fine", 1450, 1.2e-3, cosine, 0.45, 0.998), 40, 1, 77, True),
    polish=Stage(Plan("polish", 220, 7.2e-4, cosine, 0.2, 0.99, warm_up=20), 40, 1, 77, True),
    decoder=Plan("decoder", 500, 1e-3, linear, 0.4, 0.995),
    further=Stage(Plan("further", 3200, 1e-3, cosine, 0.3, 0.998), 40, 1, 77, False),
)


def main() -> None:
    """Train or resume every phase, then write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint, in diffusers' layout")
    parser.add_argument("--work", type=Path, help="folder for what can be resumed (default: OUT/work)")
    parser.add_argument("--start", type=Path, help="a finished checkpoint whose U-Net is to be trained further")
    options = parser.parse_args()
    work = options.work or options.out / "work"
    work.mkdir(parents=True, exist_ok=True)
    if options.start:
        go_on(RECIPE, options.start, options.out, work)
    else:
        make(RECIPE, options.out, work)


def make(recipe: Recipe, out: Path, work: Path) -> None:
    """Autoencoder beside text encoder, one process each; then two processes share the U-Net and the decoder."""
    if not (work / "tokenizer").exists():
        write_tokenizer(work / "tokenizer", recipe.seed + 1)
    shutil.copytree(work / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
    if not ((work / VAE_FILE).exists() and (work / READER_FILE).exists()):
        _run(_first_phases, recipe, work)
    _run_together(_last_phases, recipe, work, out)


def go_on(recipe: Recipe, start: Path, out: Path, work: Path) -> None:
    """Train the U-Net of a finished checkpoint further, and write the whole as a new one."""
    shutil.copytree(start / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
    _run_together(_further_phase, recipe, work, start, out)


def _run(phase: Callable[..., None], *arguments: object) -> None:
    """Run a function in two processes of one thread each: on a busy machine faster than one process of two."""
    start_processes(phase, arguments, nprocs=PROCESSES, start_method="spawn")


def _run_together(phase: Callable[..., None], recipe: Recipe, work: Path, *folders: Path) -> None:
    """Run a phase whose processes average their gradients."""
    (work / MEETING).unlink(missing_ok=True)
    _run(phase, recipe, work, *folders)


def _first_phases(number: int, recipe: Recipe, work: Path) -> None:
    """One process makes the autoencoder, the other the text encoder."""
    torch.set_num_threads(1)
    if number == 0:
        vae = train_vae(recipe.vae, work, recipe.seed)
        vae.register_to_config(scaling_factor=scaling_factor(vae, recipe.seed))
        write_torch((vae.state_dict(), vae.config.scaling_factor), work / VAE_FILE)
    else:
        words = Words(work / "tokenizer")
        reader = train_text(recipe.text, work, words, recipe.seed + 1)
        print("all attributes read, by depth:", *(f"{share:.2f}" for share in understanding(reader, words, 9)))
        write_torch(reader.state_dict(), work / READER_FILE)


def _meet(number: int, recipe: Recipe, work: Path) -> None:
    """Join the other process: from here on gradients are averaged."""
    torch.set_num_threads(1)
    meeting = (work / MEETING).resolve().as_uri()
    dist.init_process_group("gloo", init_method=meeting, rank=number, world_size=PROCESSES)
    torch.manual_seed(recipe.seed)


def _last_phases(number: int, recipe: Recipe, work: Path, out: Path) -> None:
    """Both processes train the U-Net, then the decoder, with averaged gradients; the first one writes the folder."""
    _meet(number, recipe, work)
    words = Words(work / "tokenizer")
    vae, generator = _load_vae(work), Generator(_load_reader(work, words))
    data = encoded(vae, recipe.seed, recipe.pictures, work)
    for stage in (recipe.coarse, recipe.fine, recipe.polish):
        train_unet(stage, generator, data, words, work)
    parts = {"unet": generator.unet, "text_encoder": generator.reader.text, "vae": vae}
    _save(parts, out)
    train_decoder(recipe.decoder, vae, data, work)
    _save(parts, out)
    dist.destroy_process_group()


def _further_phase(number: int, recipe: Recipe, work: Path, start: Path, out: Path) -> None:
    """Both processes train the U-Net on the finished text encoder and autoencoder; the first one writes the folder."""
    _meet(number, recipe, work)
    finished = load(start)
    reader = Reader(finished.words.end + 1)
    reader.text.load_state_dict(finished.text.state_dict())
    generator = Generator(reader)
    generator.unet.load_state_dict(finished.unet.state_dict())
    data = encoded(finished.vae, recipe.seed, recipe.pictures, work)
    train_unet(recipe.further, generator, data, finished.words, work)
    _save({"unet": generator.unet, "text_encoder": reader.text, "vae": finished.vae}, out)
    dist.destroy_process_group()


def _save(parts: dict[str, nn.Module], out: Path) -> None:
    if rank() == 0:
        save_pipeline(out, parts)


def _load_vae(work: Path) -> AutoencoderKL:
    weights, scale = torch.load(work / VAE_FILE, weights_only=True)
    vae = new_vae()
    vae.load_state_dict(weights)
    vae.register_to_config(scaling_factor=scale)
    return vae.eval()


def _load_reader(work: Path, words: Words) -> Reader:
    reader = Reader(words.end + 1)
    reader.load_state_dict(torch.load(work / READER_FILE, weights_only=True))
    return reader


if __name__ == "__main__":
    main()
