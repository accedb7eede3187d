"""The sample's trainer: its clock, its checkpoints, what each part of it teaches, and that a step can be captured."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

SAMPLE = Path(__file__).parents[2] / "export" / "sample"


@pytest.fixture(scope="module")
def trainer() -> Iterator[dict[str, Any]]:
    """The scripts' modules, which are no package: found by path, and forgotten afterwards."""
    before = set(sys.modules)
    sys.path.insert(0, str(SAMPLE))
    yield {name: import_module(name) for name in ("training", "unet_phase", "text_phase", "latents", "drawing")}
    sys.path.remove(str(SAMPLE))
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(SAMPLE)):
            sys.modules.pop(name)


@pytest.fixture(scope="module")
def gradients(trainer: dict[str, Any]) -> dict[str, dict[str, float]]:
    """By loss, the size of what it teaches each group of weights; on two pictures and untrained networks."""
    torch.manual_seed(0)
    unet_phase = trainer["unet_phase"]
    generator = unet_phase.Generator(trainer["text_phase"].Reader(990))
    drawn = trainer["drawing"].drawn(SAMPLE / "tokenizer", 1, 0)
    ids, labels = torch.from_numpy(drawn.ids), torch.from_numpy(drawn.labels)
    data = trainer["latents"].Latents(torch.randn(64, 4, 16, 16), torch.zeros(64, 4, 16, 16), ids, labels)
    chance = unet_phase.Chance(2, torch.device("cpu"))
    chance.draw(3)
    chance.even[2] = 1.0  # both captions are kept
    found = {}
    for i, name in enumerate(("noise", "asked", "match")):
        generator.zero_grad()
        loss = unet_phase.losses(generator, data, ids[0, :1].long(), chance, torch.linspace(0.99, 0.01, 1000))[i]
        loss.backward()
        weights = [(key, value.grad) for key, value in generator.named_parameters() if value.grad is not None]
        prefixes = (unet_phase.LAST, "reader.text.encoder.layers.10.", "unet.", "matcher.")
        found[name] = {p: sum(float(grad.abs().sum()) for key, grad in weights if key.startswith(p)) for p in prefixes}
    return found


def test_pictures_teach_no_weight_of_the_last_text_layer(gradients: dict[str, dict[str, float]]) -> None:
    last, before, unet, matcher = gradients["noise"].values()
    assert (last, matcher) == (0, 0)
    assert before > 0
    assert unet > 0


def test_the_last_text_layer_is_taught_by_matching_alone(gradients: dict[str, dict[str, float]]) -> None:
    last, before, unet, matcher = gradients["match"].values()
    assert (before, unet) == (0, 0)
    assert last > 0
    assert matcher > 0
    assert next(iter(gradients["asked"].values())) == 0


def test_a_phase_ends_with_its_time_and_goes_on_where_it_stopped(trainer: dict[str, Any], tmp_path: Path) -> None:
    training = trainer["training"]
    plan = training.Plan("clock", None, 0.1, training.linear, 0.5, 0.9, warm_up=1)
    target, rates = torch.ones(1, 4), list[float]()

    def phase(module: nn.Module, until: float, stop: float) -> Any:
        made = training.Trainer(module, plan, tmp_path, until=until)
        for _ in made.steps():
            made.update((module(target) - 3).square().mean())
            rates.append(float(made.optimiser.param_groups[0]["lr"]))
            time.sleep(0.01)
            if made.progress > stop:
                made._save(made.progress)
                break
        return made

    first = phase(nn.Linear(4, 1), time.monotonic() + 1, 0.5)
    again = nn.Linear(4, 1)
    second = phase(again, time.monotonic() + 0.5, 1.0)
    assert second.step > first.step > 1
    assert second.earlier == pytest.approx(0.5, abs=0.2)
    assert max(rates) == pytest.approx(0.1)
    assert rates[-1] < 0.02
    second.use_averaged()
    assert float(again(target).detach()) == pytest.approx(3, abs=0.2)


def test_a_phase_without_time_makes_no_step(trainer: dict[str, Any], tmp_path: Path) -> None:
    training = trainer["training"]
    plan = training.Plan("late", None, 0.1, training.linear, 0.5, 0.9)
    assert list(training.Trainer(nn.Linear(1, 1), plan, tmp_path, until=time.monotonic() - 1).steps()) == []
