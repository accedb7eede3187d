"""A driver over a step engine in numpy, for tests of who runs with whom."""

from contextlib import contextmanager

import numpy as np
from facts import step_artefact
from fake_step import FakeStep, image

from clipskip.driver import Driver
from clipskip.resolve import Limits


class Engines:
    """The step engine, and how many users it has."""

    def __init__(self):
        self.step, self.users, self.fail = FakeStep(), 0, None

    @contextmanager
    def use(self, role, mix=None):
        assert str(role) == "step"
        if self.fail:
            raise self.fail
        self.users += 1
        yield self.step
        self.users -= 1


def limits(pixels=2**30, max_batch=None, **axes):
    built = step_artefact(**{"h": (1, 64), "w": (1, 64), "B": (1, 8), "N": (1, 16), "T": (77, 6 * 77), **axes})
    return Limits.of(built, pixels, max_batch, build_command="clipskip build S")


def driver(engines, limits=None, loops=4, share_lengths=False):
    limits = limits or globals()["limits"]()
    return Driver(engines, limits, loops=loops, exact_rows=True, share_lengths=share_lengths)


def sized(height, width, **settings):
    made = image(**settings)
    made.latents = np.resize(made.latents, (4, height, width))
    return made
