"""Running the server in a thread of the test's process, and images to send it."""

import contextlib
import io
import threading
import time
from typing import NamedTuple

import httpx
import numpy as np
import uvicorn
from PIL import Image

from sam_jax.serving.app import create_app
from sam_jax.serving.service import SegmentationService
from tests.predicting import H, W, make_image


class Running(NamedTuple):
    """A server that listens: its address and its service."""

    url: str
    service: SegmentationService

    def client(self, **options):
        return httpx.Client(base_url=self.url, timeout=600, trust_env=False, **options)


@contextlib.contextmanager
def running(model, variables, config, towers=None, **app_options):
    service = SegmentationService(model, variables, "tiny", config, towers)
    # Uvicorn would set logging up anew, whereupon absl's handler closes the stream in which pytest captures.
    options = {"port": config.port, "log_level": "warning", "log_config": None, "ws": "none"}
    server = uvicorn.Server(uvicorn.Config(create_app(service, **app_options), **options))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Running(f"http://127.0.0.1:{port}", service)
    finally:
        server.should_exit = True
        thread.join()


def png(image, **options):
    """A (H, W, 3) image as a file."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG", **options)
    return content.getvalue()


def image_file(seed=0, size=(H, W)):
    return png(make_image(*size, seed))


def add(client, content=None):
    """Sends an image; its id."""
    answer = client.post("/v1/images", content=image_file() if content is None else content)
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def logits_of(text, low=20):
    import base64

    return np.frombuffer(base64.b64decode(text), "<f4").reshape(low, low)
