"""The page beside other servers: without ONNX files, with edge refinement, with a token, with a short memory."""

import numpy as np
import pytest

from sam_jax.config import ServingConfig
from sam_jax.inference.predictor import SamPredictor
from sam_jax.serving.model_files import READY, ModelFiles
from tests.predicting import H, W, make_image
from tests.serving import browsing
from tests.serving.running import png, running

pytestmark = pytest.mark.browser

CONFIG = ServingConfig(port=0, max_batch=2)
IMAGE = make_image(H, W)
POINT = {"point_coords": np.array([[30, 20]]), "point_labels": np.array([1])}


@pytest.fixture
def visit(browser):
    """Opens a server's page; at the end nothing has gone wrong in it."""
    browsing.check_page_is_built()
    visitors = []

    def visit(server, decoder=None):
        server.service.warm_up()  # as `sam-jax serve` does: no page should wait for compilers
        visitors.append(browsing.Visitor(browser.new_page(), server.url, decoder))
        return visitors[-1]

    yield visit
    for visitor in visitors:
        visitor.page.close()
        assert visitor.errors == []


@pytest.fixture(scope="module")
def predictor(crf_model, variables):
    predictor = SamPredictor(crf_model, variables)
    predictor.set_image(IMAGE)
    return predictor


def clicked(visitor):
    """Whose decoder answered, and its mask."""
    visitor.open(png(IMAGE))
    visitor.actual_size(H, W)
    visitor.click(30, 20)
    said = visitor.page.inner_text("#latency")
    visitor.keep()
    return said, visitor.kept_mask()


def best(predictor):
    found = predictor.predict(**POINT)
    return found.masks[found.iou_predictions.argmax()]


def test_without_onnx_files_the_server_decodes(server, visit, predictor):
    said, mask = clicked(visit(server))
    assert "on the server" in said
    assert browsing.iou(mask, best(predictor)) > 0.999


def test_the_server_has_one_mask_and_three_for_what_is_clearer(server, visit, predictor):
    visitor = visit(server)
    visitor.open(png(IMAGE))
    visitor.actual_size(H, W)
    visitor.click(10, 10)
    visitor.page.mouse.click(*visitor.at(80, 50), button="right")
    visitor.wait_for_mask("#candidates button:last-child:nth-child(4)")
    labels = [button.get_attribute("aria-label") for button in visitor.page.locator("#candidates button").all()]
    points = {"point_coords": np.array([[10, 10], [80, 50]]), "point_labels": np.array([1, 0])}
    (single,) = predictor.predict(**points, multimask_output=False).masks
    masks = [single, *predictor.predict(**points).masks]
    # Decoded in another batch, a pixel or two at the threshold may turn.
    np.testing.assert_allclose([int(label.split()[2]) for label in labels], [mask.sum() for mask in masks], atol=3)
    visitor.keep()
    assert browsing.iou(visitor.kept_mask(), single) > 0.9


def test_the_browser_refines_edges(crf_model, variables, checkpoint, visit, predictor, tmp_path):
    files = ModelFiles(str(checkpoint), crf=True, cache=tmp_path)
    files.start()
    while files.state() != READY:
        files._thread.join(1)
        assert files.state() == READY or files._thread.is_alive(), "see the log"
    with running(crf_model, variables, CONFIG, files=files) as server:
        visitor = visit(server, "this browser")
        said, mask = clicked(visitor)
        visitor.page.close()
    assert "in this browser" in said
    # Weights are random, and masks of noise nowhere sure: float16 embeddings turn a pixel or two.
    assert browsing.iou(mask, best(predictor)) > 0.99


def test_a_forgotten_image_is_sent_again(crf_model, variables, visit, predictor):
    with running(crf_model, variables, CONFIG) as server:
        visitor = visit(server)
        visitor.open(png(IMAGE))
        visitor.actual_size(H, W)
        for name in list(server.service.images._images):
            server.service.images.remove(name)
        visitor.click(30, 20)
        visitor.keep()
        assert browsing.iou(visitor.kept_mask(), best(predictor)) > 0.999
        visitor.page.close()


def test_a_token_is_asked_for(crf_model, variables, visit):
    with running(crf_model, variables, ServingConfig(port=0, max_batch=2, token="right")) as server:
        visitor = visit(server)
        for token in ("wrong", "right"):
            visitor.page.fill("#token", token)
            visitor.page.click("#token-dialog .primary")
        visitor.page.wait_for_selector("#model:not(:empty)", state="attached")
        assert clicked(visitor)[1].any()
        visitor.page.close()
