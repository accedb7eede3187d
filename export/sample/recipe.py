"""The phases of training in their order, and the numbers that decide the result."""

from __future__ import annotations

import time
from collections.abc import Generator as Produced
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from drawing import Drawn
from latents import encoded, scaling_factor, train_decoder
from networks import new_vae, save_pipeline
from sampling import load
from text_phase import Reader, train_text, understanding
from training import Plan, best_device, cosine, linear, write_torch
from unet_phase import Generator, train_unet
from vae_phase import train_vae
from words import Words

Parts = Produced[Drawn, None, None]
VAE = Plan("vae", 2050, 2e-3, linear, 0.4, 0.995)
TEXT = Plan("text", 1300, 2e-3, linear, 0.4, 0.995)
UNET = Plan("unet", None, 1e-3, cosine, 0.2, 0.998, warm_up=200)
DECODER = Plan("decoder", 500, 1e-3, linear, 0.4, 0.995)
VAE_FILE, READER_FILE = "vae.pt", "reader.pt"
DATA_SHARE = 0.2  # of the time, at most, for encoding what is drawn
WRITING = 3.0  # seconds


@dataclass(frozen=True)
class Run:
    """One call of the program: its seed and folders, when its time began (time.monotonic()) and how long it is."""

    seed: int
    out: Path
    work: Path
    began: float
    seconds: float


def make(run: Run, parts: Parts) -> None:
    """Autoencoder and text encoder from nothing, then the U-Net with them, and the decoder again."""
    device, words = _device(run), Words(run.out / "tokenizer")
    if not (run.work / VAE_FILE).exists():
        vae = train_vae(VAE, run.work, run.seed, device)
        vae.register_to_config(scaling_factor=scaling_factor(vae, run.seed))
        write_torch((vae.state_dict(), vae.config.scaling_factor), run.work / VAE_FILE)
    if not (run.work / READER_FILE).exists():
        reader = train_text(TEXT, run.work, words, run.seed + 1, device)
        print("all attributes read, by depth:", *(f"{share:.2f}" for share in understanding(reader, words, 9)))
        write_torch(reader.state_dict(), run.work / READER_FILE)
    vae, reader = new_vae().to(device), Reader(words.end + 1).to(device)
    weights, scale = torch.load(run.work / VAE_FILE, weights_only=True, map_location=device)
    vae.load_state_dict(weights)
    vae.register_to_config(scaling_factor=scale)
    reader.load_state_dict(torch.load(run.work / READER_FILE, weights_only=True, map_location=device))
    run = replace(run, began=time.monotonic())
    generator = Generator(reader).to(device)
    _unet(run, generator, vae, words, parts)
    train_decoder(DECODER, vae, run.work)
    _save(run, generator, vae)


def go_on(run: Run, start: Path, parts: Parts) -> None:
    """Train the U-Net and the text encoder of a finished checkpoint further, and write the whole as a new one."""
    device = _device(run)
    torch.manual_seed(run.seed)
    finished = load(start, device)
    reader = Reader(finished.words.end + 1).to(device)
    reader.text.load_state_dict(finished.text.state_dict())
    generator = Generator(reader).to(device)
    generator.unet.load_state_dict(finished.unet.state_dict())
    _unet(run, generator, finished.vae, finished.words, parts)


def _device(run: Run) -> torch.device:
    device = best_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{time.monotonic() - run.began:.1f} s: training on {device.type}, {name}", flush=True)
    return device


def _unet(run: Run, generator: Generator, vae: AutoencoderKL, words: Words, parts: Parts) -> None:
    """The U-Net's phase within the run's time, its data included; then the folder."""
    generator.begin_last_layer()
    vae.requires_grad_(False)
    data = encoded(vae, parts, time.monotonic() + DATA_SHARE * run.seconds)
    print(f"{time.monotonic() - run.began:.1f} s: {len(data.mean)} pictures as latents", flush=True)
    empty = torch.from_numpy(words([""])).to(data.mean.device)
    until = run.began + run.seconds - WRITING
    if time.monotonic() > until:
        raise SystemExit("the time was over before the U-Net could be trained: give more --minutes")
    train_unet(UNET, generator, data, empty, run.work, until)
    _save(run, generator, vae)


def _save(run: Run, generator: Generator, vae: AutoencoderKL) -> None:
    save_pipeline(run.out, {"unet": generator.unet, "text_encoder": generator.reader.text, "vae": vae})
    print(f"{time.monotonic() - run.began:.1f} s: {run.out} is written", flush=True)
