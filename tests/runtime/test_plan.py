"""What runs together, and what the engines cannot take."""

import numpy as np
from facts import MODEL, step_artefact

from clipskip.context import Conditioning, Part
from clipskip.denoise import Image
from clipskip.limits import Limits
from clipskip.plan import Job, batches
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
    assert indices(batches(jobs, LIMITS)) == [[0, 3], [1, 4], [2]]


def test_a_batch_holds_no_more_images_and_rows_than_allowed():
    assert indices(batches([job(i) for i in range(7)], LIMITS)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert indices(batches([job(0, rows=5), job(1, rows=3), job(2, rows=1)], LIMITS)) == [[0, 1], [2]]


def test_a_batch_holds_no_more_pixels_than_the_backend_likes_but_at_least_one_image():
    jobs = [job(i, width=512) for i in range(3)] + [job(i, width=512, height=1024) for i in range(3, 5)]
    assert indices(batches(jobs, LIMITS)) == [[0, 1], [2], [3], [4]]
