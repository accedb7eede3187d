"""One way to compute a checkpoint's stages, in a process that is told when: `python peer.py NAME CHECKPOINT STORE`.

Reads requests from stdin and answers on stdout, a JSON line each (see `serve`). Runs as a file, also in environments
without clipskip: every library is imported by the peer that needs it. Knows nothing of rounds and of other peers.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

PROMPT, NEGATIVE, SEED, CFG = "a large red circle on a green background", "blue", 1, 6.0
TOKENS, LATENT = 77, 8
POINT = (slice(None), 0)  # of the next state: the first slot, into which `feeds` lets the step write
Run = Callable[[int, int], Any]  # clip skip, and the number of the run: the result as an array


@dataclass(frozen=True)
class Stage:
    """What is timed: "text", "step", "decode" or "picture" of so many pixels a side, at these clip skips."""

    part: str
    size: int
    skips: Sequence[int]
    steps: int

    def name(self, skip: int) -> str:
        """As reports have it."""
        return f"{self.part} {self.size}" if self.part in ("step", "decode") else f"{self.part}, clip skip {skip}"

    def arrays(self, vocabulary: int, width: int) -> dict[str, Any]:
        """The same numbers for every peer: tokens [2,77], latents [1,4,h,w], context [2,77,D]."""
        import numpy as np

        random, latent = np.random.default_rng(0), self.size // LATENT
        return {
            "tokens": random.integers(0, vocabulary, (2, TOKENS)),
            "latents": random.standard_normal((1, 4, latent, latent)).astype(np.float32),
            "context": random.standard_normal((2, TOKENS, width)).astype(np.float32),
        }


class Engines:
    """A store's engines, by the library of one backend: what both ways to use them share."""

    def __init__(self, store: Path, target: str) -> None:
        from clipskip.backends import backend_named
        from clipskip.engine_cache import EngineCache
        from clipskip.engines.store import Store

        self.store, self.backend = Store(store), backend_named(target)
        self.cache, self.model = EngineCache(self.store, self.backend, 0), self.store.manifest().model
        self.facts = self.backend.describe()

    def artefact(self, part: str, skip: int) -> tuple[Any, Path]:
        from clipskip.engines.manifest import Role

        artefact = self.cache.artefact(Role("text", self.model.kept[skip - 1]) if part == "text" else Role(part))
        return artefact, self.store.verify(artefact)

    def feeds(self, stage: Stage, ports: Sequence[Any]) -> dict[str, Any]:
        """The step guides at 6 and gives the guided output of the U-Net as it is, so that it can be compared."""
        import numpy as np

        latent = stage.size // LATENT
        sizes = {"B": 1, "N": 2, "R": 2, "T": TOKENS, "E": 1, "h": latent, "w": latent}
        zeros = {port.name: np.zeros(port.sized(sizes), port.dtype) for port in ports}
        given = stage.arrays(self.model.vocabulary, self.model.width)
        if stage.part == "step":
            state, update = zeros["state"], zeros["update"]
            state[:, 0], update[:, 0, 5] = given["latents"], 1
            mix, reference = np.array([[CFG, 1 - CFG]]), np.array([[1.0, 0.0]])
            given |= {"state": state, "update": update, "mix": mix, "reference": reference, "timestep": np.array([500])}
            given |= {"c_in": np.ones(1), "mask": np.ones_like(zeros["mask"])}
        return zeros | {name: given[name].astype(zeros[name].dtype) for name in given if name in zeros}


class Clipskip(Engines):
    """Ours: the runtime's engines, and its pipeline for pictures."""

    def open(self, stage: Stage) -> Run:
        import numpy as np

        import clipskip

        if stage.part == "picture":
            pipe = clipskip.open(self.store.root, backend=self.backend)
            size = {"width": stage.size, "height": stage.size, "steps": stage.steps, "seed": SEED, "cfg": CFG}
            locked = {**size, "negative_prompt": NEGATIVE, "sampler": "Euler", "schedule": "karras"}
            return lambda skip, number: np.asarray(
                pipe(f"{PROMPT} {number}", clip_skip=skip, **locked).images[0], np.float32
            )
        engines = {skip: self.backend.open(*self.artefact(stage.part, skip)) for skip in stage.skips}
        feeds = {skip: self.feeds(stage, engine.artefact.inputs) for skip, engine in engines.items()}
        name, part = engines[stage.skips[0]].artefact.outputs[0].name, POINT if stage.part == "step" else ...
        return lambda skip, _: engines[skip].run(feeds[skip])[name][part]


class OpenVino(Engines):
    """OpenVINO as its own users call it, on our graphs, with its own settings but the precision."""

    def __init__(self, store: Path, precision: str) -> None:
        super().__init__(store, "openvino")
        import openvino

        self._core, self._precision = openvino.Core(), precision
        if precision == "bf16" and "BF16" not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise RuntimeError("this processor has no bfloat16")

    def open(self, stage: Stage) -> Run | None:
        if stage.part == "picture":
            return None  # it has no pipeline of its own
        requests, feeds = {}, {}
        for skip in stage.skips:
            artefact, path = self.artefact(stage.part, skip)
            hints = {"INFERENCE_PRECISION_HINT": self._precision, "PERFORMANCE_HINT": "LATENCY"}
            requests[skip] = self._core.compile_model(str(path), "CPU", hints).create_infer_request()
            feeds[skip] = self.feeds(stage, artefact.inputs)
        part = POINT if stage.part == "step" else ...
        return lambda skip, _: requests[skip].infer(feeds[skip])[0][part]


class Diffusers:
    """diffusers' StableDiffusionPipeline, with our sampler's twin, fed contexts made from the hidden states."""

    def __init__(self, checkpoint: Path, dtype: str) -> None:
        import diffusers
        import torch

        torch.set_grad_enabled(False)
        torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        self._torch, self._dtype = torch, getattr(torch, dtype)
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(checkpoint, dtype=self._dtype, safety_checker=None)
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(
            pipe.scheduler.config, use_karras_sigmas=True, timestep_spacing="linspace", steps_offset=0
        )
        self._pipe, self.facts = pipe, {"torch": torch.__version__, "diffusers": diffusers.__version__}

    def contexts(self, tokens: Any, skip: int) -> Any:
        """[2,77,D]: all layers run, then one is picked, as in diffusers' own code."""
        encoder = self._pipe.text_encoder
        hidden = encoder(tokens, output_hidden_states=True).hidden_states
        return encoder.final_layer_norm(hidden[len(hidden) - skip])

    def picture(self, stage: Stage, skip: int, number: int) -> Any:
        """[h,w,3] from 0 to 255, of a new prompt."""
        padding = {"padding": "max_length", "max_length": TOKENS, "return_tensors": "pt"}
        tokens = self._pipe.tokenizer([f"{PROMPT} {number}", NEGATIVE], **padding).input_ids
        prompt, negative = self.contexts(tokens, skip).chunk(2)
        size = {"width": stage.size, "height": stage.size, "num_inference_steps": stage.steps}
        made = self._pipe(
            prompt_embeds=prompt, negative_prompt_embeds=negative, guidance_scale=CFG, output_type="np", **size,
            generator=self._torch.Generator("cpu").manual_seed(SEED),
        )  # fmt: skip
        return (made.images[0] * 255).round()

    def open(self, stage: Stage) -> Run | None:
        pipe, torch = self._pipe, self._torch
        config = pipe.text_encoder.config
        given = {name: torch.from_numpy(x) for name, x in stage.arrays(config.vocab_size, config.hidden_size).items()}
        twice, context = given["latents"].repeat(2, 1, 1, 1).to(self._dtype), given["context"].to(self._dtype)
        scaled = (given["latents"] / pipe.vae.config.scaling_factor).to(self._dtype)

        def step(skip: int, number: int) -> Any:
            out = pipe.unet(twice, 500, context, return_dict=False)[0].float()
            return (CFG * out[:1] + (1 - CFG) * out[1:]).numpy()

        def decode(skip: int, number: int) -> Any:
            decoded = pipe.vae.decode(scaled, return_dict=False)[0].float()
            return ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy()

        parts: Mapping[str, Run] = {
            "text": lambda skip, _: self.contexts(given["tokens"], skip).float().numpy(),
            "step": step, "decode": decode, "picture": partial(self.picture, stage),
        }  # fmt: skip
        return parts[stage.part]


class Compiled(Diffusers):
    """With a U-Net that torch.compile took, weights frozen into it: for every size anew, which takes minutes."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(checkpoint, "float32")
        import torch._inductor.config

        torch._inductor.config.freezing = True
        self._pipe.unet = self._torch.compile(self._pipe.unet, dynamic=False)

    def open(self, stage: Stage) -> Run | None:
        return super().open(stage) if stage.part in ("step", "picture") else None  # the rest is not compiled


class Optimum:
    """optimum-onnx: its own export of the checkpoint, and diffusers' pipeline over ONNX Runtime."""

    def __init__(self, checkpoint: Path, folder: Path) -> None:
        from importlib import metadata

        from optimum.onnxruntime import ORTStableDiffusionPipeline as Pipeline  # type: ignore[import-not-found]

        if not (folder / "model_index.json").exists():
            Pipeline.from_pretrained(checkpoint, export=True).save_pretrained(folder)
        self._pipe = Pipeline.from_pretrained(folder)
        self.facts = {name: metadata.version(name) for name in ("optimum-onnx", "onnxruntime", "diffusers")}

    def open(self, stage: Stage) -> Run | None:
        if stage.part != "picture":
            return None
        import numpy as np

        size = {"width": stage.size, "height": stage.size, "num_inference_steps": stage.steps}
        settings = {**size, "negative_prompt": NEGATIVE, "guidance_scale": CFG, "output_type": "np"}
        return lambda _, number: np.asarray(self._pipe(f"{PROMPT} {number}", **settings).images[0]) * 255


PEERS: Mapping[str, Callable[[Path, Path], Any]] = {  # from the checkpoint and the store; the first is ours
    "clipskip": lambda checkpoint, store: Clipskip(store, "onnxruntime"),
    "clipskip on OpenVINO": lambda checkpoint, store: Clipskip(store, "openvino"),
    "clipskip on OpenVINO with a bf16 step": lambda checkpoint, store: Clipskip(store, "openvino-bf16"),
    "OpenVINO": lambda checkpoint, store: OpenVino(store, "f32"),
    "OpenVINO bf16": lambda checkpoint, store: OpenVino(store, "bf16"),
    "diffusers": lambda checkpoint, store: Diffusers(checkpoint, "float32"),
    "diffusers bf16": lambda checkpoint, store: Diffusers(checkpoint, "bfloat16"),
    "torch.compile": lambda checkpoint, store: Compiled(checkpoint),
    "optimum-onnx": lambda checkpoint, store: Optimum(checkpoint, store.parent / f"{store.name}-optimum"),
}


class Server:
    """What a peer does when it is asked to; its last result is what `output` writes."""

    def __init__(self, peer: Any) -> None:
        self._peer, self._run, self._result, self._count = peer, None, None, 0

    def open(self, **stage: Any) -> dict[str, Any]:
        """Make a stage ready: {"ready": whether the peer has such a stage, "facts": its versions}."""
        self._run = None  # frees what was open before
        self._run = self._peer.open(Stage(**stage))
        return {"ready": self._run is not None, "facts": self._peer.facts}

    def run(self, skip: int) -> dict[str, Any]:
        """Run it once: {"seconds"}."""
        assert self._run is not None
        self._count += 1
        began = time.perf_counter()
        self._result = self._run(skip, self._count)
        return {"seconds": time.perf_counter() - began}

    def output(self, path: str, skip: int) -> dict[str, Any]:
        """Write what run number 0 gives, which is the same for every peer: {}."""
        import numpy as np

        assert self._run is not None
        np.save(path, np.asarray(self._run(skip, 0), np.float32))
        return {}


def serve(make: Callable[[], Any]) -> None:
    """Answer {"do": "open"|"run"|"output", ...} with what the method of that name gives, or {"error": why}."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is not an answer
    server: Server | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            server = server or Server(make())
            answer = getattr(server, request.pop("do"))(**request)
        except Exception as error:  # of whichever library it is
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    sys.path.pop(0)  # this folder's modules are named after what they do, as others' are
    serve(partial(PEERS[sys.argv[1]], Path(sys.argv[2]), Path(sys.argv[3])))
