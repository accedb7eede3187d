"""PyTorch's side of `bench.gpu`: diffusers' networks and pipeline of one checkpoint: eager, captured, compiled.

On the CPU, where this is tested, in float32 and only eager. Knows nothing of stores and timing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline

from clipskip.bench.gpu import STEPS, Contender, Stage, Work, nothing
from clipskip.bench.store import NEGATIVE, PROMPT
from clipskip.engines.shapes import LATENT, TOKENS
from clipskip.errors import BackendUnavailable


def contenders(checkpoint: Path, device: str) -> list[Contender]:
    """All of them, on "cpu" or "cuda"; BackendUnavailable where this torch has no CUDA."""
    if device == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable(f"torch {torch.__version__} finds no GPU", hint="install its build for CUDA")
    made = {"eager": lambda pipe: None, "channels_last": _last}
    made |= {"captured": _last, "compile": _compiled} if device == "cuda" else {}
    return [Networks(f"torch {name}", checkpoint, device, prepare) for name, prepare in made.items()]


def _last(pipe: Any) -> None:
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.vae.to(memory_format=torch.channels_last)


def _compiled(pipe: Any) -> None:
    _last(pipe)
    for module in (pipe.unet, pipe.vae.decoder):
        module.compile(mode="max-autotune", fullgraph=True, dynamic=False)  # with CUDA graphs


class Networks:
    """A checkpoint's networks after `prepare`. A step is the U-Net alone: guidance and solver would come on top."""

    def __init__(self, name: str, checkpoint: Path, device: str, prepare: Callable[[Any], None]) -> None:
        torch.backends.cudnn.benchmark = True
        cudnn = str(torch.backends.cudnn.version())  # type: ignore[no-untyped-call]
        self.facts: Mapping[str, str] = {"torch": torch.__version__, "diffusers": diffusers.__version__, "cudnn": cudnn}
        self.name, self._device = name, device
        self._dtype = torch.float16 if device == "cuda" else torch.float32
        pipe = StableDiffusionPipeline.from_pretrained(checkpoint, dtype=self._dtype, safety_checker=None)
        pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)  # a call of the U-Net a step
        pipe.set_progress_bar_config(disable=True)
        self._pipe: Any = pipe.to(device)
        prepare(self._pipe)

    def open(self, stage: Stage) -> Work | None:
        """The stage on random inputs. Of the text encoder all layers run, whatever the depth: only that is one."""
        pipe = self._pipe
        make: dict[str, Any] = {"device": self._device, "dtype": self._dtype}
        latents = torch.randn(stage.images, 4, *[stage.size // LATENT] * 2, **make)
        tokens = torch.ones(2, TOKENS, dtype=torch.int64, device=self._device)
        if stage.part.startswith("text") and int(stage.part[5:]) != pipe.text_encoder.config.num_hidden_layers:
            return None
        context = torch.randn(2 * stage.images, TOKENS, pipe.text_encoder.config.hidden_size, **make)
        settings = {"height": stage.size, "width": stage.size, "num_inference_steps": STEPS, "output_type": "np"}
        twice, when = torch.cat([latents] * 2), torch.full((2 * stage.images,), 500, device=self._device)
        calls: dict[str, Callable[[], object]] = {
            "text": lambda: pipe.text_encoder(tokens),
            "step": lambda: pipe.unet(twice, when, context),
            "decode": lambda: pipe.vae.decode(latents),
            "picture": lambda: pipe(PROMPT, negative_prompt=NEGATIVE, **settings),
        }
        wait = torch.cuda.synchronize if self._device == "cuda" else nothing
        call = torch.no_grad()(calls[stage.part.partition("-")[0]])
        if self.name != "torch captured":
            return Work(call, wait, nothing)
        return Work(captured(call).replay, wait, nothing) if stage.part != "picture" else None


def captured(call: Callable[[], object]) -> Any:
    """What it launches, as a CUDA graph."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for _ in range(3):  # what is chosen and allocated at first
            call()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        call()
    return graph
