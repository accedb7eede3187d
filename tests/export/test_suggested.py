"""What a checkpoint's own file says of clip skip is kept as suggested, and is nobody's recommendation."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import clipskip
from clipskip.engines import report
from clipskip.engines.store import Store
from clipskip.export import export
from clipskip.export.checkpoint import open_checkpoint


@pytest.fixture
def suggesting(checkpoint: Path) -> Path:
    """The tiny model, whose U-Net's file says that it was trained at clip skip 2."""
    path = open_checkpoint(checkpoint).unet.weights
    save_file(load_file(path), path, metadata={"modelspec.encoder_layer": "2"})
    return checkpoint


def test_an_export_keeps_the_suggestion_and_requests_still_get_clip_skip_1(suggesting: Path, tmp_path: Path) -> None:
    root = tmp_path / "store"
    model = export(suggesting, root, skips=[1, 2]).model
    assert (model.suggested_clip_skip, model.recommended_clip_skip) == (2, 1)
    assert "clip skip 1 by default, 2 suggested by its file)" in report.inspection_text(report.inspect(root))
    with clipskip.open(root) as pipe:
        assert pipe.check("a cat").notes == ("clip_skip 1 is used; the model's file suggests 2",)
        assert pipe.check(clipskip.Request(prompt="a cat", clip_skip=2)).notes == ()


def test_a_checkpoint_that_says_nothing_suggests_none_and_its_manifest_is_as_it_was(store: Store) -> None:
    assert store.manifest().model.suggested_clip_skip is None
    assert "suggest" not in (store.root / "manifest.json").read_text()
