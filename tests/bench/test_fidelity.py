"""What of a prompt is left: shares and intervals on scenes drawn by hand, then the whole on few pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clipskip
from clipskip.bench import fidelity, recipe
from clipskip.errors import BackendUnavailable, RequestError

scenes, captions = recipe.module("scenes"), recipe.module("captions")
look, shares = recipe.module("checker").look, recipe.module("named_facts").shares


def seen(**changed: str) -> dict[str, str]:
    """What the checker reads from a large red circle in the middle of green, or from one that is otherwise."""
    thing = scenes.Thing("circle", "red", "large", (64.0, 64.0), 34.0)
    scene = scenes.Scene((thing,), "green", "plain", "center", None)
    thing = replace(thing, **{name: value for name, value in changed.items() if name in vars(thing)})
    scene = replace(scene, things=(thing,), **{name: value for name, value in changed.items() if name in vars(scene)})
    return dict(look(scenes.draw(scene, np.random.default_rng(0))))


NAMED = {"count": "one", "kind0": "circle", "colour0": "red", "size0": "large", "background": "green",
         "texture": "plain", "place": "center"}  # fmt: skip


def test_a_picture_that_keeps_the_shape_alone_is_coarsely_right_and_finely_wrong() -> None:
    right = shares(seen(), NAMED)
    assert set(right.values()) == {1.0}
    pale = shares(seen(colour="blue", background="white"), NAMED)
    assert (pale["a shape"], pale["the kind"], pale["colour"], pale["background"]) == (1, 1, 0, 0)
    assert pale["fine"] == pytest.approx(3 / 5)
    assert pale["everything"] == 0
    assert shares(seen(kind="star"), NAMED)["the kind"] == 0
    empty = shares(look(np.full((128, 128, 3), 200, np.uint8)), NAMED)
    assert (empty["a shape"], empty["the kind"], empty["size"]) == (0, 0, 0)


def test_the_interval_is_wilsons_for_yes_and_no_and_narrower_for_shares_that_scatter_less() -> None:
    share, low, high = fidelity.interval([1.0] * 8 + [0.0] * 2)
    assert (share, low, high) == pytest.approx((0.8, 0.4902, 0.9433), abs=0.02)
    _, closer, farther = fidelity.interval([0.75] * 5 + [0.85] * 5)
    assert low < closer < 0.8 < farther < high
    assert fidelity.interval([1.0] * 10)[1:] == pytest.approx((0.7225, 1.0), abs=1e-3)


def test_both_forms_name_the_same_scenes_and_only_one_writes_sentences() -> None:
    written = fidelity.facts.prompts(12)
    for tags, sentence in zip(written["tags"], written["sentences"], strict=True):
        assert sorted(tags.named.values()) == sorted(sentence.named.values())
        assert tags.text.count(",") > sentence.text.count(",")


def test_chance_is_what_pictures_of_other_scenes_would_get() -> None:
    asked = {"tags": [captions.Caption("", NAMED), captions.Caption("", {**NAMED, "kind0": "star"})]}
    pictures = {"tags": [seen(), seen(kind="star")]}
    found = fidelity.figures(pictures, asked)
    assert (found["the kind"]["share"], found["the kind"]["chance"]) == (1, 0)
    assert (found["fine"]["share"], found["fine"]["chance"]) == (1, 1)
    assert fidelity.kept(found["the kind"]) == 1
    assert fidelity.kept({"share": 0.2, "chance": 0.2}) == 0


def test_few_pictures_of_the_sample_model_make_a_table_a_drawing_and_a_json_line(
    sample_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fidelity, "CFGS", (1.0,))
    monkeypatch.setitem(fidelity.SETTINGS, "steps", 3)
    with monkeypatch.context() as patch, clipskip.open(sample_store) as pipe:
        patch.setattr(type(pipe), "clip_skips", (2, 13))
        fidelity.main([str(sample_store), "--prompts", "2", "--out", str(tmp_path)])
    *table, line = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert list(found["by_clip_skip"]) == ["2", "13"]
    assert found == json.loads((tmp_path / "fidelity.json").read_text())
    assert [row.split("  ")[0] for row in table[1:4]] == ["clip skip 2", "clip skip 13", "cfg 1 at 2"]
    with Image.open(tmp_path / "fidelity.png") as drawing:
        assert len(drawing.getcolors(1 << 20)) > 50


def test_another_model_and_an_installed_wheel_are_refused(
    sample_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fidelity.scenes, "SIZE", 512)
    with pytest.raises(RequestError, match="the sample model"):
        fidelity.measure(sample_store, 2)
    with pytest.raises(RequestError, match="prompts must be at least 2"):
        fidelity.measure(sample_store, 1)
    monkeypatch.setattr(recipe, "FOLDER", tmp_path)
    with pytest.raises(BackendUnavailable, match=r"(?s)is not here.*a checkout"):
        recipe.module("scenes")
