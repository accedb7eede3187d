"""Which LoRAs change an engine, how it is then called, and what the command is told that builds it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lora_files
import pytest

from clipskip.engines import lora, variants
from clipskip.engines.lora import Choice
from clipskip.engines.manifest import STEP, Identity, Role
from clipskip.engines.variants import Active

PARAMETERS = {"unet.conv_in.weight": (4, 4)}


@pytest.mark.parametrize("weight", [1.0, -0.5, 0.123456789, 1e-05, 0.1 + 0.2])
def test_an_option_says_a_weight_to_the_last_digit_so_that_it_names_the_same_engine(
    weight: float, tmp_path: Path
) -> None:
    path = lora_files.write(tmp_path / "style.safetensors", PARAMETERS)
    one = Active(lora.read(path, PARAMETERS), path, 1.0, weight)
    assert one.option.startswith(f"--lora {path}:")
    choice = Choice.parse(one.option.removeprefix("--lora "))
    assert (choice.unet, choice.text) == (weight, 1.0)
    again = Active(one.lora, choice.path, choice.text, choice.unet)
    assert variants.mix(STEP, PARAMETERS, [again]) == variants.mix(STEP, PARAMETERS, [one])


def test_the_deepest_text_graph_is_that_of_the_precision_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [Identity(Role("text", 12), "onnx", "fp32"), Identity(Role("text", 12), "onnx", "fp16", "cuda")]
    there += [Identity(Role("text", layers), "onnx", "fp16") for layers in (3, 11)]
    there += [Identity(STEP, "onnx", precision) for precision in ("fp16", "fp32")]
    asked: list[Identity] = []
    store: Any = SimpleNamespace(
        manifest=lambda: SimpleNamespace(artefacts=[SimpleNamespace(role=each.role, identity=each) for each in there]),
        find=lambda *identity: asked.append(Identity(*identity)),
    )
    monkeypatch.setattr(variants, "table", lambda store, graph: {})
    assert variants.changeable(store, "fp16") == {}
    assert asked == [Identity(STEP, "onnx", "fp16"), Identity(Role("text", 11), "onnx", "fp16")]
