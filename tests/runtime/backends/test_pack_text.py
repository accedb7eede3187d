"""Packed weights for texts are a choice of who opens the model, for all depths or for none."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

import clipskip
from clipskip.backends.onnxruntime import OnnxRuntime
from clipskip.engines.manifest import Role
from clipskip.engines.store import Store


def disabled(engine: Any) -> bool:
    """Whether the engine's library was told to pack nothing."""
    options = engine._session.get_session_options()
    try:
        return bool(options.get_session_config_entry("session.disable_prepacking") == "1")
    except RuntimeError:  # never said
        return False


@pytest.mark.parametrize("pack_text", [False, True])
def test_all_depths_are_packed_or_none_and_what_that_costs_is_counted(sample_store: Path, pack_text: bool) -> None:
    store, backend = Store(sample_store), OnnxRuntime(threads=1, pack_text=pack_text)
    for copied in backend, pickle.loads(pickle.dumps(backend)):
        for layers in 11, 3:
            artefact = store.find(Role("text", layers), "onnx", "fp32")
            engine = copied.open(artefact, store.verify(artefact))
            assert disabled(engine) == (not pack_text)
            assert (engine.nbytes > 16 * 2**20 + artefact.files[-1].size) == pack_text
            engine.close()


def test_depths_that_are_packed_come_and_go_within_the_budget_for_texts(sample_store: Path) -> None:
    with clipskip.open(sample_store, backend=OnnxRuntime(threads=1, pack_text=True), text_engine_budget=0) as pipe:
        for skip in 1, 2:
            pipe("a red circle", clip_skip=skip, steps=1, width=64, height=64)
        assert [role for role in pipe._engines.roles() if role.part == "text"] == [Role("text", 11)]
