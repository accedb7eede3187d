"""The sample's pipeline, and a running server of it: one for each file."""

import pytest
from serving import serving

import clipskip


@pytest.fixture(scope="module")
def pipe(sample_store):
    with clipskip.open(sample_store) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def client(sample_store, pipe):
    with serving(sample_store, pipe) as client:
        yield client
