"""What every phase shares: the optimiser step, its schedule, averaged weights, averaged gradients, checkpoints."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

SAVE_EVERY = 100
LOG_EVERY = 20


@dataclass(frozen=True)
class Plan:
    """How one phase trains: its name, its number of steps, its rates."""

    name: str
    steps: int
    rate: float
    decay: Callable[[float, float], float]
    decay_from: float
    ema: float
    warm_up: int = 100
    weight_decay: float = 0.005
    clip: float = 1.0

    def rate_at(self, step: int) -> float:
        """The share of the full rate at a step: a linear warm-up, then the phase's decay over its progress."""
        return min(1.0, (step + 1) / self.warm_up) * self.decay(step / self.steps, self.decay_from)


def linear(progress: float, start: float) -> float:
    """Constant until `start` of the phase, then a straight line to 1 %."""
    return 1.0 - 0.99 * max(0.0, (progress - start) / (1.0 - start))


def cosine(progress: float, start: float) -> float:
    """Constant until `start` of the phase, then half a cosine to 1 %."""
    return 0.505 + 0.495 * math.cos(math.pi * max(0.0, (progress - start) / (1.0 - start)))


class Trainer:
    """Trains one module for one phase; resumes from its checkpoint; `averaged` holds the weights to keep."""

    def __init__(self, module: nn.Module, plan: Plan, work: Path, rates: dict[str, float] | None = None) -> None:
        self.module, self.plan, self.path = module, plan, work / f"{plan.name}.checkpoint.pt"
        self.groups = _groups(module, plan.rate, rates or {})
        self.optimiser = torch.optim.AdamW(self.groups, betas=(0.9, 0.99), weight_decay=plan.weight_decay)
        self.full_rates = [group["lr"] for group in self.groups]
        self.averaged = {name: value.detach().clone() for name, value in module.named_parameters()}
        self.step, self.log = 0, Log(plan)
        if self.path.exists():
            self._load()

    def steps(self) -> Iterator[int]:
        """The steps still to do; saves a checkpoint now and then."""
        while self.step < self.plan.steps:
            yield self.step
            self.step += 1
            if self.step % SAVE_EVERY == 0 or self.step == self.plan.steps:
                self._save()

    def update(self, loss: Tensor, **shown: float) -> None:
        """One optimiser step on a loss; `shown` are further figures for the log."""
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        average_gradients(self.module)
        for group, full in zip(self.optimiser.param_groups, self.full_rates, strict=True):
            nn.utils.clip_grad_norm_(group["params"], self.plan.clip)
            group["lr"] = full * self.plan.rate_at(self.step)
        self.optimiser.step()
        keep = min(self.plan.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, value in self.module.named_parameters():
                self.averaged[name].lerp_(value, 1.0 - keep)
        self.log.add(self.step, loss=float(loss.detach()), **shown)

    def use_averaged(self) -> None:
        """Put the averaged weights into the module: the end of a phase."""
        self.module.load_state_dict(self.averaged, strict=False)

    def _save(self) -> None:
        if rank() != 0:
            return
        state = {"step": self.step, "module": self.module.state_dict(), "averaged": self.averaged}
        write_torch({**state, "optimiser": self.optimiser.state_dict()}, self.path)

    def _load(self) -> None:
        state = torch.load(self.path, weights_only=True)
        self.step, self.averaged = state["step"], state["averaged"]
        self.module.load_state_dict(state["module"])
        self.optimiser.load_state_dict(state["optimiser"])


@dataclass
class Log:
    """Prints the mean of the last figures, with the time a step takes."""

    plan: Plan
    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0
    since: float = field(default_factory=time.monotonic)

    def add(self, step: int, **figures: float) -> None:
        self.count += 1
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        if self.count < LOG_EVERY:
            return
        seconds = (time.monotonic() - self.since) / self.count
        text = " ".join(f"{name} {value / self.count:.4f}" for name, value in self.sums.items())
        if rank() == 0:
            print(f"{self.plan.name} {step + 1}/{self.plan.steps} {seconds:.2f} s/step {text}", flush=True)
        self.sums, self.count, self.since = {}, 0, time.monotonic()


def _groups(module: nn.Module, rate: float, rates: dict[str, float]) -> list[dict[str, Any]]:
    """Parameter groups by the first part of a parameter's name, each with its own rate."""
    parts: dict[float, list[nn.Parameter]] = {}
    for name, value in module.named_parameters():
        if value.requires_grad:
            parts.setdefault(rates.get(name.split(".")[0], rate), []).append(value)
    return [{"params": values, "lr": lr} for lr, values in parts.items()]


def rank() -> int:
    """This process's number among those that train together."""
    return dist.get_rank() if dist.is_initialized() else 0


def average_gradients(module: nn.Module) -> None:
    """Replace each gradient by its mean over the processes, in one message."""
    if not dist.is_initialized():
        return
    gradients = [value.grad for value in module.parameters() if value.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def write_torch(value: Any, path: Path) -> None:
    """Write beside the file, then rename: a crash leaves the old file whole."""
    partial = path.with_suffix(".partial")
    torch.save(value, partial)
    os.replace(partial, path)
