"""clipskip beside eager diffusers on the CPU: `python -m clipskip.bench.compare CHECKPOINT STORE`.

Same checkpoint, same run, same number of threads, turn by turn; and the same picture, or the ratio means nothing.
On a model as small as the sample the ratio of pictures is eager dispatch, not arithmetic: measure a full-size one too.
Prints a table for people and ends with one JSON line for machines.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import clipskip
from clipskip.backends import Array
from clipskip.backends.onnxruntime import OnnxRuntime
from clipskip.bench.measure import OWN_PATH, Contenders, Seconds, interleaved, summary, table
from clipskip.engines.manifest import Role
from clipskip.engines.store import Store

PROMPT, NEGATIVE, SEED = "a large red circle on a green background", "blue", 1
STEPS, CFG = 20, 6.0
SKIPS = [1, 2, 7, 13]
FIRST_PICTURES = {
    "clipskip": f"{OWN_PATH}import clipskip; clipskip.open(sys.argv[2])({PROMPT!r}, steps={STEPS})",
    "diffusers": f"{OWN_PATH}import torch; from diffusers import StableDiffusionPipeline as Pipeline; "
    "pipe = Pipeline.from_pretrained(sys.argv[1], dtype=torch.float32, safety_checker=None); "
    f"pipe({PROMPT!r}, num_inference_steps={STEPS})",
}


class Peer:
    """diffusers' StableDiffusionPipeline with the same sampler, fed contexts made from the hidden states."""

    def __init__(self, checkpoint: Path, threads: int) -> None:
        import torch
        from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.versions = {"torch": torch.__version__}
        self._generator = torch.Generator("cpu")
        self._pipe = StableDiffusionPipeline.from_pretrained(checkpoint, dtype=torch.float32, safety_checker=None)
        self._pipe.set_progress_bar_config(disable=True)
        self._pipe.scheduler = EulerDiscreteScheduler.from_config(
            self._pipe.scheduler.config, use_karras_sigmas=True, timestep_spacing="linspace", steps_offset=0
        )
        padding = {"padding": "max_length", "max_length": 77, "return_tensors": "pt"}
        self._tokens = self._pipe.tokenizer([PROMPT, NEGATIVE], **padding).input_ids

    def contexts(self, clip_skip: int) -> Any:
        """[2,77,D] of the two prompts: all layers run, then one is picked, as in diffusers' own code."""
        encoder = self._pipe.text_encoder
        hidden = encoder(self._tokens, output_hidden_states=True).hidden_states
        return encoder.final_layer_norm(hidden[len(hidden) - clip_skip])

    def picture(self, **prompt: Any) -> Any:
        """[height, width, 3] as whole numbers."""
        settings = {"num_inference_steps": STEPS, "guidance_scale": CFG, "output_type": "np"}
        made = self._pipe(generator=self._generator.manual_seed(SEED), **settings, **prompt)
        return np.rint(made.images[0] * 255).astype(int)

    def own_clip_skip(self) -> str:
        """What diffusers' own clip_skip does with the transformers that is installed."""
        try:
            self.picture(prompt=PROMPT, clip_skip=1)
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "works"


def measure(checkpoint: Path, store: Path, *, threads: int, rounds: int = 5) -> dict[str, Any]:
    """Text and whole pictures by clip skip, and the first picture of a new process; medians of at least 5."""
    peer, backend, rounds = Peer(checkpoint, threads), OnnxRuntime(threads=threads), max(5, rounds)
    pairs: dict[str, dict[str, Seconds]] = {}
    apart: dict[str, int] = {}
    with clipskip.open(store, backend=backend) as pipe:
        for skip in SKIPS:
            pairs[f"text, clip skip {skip}"] = _texts(Store(store), backend, peer, skip, rounds)
            contenders, apart[str(skip)] = _pictures(pipe, peer, skip)
            pairs[f"picture, clip skip {skip}"] = interleaved(contenders, rounds)
    commands = {who: [sys.executable, "-c", code, str(checkpoint), str(store)] for who, code in FIRST_PICTURES.items()}
    starts = {who: partial(subprocess.run, line, check=True, capture_output=True) for who, line in commands.items()}
    pairs["first picture of a process"] = interleaved(starts, rounds)
    medians = {name: {who: statistics.median(taken) for who, taken in pair.items()} for name, pair in pairs.items()}
    return {
        "bench": "compare",
        "threads": threads,
        "versions": {**backend.describe(), **peer.versions},
        "largest_pixel_difference": apart,
        "diffusers_own_clip_skip": peer.own_clip_skip(),
        "speedup": {name: round(median["diffusers"] / median["clipskip"], 2) for name, median in medians.items()},
        "stages": {f"{name}: {who}": summary(taken) for name, pair in pairs.items() for who, taken in pair.items()},
    }


def _texts(store: Store, backend: OnnxRuntime, peer: Peer, skip: int, rounds: int) -> dict[str, Seconds]:
    """Encoding two rows of 77 tokens, which are known on both sides."""
    facts = store.manifest().model
    artefact = store.find(Role("text", facts.kept[skip - 1]), backend.target, backend.precision)
    engine = backend.open(artefact, store.verify(artefact))
    feeds: dict[str, Array] = {"tokens": np.ones((2, 77), np.int64), "concepts": np.zeros((1, facts.width), np.float32)}
    contenders: Contenders = {"clipskip": lambda: engine.run(feeds), "diffusers": lambda: peer.contexts(skip)}
    return interleaved(contenders, 4 * rounds, warmups=3)


def _pictures(pipe: clipskip.Pipeline, peer: Peer, skip: int) -> tuple[Contenders, int]:
    """Whole pictures from known contexts (clipskip caches them), and how far they are apart, of 255."""
    request = clipskip.Request(
        prompt=PROMPT, negative_prompt=NEGATIVE, clip_skip=skip, steps=STEPS, cfg=CFG, seed=SEED,
        sampler="Euler", schedule="karras",
    )  # fmt: skip
    prompt, negative = peer.contexts(skip).chunk(2)
    embeds = {"prompt_embeds": prompt, "negative_prompt_embeds": negative}
    apart = np.abs(np.asarray(pipe(request).images[0], int) - peer.picture(**embeds)).max()
    return {"clipskip": lambda: pipe(request), "diffusers": lambda: peer.picture(**embeds)}, int(apart)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="clipskip.bench.compare", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="in diffusers' layout")
    parser.add_argument("store", type=Path, help="exported from it")
    parser.add_argument("--threads", type=int, default=OnnxRuntime().threads, help="of either side")
    parser.add_argument("--rounds", type=int, default=5, help="at least 5")
    args = parser.parse_args(arguments)
    report = measure(args.checkpoint, args.store, threads=args.threads, rounds=args.rounds)
    print(table(report["stages"]))
    for name, ratio in report["speedup"].items():
        print(f"{name}: {ratio}x")
    print(f"diffusers' own clip_skip: {report['diffusers_own_clip_skip']}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
