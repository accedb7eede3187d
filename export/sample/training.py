"""What every phase shares: the device, the optimiser step, its schedule, averaged weights, checkpoints."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SAVE_EVERY, LOG_EVERY = 40.0, 5.0  # seconds
SHOWN_EVERY = 20  # steps: reading a figure waits for the GPU, so the clock and the rate are never far ahead of it
WARM_STEPS = 3


@dataclass(frozen=True)
class Plan:
    """How one phase trains: its name, its number of steps (or None: until its time is over), its rates."""

    name: str
    steps: int | None
    rate: float
    decay: Callable[[float, float], float]
    decay_from: float
    ema: float
    warm_up: int = 100
    weight_decay: float = 0.005
    clip: float = 1.0


def linear(progress: float, start: float) -> float:
    """Constant until `start` of the phase, then a straight line to 1 %."""
    return 1.0 - 0.99 * max(0.0, (progress - start) / (1.0 - start))


def cosine(progress: float, start: float) -> float:
    """Constant until `start` of the phase, then half a cosine to 1 %."""
    return 0.505 + 0.495 * math.cos(math.pi * max(0.0, (progress - start) / (1.0 - start)))


def best_device() -> torch.device:
    """The GPU where there is one, with TF32 and cuDNN's search for kernels; else the CPU."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Trainer:
    """Trains one module for one phase; resumes from its checkpoint; `averaged` holds the weights to keep.

    `rates`: beginnings of parameters' names with rates of their own, the first that fits; `until`: when a phase
    without a number of steps is over, by time.monotonic(). What `learn` does can be captured as a CUDA graph: it
    reads the rates and the average's weight from tensors, which `steps` fills before each step.
    """

    def __init__(
        self, module: nn.Module, plan: Plan, work: Path, rates: dict[str, float] | None = None, until: float = math.inf
    ) -> None:
        self.module, self.plan, self.path = module, plan, work / f"{plan.name}.checkpoint.pt"
        groups = _groups(module, plan.rate, rates or {})
        self.full_rates = list(groups)
        self.trained = [value for values in groups.values() for value in values]
        self.device = self.trained[0].device
        settings = [{"params": values, "lr": torch.tensor(rate, device=self.device)} for rate, values in groups.items()]
        self.optimiser = torch.optim.AdamW(
            settings, betas=(0.9, 0.99), weight_decay=plan.weight_decay, fused=True,
            capturable=self.device.type == "cuda",
        )  # fmt: skip
        self.averaged = {name: value.detach().clone() for name, value in module.named_parameters()}
        self.forget = torch.zeros((), device=self.device)
        self.step, self.earlier, self.log = 0, 0.0, Log(plan.name)
        self.began = self.saved = time.monotonic()
        self.until = until
        if self.path.exists():
            self._load()

    @property
    def progress(self) -> float:
        """How much of the phase is done, 0 to 1: of its steps, or of the time left when it was begun or resumed."""
        if self.plan.steps is not None:
            return self.step / self.plan.steps
        now = time.monotonic()
        return (
            self.earlier + (1 - self.earlier) * (now - self.began) / (self.until - self.began)
            if now < self.until
            else 1
        )

    def steps(self) -> Iterator[int]:
        """The steps still to do; saves a checkpoint now and then."""
        while (progress := self.progress) < 1:
            self._prepare(progress)
            yield self.step
            self.step += 1
            if time.monotonic() - self.saved > SAVE_EVERY:
                self._save(self.progress)
        self._save(1.0)

    def _prepare(self, progress: float) -> None:
        share = min(1.0, (self.step + 1) / self.plan.warm_up) * self.plan.decay(progress, self.plan.decay_from)
        for group, full in zip(self.optimiser.param_groups, self.full_rates, strict=True):
            group["lr"].fill_(full * share)
        self.forget.fill_(1 - min(self.plan.ema, (1 + self.step) / (10 + self.step)))

    def learn(self, loss: Tensor) -> None:
        """One optimiser step on a loss, and the average of the weights: on the device alone."""
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        for group in self.optimiser.param_groups:
            nn.utils.clip_grad_norm_(group["params"], self.plan.clip)
        self.optimiser.step()
        with torch.no_grad():
            averaged = list(self.averaged.values())
            apart = torch._foreach_sub(list(self.module.parameters()), averaged)
            torch._foreach_mul_(apart, self.forget)
            torch._foreach_add_(averaged, apart)

    def show(self, **figures: Tensor) -> None:
        """Figures for the log; most steps do not read them."""
        if self.step % SHOWN_EVERY == 0:
            self.log.add(self.step, self.progress, **{name: float(value) for name, value in figures.items()})

    def update(self, loss: Tensor, **figures: Tensor) -> None:
        """Learn and show."""
        self.learn(loss)
        self.show(loss=loss.detach(), **figures)

    def use_averaged(self) -> None:
        """Put the averaged weights into the module: the end of a phase."""
        self.module.load_state_dict(self.averaged, strict=False)

    def _save(self, progress: float) -> None:
        state = {"step": self.step, "progress": min(progress, 1.0), "module": self.module.state_dict()}
        write_torch({**state, "averaged": self.averaged, "optimiser": self.optimiser.state_dict()}, self.path)
        self.saved = time.monotonic()

    def _load(self) -> None:
        state: dict[str, Any] = torch.load(self.path, weights_only=True, map_location=self.device)
        self.step, self.earlier, self.averaged = state["step"], state["progress"], state["averaged"]
        self.log.since_step = self.step
        self.module.load_state_dict(state["module"])
        self.optimiser.load_state_dict(state["optimiser"])


def captured(step: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """The step as one launch of a captured CUDA graph; as it is on a CPU, or where it cannot be captured.

    The step must draw no random numbers and read nothing back; the first ones, outside the graph, are true steps.
    """
    if device.type != "cuda":
        return step
    usual, aside, graph = torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.CUDAGraph()
    aside.wait_stream(usual)
    with torch.cuda.stream(aside):
        for _ in range(WARM_STEPS):
            step()
    usual.wait_stream(aside)
    torch.cuda.synchronize()
    try:
        with torch.cuda.graph(graph):
            shown = step()
    except RuntimeError as error:
        torch.cuda.set_stream(usual)  # a failed capture leaves its own
        torch.cuda.synchronize()
        print(f"not captured, so each step is launched kernel by kernel: {error}", flush=True)
        return step

    def replay() -> Tensor:
        graph.replay()
        return shown

    return replay


@dataclass
class Log:
    """Prints the mean of the last figures now and then, with the time a step takes."""

    name: str
    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0
    since: float = field(default_factory=time.monotonic)
    since_step: int = 0

    def add(self, step: int, progress: float, **figures: float) -> None:
        self.count += 1
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        if (seconds := time.monotonic() - self.since) < LOG_EVERY:
            return
        text = " ".join(f"{name} {value / self.count:.4f}" for name, value in self.sums.items())
        speed = 1e3 * seconds / max(step - self.since_step, 1)
        print(f"{self.name} {progress:.1%} step {step} {speed:.1f} ms/step {text}", flush=True)
        self.sums, self.count, self.since, self.since_step = {}, 0, time.monotonic(), step


def _groups(module: nn.Module, rate: float, rates: dict[str, float]) -> dict[float, list[nn.Parameter]]:
    """The trained parameters by their rate."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, value in module.named_parameters():
        if value.requires_grad:
            own = next((own for beginning, own in rates.items() if name.startswith(beginning)), rate)
            groups.setdefault(own, []).append(value)
    return groups


def write_torch(value: Any, path: Path) -> None:
    """Write beside the file, then rename: a crash leaves the old file whole."""
    partial = path.with_suffix(".partial")
    torch.save(value, partial)
    os.replace(partial, path)
