"""Configurations with a value that is missing, of another type or out of range: an error names it, before torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipskip.engines import manifest
from clipskip.engines.manifest import Manifest
from clipskip.errors import CheckpointError, UnsupportedModelError
from clipskip.export.checkpoint import Checkpoint, Part, open_checkpoint
from clipskip.export.families import facts
from clipskip.export.models import load

MISSING = object()
VALUES = [MISSING, None, "x", [], [1.5], {}, -1, 0, 10**400, 1e308, float("nan"), float("inf"), True, False, "../x\n"]
CONFIGS = {
    "texts": "text_encoder/config.json",
    "unet": "unet/config.json",
    "vae": "vae/config.json",
    "scheduler": "scheduler/scheduler_config.json",
    "index": "model_index.json",
}


@pytest.fixture(scope="module")
def sound(sample_checkpoint: Path) -> Checkpoint:
    return open_checkpoint(sample_checkpoint)


def changed(checkpoint: Checkpoint, name: str, field: str, value: Any) -> Checkpoint:
    """The checkpoint with another value in one field of one configuration."""
    part = part_of(checkpoint, name)
    config = {**(part.config if isinstance(part, Part) else part), field: value}
    if value is MISSING:
        del config[field]
    other = replace(part, config=config) if isinstance(part, Part) else config
    return replace(checkpoint, **{name: (other,) if name == "texts" else other})


def part_of(checkpoint: Checkpoint, name: str) -> Any:
    """What has this name; of the text encoders the only one."""
    return checkpoint.texts[0] if name == "texts" else getattr(checkpoint, name)


def problem(checkpoint: Checkpoint) -> CheckpointError | None:
    """What is wrong with it; None where its facts can be written into a manifest and read back."""
    try:
        manifest.dumps(Manifest(manifest.SCHEMA, facts(checkpoint), (), ()))
    except CheckpointError as error:
        return error
    return None


@pytest.mark.parametrize("name", CONFIGS)
def test_whatever_a_configuration_holds_is_sound_facts_or_an_error_that_names_file_and_field(
    sound: Checkpoint, name: str
) -> None:
    part = part_of(sound, name)
    for field in part.config if isinstance(part, Part) else part:
        for error in filter(None, (problem(changed(sound, name, field, value)) for value in VALUES)):
            if isinstance(error, UnsupportedModelError):  # of the right type, and another model's
                assert CONFIGS[name] in str(error) or field in ("_class_name", "cross_attention_dim", "hidden_size")
            else:
                assert (error.field or "").partition("[")[0] == field
                assert CONFIGS[name] in error.message


@pytest.mark.parametrize(
    ("path", "field", "value", "message"),
    [
        ("scheduler/scheduler_config.json", "beta_start", -1, "beta_start: -1.0 is not allowed here"),
        ("scheduler/scheduler_config.json", "beta_end", 1, "beta_end: 1.0 is not allowed here"),
        ("scheduler/scheduler_config.json", "beta_end", "0.012", "beta_end: must be a number, is a string"),
        ("scheduler/scheduler_config.json", "num_train_timesteps", None, "num_train_timesteps: must be a whole number"),
        ("scheduler/scheduler_config.json", "num_train_timesteps", 10**9, "num_train_timesteps: 1000000000 is not"),
        ("scheduler/scheduler_config.json", "prediction_type", 7, "prediction_type: must be a string"),
        ("vae/config.json", "scaling_factor", 0, "scaling_factor: 0.0 is not allowed here"),
        ("vae/config.json", "scaling_factor", float("nan"), "scaling_factor: must be finite"),
        ("vae/config.json", "block_out_channels", 5, "block_out_channels: must be a list"),
        ("unet/config.json", "sample_size", "64", "sample_size: must be a whole number, is a string"),
        ("unet/config.json", "cross_attention_dim", [768, 768], "cross_attention_dim: must be a whole number"),
        ("text_encoder/config.json", "num_hidden_layers", 0, "num_hidden_layers: 0 is not allowed here"),
        ("text_encoder/config.json", "num_hidden_layers", 100, "num_hidden_layers: 100 is not allowed here"),
        ("text_encoder/config.json", "vocab_size", True, "vocab_size: must be a whole number, is a boolean"),
    ],
)
def test_the_message_says_what_is_wrong_with_which_field_of_which_file(
    sound: Checkpoint, path: str, field: str, value: Any, message: str
) -> None:
    (name,) = (name for name, file in CONFIGS.items() if file == path)
    with pytest.raises(CheckpointError) as caught:
        facts(changed(sound, name, field, value))
    assert caught.value.field == field
    assert f"{path}: {message}" in caught.value.message


def test_a_configuration_is_refused_before_torch_is_imported(sample_checkpoint: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(sample_checkpoint, tmp_path / "copy")
    path = copy / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scaling_factor": 0}))
    code = (
        "import sys; from clipskip.export import export; from clipskip.errors import CheckpointError\n"
        "try: export(*sys.argv[1:])\nexcept CheckpointError: sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, copy, tmp_path / "store"]).returncode == 0
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("unet", "act_fn", "nonsense"),
        ("unet", "norm_num_groups", 7),
        ("unet", "down_block_types", ["NoSuchBlock"] * 4),
        ("texts", "hidden_act", "nonsense"),
        ("texts", "num_attention_heads", 7),
        ("vae", "norm_num_groups", 5),
    ],
)
def test_what_only_torch_can_tell_names_the_file_too(sound: Checkpoint, name: str, field: str, value: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(changed(sound, name, field, value))
    assert CONFIGS[name] in caught.value.message
