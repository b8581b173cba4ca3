"""Label Studio itself, where `label-studio` is on the path (pip install label-studio, in an environment of its own):
it connects to the server, sends clicks and boxes, and keeps the masks that it gets."""

import os
import shutil
import socket
import subprocess
import time

import httpx
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

PROGRAM = shutil.which("label-studio")
TOKEN = "0123456789abcdef0123456789abcdef01234567"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(PROGRAM is None, reason="there is no label-studio on the path")]


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """A client of a Label Studio of our own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # It may speak to addresses of this machine; it must not to anybody else.
    switches = {"ML_BLOCK_LOCAL_IP": "false", "SSRF_PROTECTION_ENABLED": "false", "COLLECT_ANALYTICS": "false"}
    switches |= {"LATEST_VERSION_CHECK": "false", "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true"}
    folder = tmp_path_factory.mktemp("studio")
    user = ["--username", "ada@example.org", "--password", "analytical", "--user-token", TOKEN]
    command = [PROGRAM, "start", "--no-browser", "--port", str(port), "--data-dir", str(folder), *user]
    # Not JAX's devices, and none of this environment's packages.
    environment = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "PYTHONPATH")}
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(command, env=environment | switches, stdout=log, stderr=log, cwd=folder)
    options = {"headers": {"Authorization": f"Token {TOKEN}"}, "timeout": 120, "trust_env": False}
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", **options) as client:
            ends = time.monotonic() + 300
            while not is_up(client):
                lives = process.poll() is None and time.monotonic() < ends
                assert lives, (folder / "log.txt").read_text()[-3000:]
                time.sleep(1)
            yield client
    finally:
        process.terminate()
        process.wait()


def is_up(client):
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def backend(studio, variables):
    """The address of our server, which has a token."""
    router = create_router(LabelStudio(str(studio.base_url), TOKEN))
    with running(Sam(TINY), variables, ServingConfig(port=0, token="secret"), routers=[router]) as server:
        yield f"{server.url}/v1/label-studio"


def done(answer):
    assert answer.is_success, answer.text
    return answer.json()


def test_clicks_become_masks_that_it_keeps(studio, backend, variables):
    project = done(studio.post("/api/projects/", json={"title": "scenes", "label_config": INTERFACE}))["id"]
    sent = {"file": ("scene.png", image_file(), "image/png")}
    assert done(studio.post(f"/api/projects/{project}/import", files=sent))["task_count"] == 1
    (task,) = done(studio.get("/api/tasks/", params={"project": project, "fields": "all"}))["tasks"]
    connection = {"project": project, "title": "sam_jax", "url": backend, "is_interactive": True}
    login = {"auth_method": "BASIC_AUTH", "basic_auth_user": "sam_jax", "basic_auth_pass": "secret"}
    model = done(studio.post("/api/ml/", json=connection | login))["id"]

    predictor = SamPredictor(Sam(TINY), variables)
    predictor.set_image(make_image(H, W))
    box = predictor.predict(np.array([[30.0, 20]]), np.array([1]), np.array([10.0, 5, 50, 33]), multimask_output=False)
    for drawn, expected in (
        ([click(30, 20)], predictor.predict(np.array([[30.0, 20]]), np.array([1]))),
        ([click(30, 20), rectangle(10, 5, 50, 33)], box),
    ):
        asked = {"task": task["id"], "context": {"result": drawn}}
        (region,) = done(studio.post(f"/api/ml/{model}/interactive-annotating", json=asked))["data"]["result"]
        mask = decode_brush(region["value"]["rle"], (H, W))
        assert (mask == expected.masks[expected.iou_predictions.argmax()]).mean() > 0.99
        kept = done(studio.post(f"/api/tasks/{task['id']}/annotations/", json={"result": [region]}))
        (stored,) = done(studio.get(f"/api/annotations/{kept['id']}/"))["result"]
        np.testing.assert_array_equal(decode_brush(stored["value"]["rle"], (H, W)), mask)


def test_a_wrong_password_is_refused(studio, backend):
    project = done(studio.post("/api/projects/", json={"title": "others", "label_config": INTERFACE}))["id"]
    connection = {"project": project, "title": "sam_jax", "url": backend, "is_interactive": True}
    login = {"auth_method": "BASIC_AUTH", "basic_auth_user": "sam_jax", "basic_auth_pass": "wrong"}
    assert studio.post("/api/ml/", json=connection | login).status_code == 400
