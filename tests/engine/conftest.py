"""A server of the tiny model with a store of its own for each test."""

import contextlib

import pytest

from sam_jax.config import ServingConfig
from sam_jax.models.sam import Sam
from tests.engine.annotating import WIDE, Annotator
from tests.engine.stores import Clock, make_store, write_images
from tests.predicting import H, W
from tests.serving.browsing import check_page_is_built
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


class Served:
    """A server for the page: one for all tests, since its model takes long to compile; the stores differ."""

    def __init__(self, url, engine):
        self.url, self._engine = url, engine

    def use(self, store):
        self._engine._store = store


@pytest.fixture(scope="session")
def served(variables, tmp_path_factory):
    from sam_jax.engine.routes import EngineService, create_router

    check_page_is_built()
    with make_store(tmp_path_factory.mktemp("served"), 0) as store:
        engine = EngineService(store, store.present())
        with running(Sam(TINY), variables, ServingConfig(port=0), routers=[create_router(engine)]) as server:
            yield Served(server.url, engine)
        engine.close()


@pytest.fixture
def two_images(tmp_path, clock, served):
    """The store that the page is served from."""
    with make_store(tmp_path, 0, clock) as store:
        for path in write_images(tmp_path / "images", 2, (H, W)):
            store.add_image(path)
        served.use(store)
        yield store


@pytest.fixture
def ada(browser, two_images, served):
    """An annotator whose browser has a memory of its own; at the end nothing has gone wrong in it."""
    annotator = Annotator(browser.new_context(viewport=WIDE).new_page(), served.url)
    annotator.wait_for("image_0.png")
    yield annotator
    annotator.page.context.close()
    assert annotator.errors == []
