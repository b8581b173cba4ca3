"""A server of the tiny model with a store of its own for each test."""

import contextlib

import pytest

from sam_jax.config import ServingConfig
from sam_jax.models.sam import Sam
from tests.engine.stores import Clock, make_store
from tests.serving.running import running
from tests.tiny import TINY


@contextlib.contextmanager
def engine_running(store, variables, stage=None, **config):
    from sam_jax.engine.routes import EngineService, create_router

    engine = EngineService(store, store.present(), stage)
    try:
        with running(Sam(TINY), variables, ServingConfig(port=0, **config), routers=[create_router(engine)]) as server:
            yield server
    finally:
        engine.close()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(tmp_path, clock):
    with make_store(tmp_path, 3, clock) as made:
        yield made


@pytest.fixture
def client(store, variables):
    with engine_running(store, variables) as server, server.client() as client:
        yield client
