"""`recommend` held to its goal on the kept losses of three toy models, and the toys made in one step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clipskip.bench import recipe
from clipskip.export import families
from clipskip.export.checkpoint import open_checkpoint

prove = recipe.module("prove_recommend")
LOSSES = Path(__file__).parent / "data" / "toy_losses.npz"


@pytest.fixture(scope="module")
def kept() -> dict[str, np.ndarray]:
    with np.load(LOSSES) as losses:
        return {name: losses[name] for name in prove.TRAINED_AT}


def test_toys_get_the_clip_skip_that_they_were_trained_at(kept: dict[str, np.ndarray]) -> None:
    proof = prove.summary(kept)
    assert proof["held"], prove.table(proof)
    for name, skip in (("first", "1"), ("second", "2")):
        assert proof["models"][name]["answers"].get(skip, 0) >= prove.LEAST_ANSWERS
        truth = proof["models"][name]["truth"]
        assert [each for each, depth in truth.items() if depth["above"] == 0] == [int(skip)]


def test_an_answer_whose_true_loss_is_worse_counts_as_false(kept: dict[str, np.ndarray]) -> None:
    changed = kept["second"].copy()
    changed[prove.ASKS * prove.ASKED :, 1] += changed.mean()
    judged = prove.judged(changed)
    assert judged["false"] == judged["answers"]["2"]
    proof = prove.summary({**kept, "second": changed})
    assert not proof["held"]
    assert "NOT HELD" in prove.table(proof)


def test_a_model_that_answers_too_rarely_does_not_hold(kept: dict[str, np.ndarray]) -> None:
    alike = np.repeat(kept["first"][:, :1], kept["first"].shape[1], axis=1)
    alike = alike + np.random.default_rng(0).normal(0, 0.01, alike.shape)
    assert not prove.summary({**kept, "first": alike})["held"]


def test_a_toy_is_a_checkpoint_that_export_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toys = prove.toys
    for name, value in (("PICTURES", 4), ("CAPTIONS", 4), ("TEXT_STEPS", 4), ("UNET_STEPS", 4), ("BATCH", 2)):
        monkeypatch.setattr(toys, name, value)
    toys.torch.save(toys.shared(), tmp_path / "shared.pt")
    toys.finish(tmp_path, "mixed")
    facts = families.facts(open_checkpoint(tmp_path / "mixed"))
    assert (facts.family, facts.kept, facts.default_size) == ("sd1", tuple(range(toys.LAYERS, -1, -1)), toys.SIDE)
