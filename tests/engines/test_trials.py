"""The inputs that graphs are tried on fit them, whatever the model and the precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clipskip.engines import trials
from clipskip.engines.manifest import STEP
from clipskip.engines.shapes import REMEMBERED
from clipskip.engines.store import Store


@pytest.mark.parametrize("half", [False, True])
def test_every_graph_has_inputs_of_its_ports_types_and_sizes(
    sample_store: Path, sample_fp16_store: Path, half: bool
) -> None:
    manifest = Store(sample_fp16_store if half else sample_store).manifest()
    for artefact in manifest.artefacts:
        for feeds in trials.of(artefact.role, manifest.model, half, artefact.inputs):
            assert feeds.keys() == {port.name for port in artefact.inputs}
            sizes: dict[str, int] = {}
            for port in artefact.inputs:
                array = feeds[port.name]
                assert (array.dtype, array.ndim) == (port.dtype, len(port.shape))
                for size, axis in zip(array.shape, port.shape, strict=True):
                    if isinstance(axis, int):
                        assert size == axis
                    else:
                        assert sizes.setdefault(axis.axis, size // axis.factor) * axis.factor == size


def test_the_inputs_are_always_the_same(sample_store: Path) -> None:
    facts = Store(sample_store).manifest().model
    first, second = (trials.of(STEP, facts, False, ()) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert all(np.array_equal(array, other[name]) for name, array in one.items())


def test_the_first_slot_of_the_next_state_is_what_the_network_gives_alone(sample_store: Path) -> None:
    for feeds in trials.of(STEP, Store(sample_store).manifest().model, False, ()):
        alone = np.eye(REMEMBERED + 3)[REMEMBERED]
        assert np.array_equal(feeds["update"][:, 0], np.tile(alone, (len(feeds["update"]), 1)))
