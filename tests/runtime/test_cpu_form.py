"""The form for the CPU is what ONNX Runtime runs there, and its pictures are those of the exported graphs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from copies import copy_of

import clipskip
from clipskip.engines.manifest import DECODE, STEP, Role
from clipskip.engines.store import Store

REQUEST = {"prompt": "a large red circle on a green background", "seed": 5, "steps": 12, "batch_size": 2}


@pytest.fixture
def plain(sample_store: Path, tmp_path: Path) -> Path:
    """The sample model's store as it was before there were forms."""
    root = copy_of(sample_store, tmp_path / "store")
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["artefacts"] = [artefact for artefact in manifest["artefacts"] if "variant" not in artefact]
    (root / "manifest.json").write_text(json.dumps(manifest))
    return root


@pytest.mark.parametrize("sizes", [{}, {"width": 192, "height": 136, "sampler": "DPM++ 2M SDE"}])
def test_its_pictures_are_within_one_255th_of_those_of_the_exported_graphs(
    sample_store: Path, plain: Path, sizes: dict[str, object]
) -> None:
    images = []
    for root in (sample_store, plain):
        with clipskip.open(root) as pipe:
            images.append(np.stack([np.asarray(image, np.int16) for image in pipe(**REQUEST, **sizes).images]))
    assert pipe.backend.variants == ("cpu", "")
    assert np.abs(images[0] - images[1]).max() <= 1


def test_graphs_and_forms_share_their_weights(sample_store: Path) -> None:
    store = Store(sample_store)
    for role in (STEP, DECODE, Role("encode")):
        graph, form = (store.find(role, "onnx", "fp32", variant) for variant in ("", "cpu"))
        assert graph.files[2:] == form.files[2:]
        assert graph.files[0] != form.files[0]
