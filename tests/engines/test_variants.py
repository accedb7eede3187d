"""Which LoRAs change an engine, how it is then called, and what the command is told that builds it."""

from __future__ import annotations

from pathlib import Path

import lora_files
import pytest

from clipskip.engines import lora, variants
from clipskip.engines.lora import Choice
from clipskip.engines.manifest import STEP
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
