"""What runs together, and what the engines cannot take."""

import numpy as np
import pytest
from facts import MODEL, step_artefact

from clipskip.context import Conditioning, Part
from clipskip.denoise import Image
from clipskip.errors import RequestError
from clipskip.plan import Job, Limits
from clipskip.request import Request
from clipskip.resolve import resolve

BUILT = step_artefact(h=(32, 64), w=(32, 96), B=(1, 4), N=(1, 8), T=(77, 231))
LIMITS = Limits.of(BUILT, 4 * 256 * 256, max_batch=3, build_command="clipskip build S")


def job(index, rows=2, chunks=1, **size):
    wanted = resolve(Request(prompt="", **{"width": 256, "height": 256, **size}), MODEL)
    part = Part(1.0, (1,), (0,), (np.zeros((77 * chunks, 4)),))
    return Job(index, wanted, Image([], Conditioning((part,) * rows, chunks), np.zeros((4, 8, 8)), None))


def indices(batches):
    return [[each.index for each in batch] for batch in batches]


def test_images_share_a_batch_only_when_size_and_length_agree():
    jobs = [job(0), job(1, chunks=2), job(2, width=320), job(3), job(4, chunks=2)]
    assert indices(LIMITS.batches(jobs)) == [[0, 3], [1, 4], [2]]


def test_a_batch_holds_no_more_images_and_rows_than_allowed():
    assert indices(LIMITS.batches([job(i) for i in range(7)])) == [[0, 1, 2], [3, 4, 5], [6]]
    assert indices(LIMITS.batches([job(0, rows=5), job(1, rows=3), job(2, rows=1)])) == [[0, 1], [2]]


@pytest.mark.parametrize(("field", "size"), [("height", 192), ("height", 576), ("width", 832)])
def test_a_size_that_was_not_built_is_refused_with_the_range_and_the_command(field, size):
    with pytest.raises(RequestError, match=f"{field} {size} is outside 256") as caught:
        LIMITS.check_size(job(0, **{field: size}).wanted)
    assert caught.value.hint.startswith("clipskip build S --sizes")


def test_a_batch_holds_no_more_pixels_than_the_backend_likes_but_at_least_one_image():
    jobs = [job(i, width=512) for i in range(3)] + [job(i, width=512, height=1024) for i in range(3, 5)]
    assert indices(LIMITS.batches(jobs)) == [[0, 1], [2], [3], [4]]


def test_an_image_of_too_many_parts_is_refused():
    with pytest.raises(RequestError, match="9 parts"):
        LIMITS.check_rows([job(0, rows=9)])


def test_an_engine_without_ranges_takes_any_size():
    limits = Limits.of(step_artefact(), 2**30, max_batch=4, build_command="")
    limits.check_size(job(0, height=2048).wanted)
    assert limits.batch == 4
