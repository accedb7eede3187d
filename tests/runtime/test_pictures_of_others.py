"""Pictures with A1111's text, as strangers brought them, give what its rules give. Who made the files: data/README."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import clipskip

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def pipe(sample_store: Path) -> Iterator[clipskip.Pipeline]:
    with clipskip.open(sample_store) as pipe:
        yield pipe


@pytest.mark.parametrize("name", ["ensd", "plain", "default", "padded"])
def test_a_picture_is_what_the_networks_in_torch_draw_by_a1111s_rules(pipe: clipskip.Pipeline, name: str) -> None:
    image = pipe(clipskip.read_request(DATA / f"{name}.png")).images[0]
    expected = np.load(DATA / f"{name}.npy")
    assert np.abs(np.asarray(image).astype(int) - expected).max() <= 2


@pytest.mark.parametrize("size", [(128, 184), (136, 128)])
def test_a_picture_of_a_size_that_is_no_multiple_of_64_is_repeated(
    pipe: clipskip.Pipeline, size: tuple[int, int]
) -> None:
    assert pipe(clipskip.read_request(DATA / "{}x{}.png".format(*size))).images[0].size == size
