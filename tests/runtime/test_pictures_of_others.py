"""Pictures with A1111's text, as strangers brought them, give what its rules give. Who made the files: data/README."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reference
from reference import Wanted
from reference_text import BREAK, Part

import clipskip


def text(*fragments: str) -> Part:
    return Part(((10**9, tuple((fragment, 1.0) for fragment in fragments)),))


DATA = Path(__file__).parent / "data"
RING = "a large green ring on a white background"
PLAIN = Wanted(prompt=RING, negative="red", clip_skip=2, sampler="Euler a", steps=8, cfg=5, seed=5)
UNEVEN = Wanted(
    prompt=[text(RING, BREAK, "a small red star")], negative=text("blue, dotted"), clip_skip=2, steps=8, seed=5
)
WANTED = {
    "plain": PLAIN,
    "ensd": replace(PLAIN, ensd=31337),
    "default": UNEVEN,
    "padded": replace(UNEVEN, negative=text("blue, dotted", BREAK, BREAK)),  # a second chunk, without words
}


@pytest.fixture(scope="module")
def pipe(sample_store: Path) -> Iterator[clipskip.Pipeline]:
    with clipskip.open(sample_store) as pipe:
        yield pipe


def test_a_picture_is_what_the_networks_in_torch_draw_by_a1111s_rules(
    pipe: clipskip.Pipeline, sample_checkpoint: Path
) -> None:
    expected = dict(zip(WANTED, reference.load(sample_checkpoint).pictures(WANTED.values()), strict=True))
    for name, picture in expected.items():
        image = pipe(clipskip.read_request(DATA / f"{name}.png")).images[0]
        assert np.abs(np.asarray(image).astype(int) - picture).max() <= 2, name
    for one, other in (("plain", "ensd"), ("default", "padded")):
        assert np.abs(expected[one].astype(int) - expected[other]).max() > 20, "the setting changes the picture"


@pytest.mark.parametrize("size", [(128, 184), (136, 128)])
def test_a_picture_of_a_size_that_is_no_multiple_of_64_is_repeated(
    pipe: clipskip.Pipeline, size: tuple[int, int]
) -> None:
    assert pipe(clipskip.read_request(DATA / "{}x{}.png".format(*size))).images[0].size == size
