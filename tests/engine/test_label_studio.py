"""Clicks and boxes of Label Studio, as it sends them, become brushes; images are fetched from it with its key alone."""

import base64
import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from sam_jax.config import ServingConfig
from sam_jax.engine.brush import decode_brush
from sam_jax.engine.label_studio import LabelStudio, create_router
from sam_jax.inference.predictor import SamPredictor
from sam_jax.models.sam import Sam
from tests.engine.drawn import INTERFACE, click, rectangle
from tests.predicting import H, W, make_image
from tests.serving.running import image_file, running
from tests.tiny import TINY

ADDRESS = "/data/upload/1/a.png"


class Source(BaseHTTPRequestHandler):
    """As much of Label Studio as gives images, to those who have its key."""

    def do_GET(self):
        if self.path.startswith("/away"):
            self.send_response(302)
            self.send_header("Location", "http://127.0.0.1:9/secret.png")
        elif self.headers["Authorization"] not in ("Token key", "Bearer short"):
            self.send_response(401)
        else:
            self.server.fetched.append(self.path)
            self.send_response(200)
        self.end_headers()
        self.wfile.write(image_file())

    def do_POST(self):
        refresh = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["refresh"]
        self.send_response(200 if (self.path, refresh) == ("/api/token/refresh", "a.b.c") else 401)
        self.end_headers()
        self.wfile.write(b'{"access": "short"}')

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def label_studio():
    with ThreadingHTTPServer(("127.0.0.1", 0), Source) as server:
        server.fetched = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def source():
    with label_studio() as found:
        yield found


@pytest.fixture(scope="module")
def client(source, variables):
    config = ServingConfig(port=0, max_batch=2, token="secret")
    router = create_router(LabelStudio(source[1], "key"))
    with running(Sam(TINY), variables, config, routers=[router]) as server, server.client() as client:
        client.headers["Authorization"] = "Basic " + base64.b64encode(b"sam_jax:secret").decode()
        yield client


def asked(*drawn, address=ADDRESS, interface=INTERFACE):
    """As Label Studio 1.23 sends it."""
    context = {"result": list(drawn)}
    return {
        "tasks": [{"id": 7, "data": {"scene": address}, "annotations": [], "predictions": []}],
        "project": "1.1732900000",
        "label_config": interface,
        "params": {"login": None, "password": None, "context": context if drawn else None},
    }


def predict(client, *drawn, **options):
    return client.post("/v1/label-studio/predict", json=asked(*drawn, **options))


def test_it_is_up_and_knows_a_projects_interface(client):
    assert client.get("/v1/label-studio/health").json()["status"] == "UP"
    answer = client.post("/v1/label-studio/setup", json={"project": "1.17", "schema": INTERFACE})
    assert answer.json()["model_version"] == "tiny"
    assert client.get("/v1/label-studio/health", headers={"Authorization": ""}).status_code == 401


def test_what_is_drawn_becomes_a_brush(client, source, variables):
    predictor = SamPredictor(Sam(TINY), variables)
    predictor.set_image(make_image(H, W))
    one = predictor.predict(np.array([[30.0, 20]]), np.array([1]))
    both = predictor.predict(
        np.array([[30.0, 20], [8, 9]]), np.array([1, 0]), np.array([10.0, 5, 50, 33]), multimask_output=False
    )
    source[0].fetched.clear()
    for drawn, expected in (
        ([click(30, 20)], one),
        ([click(30, 20), rectangle(10, 5, 50, 33), click(8, 9, positive=0)], both),
    ):
        answer = predict(client, *drawn)
        assert answer.status_code == 200, answer.text
        ((found,),) = [one["result"] for one in answer.json()["results"]]
        assert (found["from_name"], found["to_name"], found["type"]) == ("brush", "img", "brushlabels")
        assert (found["original_width"], found["original_height"]) == (W, H)
        assert found["value"]["brushlabels"] == ["Dog"]
        best = expected.iou_predictions.argmax()
        assert (decode_brush(found["value"]["rle"], (H, W)) == expected.masks[best]).mean() > 0.99
        np.testing.assert_allclose(found["score"], expected.iou_predictions[best], atol=1e-5)
    assert len(source[0].fetched) <= 1  # the image is encoded once


def test_without_anything_drawn_there_is_no_mask(client):
    assert predict(client).json()["results"] == [{"result": [], "score": 0.0, "model_version": "tiny"}]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"address": "http://169.254.169.254/a.png"}, "does not lie in Label Studio"),
        ({"address": "file:///etc/passwd"}, "does not lie in Label Studio"),
        ({"address": "/away"}, "did not give the image /away"),
        ({"address": 3}, "no 'scene' with the image's address"),
        ({"interface": "<View>"}, "not XML"),
        ({"interface": "<!DOCTYPE a [<!ENTITY b 'c'>]><View/>"}, "has a <! in it"),
        ({"interface": "<View><Image name='img' value='$scene'/></View>"}, "no BrushLabels"),
    ],
)
def test_what_cannot_be_done_is_said(client, options, said):
    answer = predict(client, click(30, 20), **options)
    assert answer.status_code == 422
    assert said in answer.json()["error"]


def test_a_context_of_something_else_is_refused(client):
    wrong = {**click(1, 1), "value": {"x": "left"}}
    assert "not one of clicks and boxes" in predict(client, wrong).json()["error"]
    other = {**click(1, 1), "original_width": 3 * W}
    assert "is it rotated?" in predict(client, other).json()["error"]


def test_keys(source):
    assert LabelStudio(source[1], "a.b.c").fetch(ADDRESS, 10**6) == image_file()
    for key in (None, "wrong"):
        with pytest.raises(Exception, match="is its key right"):
            LabelStudio(source[1], key).fetch(ADDRESS, 10**6)
    with pytest.raises(ValueError, match="'localhost:8080' is no address of Label Studio"):
        LabelStudio("localhost:8080", None)
