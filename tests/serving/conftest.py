"""A server with the tiny model, on a port of its own."""

import dataclasses

import pytest

from sam_jax.config import ServingConfig
from sam_jax.models.sam import Sam
from tests.serving.running import running
from tests.tiny import TINY


@pytest.fixture(scope="session")
def crf_model():
    """The tiny model with edge refinement, as the bundled one has."""
    return Sam(dataclasses.replace(TINY, crf=True))


@pytest.fixture(scope="module")
def server(crf_model, variables):
    with running(
        crf_model, variables, ServingConfig(port=0, max_megapixels=1.0, max_megabytes=0.5, max_batch=2)
    ) as server:
        yield server


@pytest.fixture
def client(server):
    with server.client() as client:
        yield client
