"""The report of a checkpoint: what goes into it, what a failure looks like in it, and copies with outliers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from copies import copy_of
from tiny_families import sd2

from clipskip.bench import outliers, prove
from clipskip.engines.store import Store
from clipskip.export import models
from clipskip.export.checkpoint import open_checkpoint


def test_a_copy_has_larger_activations_and_the_same_weights_elsewhere(tmp_path: Path) -> None:
    checkpoint = sd2(tmp_path / "tiny")
    found = {factor: outliers.copy(checkpoint, tmp_path / f"{factor}", factor) for factor in (1, 100)}
    for network in ("text", "unet"):
        assert found[100][network]["largest"] > 20 * found[1][network]["largest"]
    plain, large = (models.load(open_checkpoint(tmp_path / f"{factor}")) for factor in (1, 100))
    for one, other in ((plain.texts[0], large.texts[0]), (plain.unet, large.unet)):
        weights = other.state_dict()
        for name, weight in one.state_dict().items():
            row, column = name.removesuffix(".weight").endswith(outliers.WRITERS), "token_embedding" in name
            changed = weights[name] / weight.where(weight != 0, 1)
            if row and name.endswith("weight"):
                assert changed[: outliers.CHANNELS].mean().item() == pytest.approx(100, rel=0.01), name
            elif not row and not column and "position_embedding" not in name and "bias" not in name:
                assert (weights[name] == weight).all(), name


def test_of_clip_skips_that_are_one_layer_the_least_is_shown(sample_store: Path) -> None:
    manifest = Store(sample_store).manifest()
    assert prove.skips(manifest) == {skip: 13 - skip for skip in range(1, 14)}


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch, sample_fp16_store: Path) -> dict[str, dict[str, Any]]:
    """What the commands of clipskip answer, by verb, instead of running; an export gives the sample model's graphs."""
    answers: dict[str, dict[str, Any]] = {
        "grid": {"file": "sheet.png"},
        "recommend": {"evidence": "clip skip 2: on 64 captioned pictures"},
        "export": {},
        "bench": {"stages": {"step": {"median_ms": 3.25, "runs": 5}}, "doubts": {"the machine was busy": []}},
    }

    def said(verb: str, *rest: Any) -> dict[str, Any]:
        if verb == "export":
            copy_of(sample_fp16_store, rest[2])
        return answers[verb]

    monkeypatch.setattr(prove, "said", said)
    large = {"text": {"largest": 12.0, "times_rms": 9.0}}
    monkeypatch.setattr(outliers, "copy", lambda checkpoint, folder, factor: large)
    return answers


def test_a_report_has_every_part_and_ends_with_a_json_line(
    sample_store: Path, tmp_path: Path, recorded: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["checkpoint", str(sample_store), "--out", str(tmp_path), "--pictures", "pictures"]
    assert prove.main(arguments) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    text = (tmp_path / "report.md").read_text()
    assert found == json.loads((tmp_path / "report.json").read_text())
    assert found["parity"]["fp32"]["text-12"]["relative_l2"] < 1e-5
    assert "| text-11 | 2 | relative_l2 " in text
    assert "clip skip 2: on 64 captioned pictures" in text
    assert "| step | 3.25 | 5 |\n\nDoubtful: the machine was busy.\n" in text
    assert "| 100 | 12 (9) | - | decode" in text
    assert found["outliers"]["10"]["fp16"]["step"]["relative_l2"] < 1e-2


def test_a_part_that_fails_is_said_in_the_report_and_the_status(
    sample_store: Path, tmp_path: Path, recorded: dict[str, dict[str, Any]]
) -> None:
    arguments = ["checkpoint", str(sample_store), "--out", str(tmp_path)]
    recorded["export"] = {"error": {"message": "step differs from torch: relative_l2 is 0.5\nallowed is 0.01"}}
    assert prove.main(arguments) == 0
    text = (tmp_path / "report.md").read_text()
    assert "| 10 | 12 (9) | - | **failed**: step differs from torch: relative_l2 is 0.5 allowed is 0.01 |" in text
    assert "no captioned pictures were given" in text
    recorded["grid"] = {"error": {"message": "no memory"}}
    assert prove.main(arguments) == 1
    assert "**failed**: no memory" in (tmp_path / "report.md").read_text()


def test_a_command_that_fails_is_an_answer(tmp_path: Path) -> None:
    assert "no engine store" in prove.problem(prove.said("verify", tmp_path))
