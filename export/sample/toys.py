"""Makes toy checkpoints whose right clip skip is known, for their U-Nets were trained at it: minutes each on two cores.

A text encoder of six layers learns captions as CLIP does, through what its last layer gives at the end token, and is
then frozen. Each U-Net sees the hidden states of one depth, or of all in turn. Knows nothing of what is asked of them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captions import Writer
from diffusers import AutoencoderKL, UNet2DConditionModel
from grammar import ATTRIBUTES
from networks import new_scheduler, new_text_encoder, save_pipeline
from PIL import Image, ImageOps
from scenes import draw, random_scene
from torch import Tensor, nn
from torch.nn import functional
from words import Words

HERE = Path(__file__).parent
LAYERS, WIDTH, SIDE = 6, 64, 64
DEPTHS = {"first": (LAYERS,), "second": (LAYERS - 1,), "mixed": tuple(range(LAYERS + 1))}  # layers that a U-Net saw
PICTURES, CAPTIONS, TEXT_STEPS, UNET_STEPS = 3000, 96, 600, 1200
BATCH, EMPTY, TIMESTEPS, SHOWN = 64, 0.1, 1000, 200
PROCESSES = 2  # of one thread each: on a busy machine faster than one process of two


def make(folder: Path) -> None:
    """Checkpoints in diffusers' layout, a folder each, and what they share; what is there already stays."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "shared.pt").exists():
        torch.save(shared(), folder / "shared.partial")
        (folder / "shared.partial").replace(folder / "shared.pt")
    missing = [name for name in DEPTHS if not (folder / name / "model_index.json").exists()]
    with ProcessPoolExecutor(PROCESSES, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        for _ in pool.map(partial(finish, folder), missing):
            pass


def shared() -> dict[str, Any]:
    """The text encoder's weights; latents [n,4,8,8] of drawn pictures; the contexts of their captions at each depth."""
    torch.manual_seed(1)
    words, vae = Words(HERE / "tokenizer"), autoencoder()
    text = text_encoder(words)
    print(f"encoding {PICTURES} pictures", flush=True)
    pairs = captioned(np.random.default_rng(1), PICTURES, held_out=False)
    latents = encoded(vae, [picture for picture, _ in pairs])
    contexts = read(text, words, [caption for _, caption in pairs])
    return {"text": text.state_dict(), "latents": latents, "contexts": contexts}


def finish(folder: Path, name: str) -> None:
    """Train one U-Net, and write its checkpoint."""
    data = torch.load(folder / "shared.pt", weights_only=True, mmap=True)
    words = Words(HERE / "tokenizer")
    text = shallow_text_encoder(words)
    text.load_state_dict(data["text"])
    unet = denoiser(data["latents"], data["contexts"], name)
    shutil.copytree(HERE / "tokenizer", folder / name / "tokenizer", dirs_exist_ok=True)
    save_pipeline(folder / name, {"text_encoder": text, "unet": unet, "vae": autoencoder()})
    unet.half().save_pretrained(folder / name / "unet")  # without the clip skip that the sample's file may note


def captioned(rng: np.random.Generator, count: int, held_out: bool) -> list[tuple[Image.Image, str]]:
    """Drawn pictures and what one might write about them; held out are combinations that no training picture shows."""
    writer, pairs = Writer(rng), []
    for _ in range(count):
        scene = random_scene(rng, held_out=held_out)
        pairs.append((Image.fromarray(draw(scene, rng)), writer.caption(scene).text))
    return pairs


def autoencoder() -> Any:
    return AutoencoderKL.from_pretrained(HERE / "vae", low_cpu_mem_usage=False).eval()


def shallow_text_encoder(words: Words) -> Any:
    """The sample's, with fewer layers."""
    text = new_text_encoder(words.end + 1)
    text.encoder.layers, text.config.num_hidden_layers = text.encoder.layers[:LAYERS], LAYERS
    return text


def text_encoder(words: Words) -> Any:
    """Trained on captions alone: a linear head reads every fact at the end token."""
    text = shallow_text_encoder(words)
    classes = [1 + len(options) for options in ATTRIBUTES.values()]
    head, rng = nn.Linear(WIDTH, sum(classes)), np.random.default_rng(1)
    writer = Writer(rng)
    for step, learn in _steps([text, head], TEXT_STEPS):
        written = [writer.caption(random_scene(rng)) for _ in range(CAPTIONS)]
        ids = torch.as_tensor(words([caption.text for caption in written]))[:, :40]  # no caption is longer
        ends = (ids == words.end).int().argmax(1)
        answers = head(text(input_ids=ids).last_hidden_state[torch.arange(CAPTIONS), ends])
        labels = torch.tensor([caption.labels() for caption in written])
        facts = zip(torch.split(answers, classes, 1), labels.unbind(1), strict=True)
        loss = torch.stack([functional.cross_entropy(answer, label) for answer, label in facts]).mean()
        learn(loss)
        if step % SHOWN == SHOWN - 1:
            print(f"text encoder, step {step + 1} of {TEXT_STEPS}: {loss.detach():.3f}", flush=True)
    return text.eval().requires_grad_(False)


@torch.no_grad()
def encoded(vae: Any, pictures: Sequence[Image.Image]) -> Tensor:
    """As `recommend` does it."""
    small = [ImageOps.fit(picture, (SIDE, SIDE), Image.Resampling.LANCZOS) for picture in pictures]
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in small])).permute(0, 3, 1, 2)
    means = [vae.encode(part.float() / 127.5 - 1).latent_dist.mean for part in torch.split(pixels, BATCH)]
    scaled: Tensor = torch.cat(means) * vae.config.scaling_factor
    return scaled


@torch.no_grad()
def read(text: Any, words: Words, captions: Sequence[str]) -> Tensor:
    """The contexts [7,n+1,77,64] in fp16: at each depth of each caption and, last, of the empty one."""
    parts = torch.as_tensor(words([*captions, ""])).split(BATCH)
    states = [torch.stack(text(input_ids=ids, output_hidden_states=True).hidden_states) for ids in parts]
    return torch.cat([text.final_layer_norm(state).half() for state in states], 1)


def denoiser(latents: Tensor, contexts: Tensor, name: str) -> Any:
    """A U-Net trained on Ho et al. 2020, eq. 14, with captions that are read at the depths of this name."""
    torch.manual_seed(2)
    unet = UNet2DConditionModel(
        sample_size=SIDE // 8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=WIDTH,
        down_block_types=("CrossAttnDownBlock2D",) * 2, up_block_types=("CrossAttnUpBlock2D",) * 2,
        attention_head_dim=4, norm_num_groups=8,
    )  # fmt: skip
    depths = torch.tensor(DEPTHS[name])
    abar, mean = new_scheduler().alphas_cumprod, 1.0
    for step, learn in _steps([unet], UNET_STEPS):
        rows = torch.randint(len(latents), (BATCH,))
        captions = torch.where(torch.rand(BATCH) < EMPTY, len(latents), rows)
        context = contexts[depths[torch.randint(len(depths), (BATCH,))], captions].float()
        t = ((torch.arange(BATCH) + torch.rand(BATCH)) / BATCH * TIMESTEPS).long()
        noise, signal = torch.randn(BATCH, *latents.shape[1:]), abar[t].view(-1, 1, 1, 1)
        noisy = signal.sqrt() * latents[rows] + (1 - signal).sqrt() * noise
        loss = (unet(noisy, t, context).sample - noise).square().mean()
        learn(loss)
        mean += (float(loss.detach()) - mean) / min(step + 1, 100)
        if step % SHOWN == SHOWN - 1:
            print(f"U-Net {name}, step {step + 1} of {UNET_STEPS}: loss {mean:.4f}", flush=True)
    return unet.eval()


def _steps(parts: Sequence[nn.Module], steps: int) -> Iterator[tuple[int, Callable[[Tensor], None]]]:
    """The steps of a training, each with what takes its loss: AdamW, a warm rise, half a cosine down."""
    parameters = [parameter for part in parts for parameter in part.parameters()]
    optimiser = torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=0.005)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, steps, pct_start=0.1)

    def learn(loss: Tensor) -> None:
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        rate.step()

    return ((step, learn) for step in range(steps))
