"""The page in a real browser: Chromium, headless, and how a user gets about in it."""

import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

from sam_jax.ops.rle import decode_mask
from sam_jax.serving.app import STATIC

ROOT = Path(__file__).parents[2]
MASK = "#keep:not([disabled])"  # what there is on the page when there is a mask
WAIT = 60_000  # milliseconds, on a busy machine
_SWITCHES = (
    "no-sandbox",
    "disable-gpu",
    "enable-unsafe-webgpu",  # played by the processor
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
)
_CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "/usr/bin/chromium"
)


def check_page_is_built():
    assert (STATIC / "index.html").exists(), "the page is not built: npm ci --prefix web"


@contextlib.contextmanager
def chromium():
    from playwright.sync_api import sync_playwright  # of the extra `browser`

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=_CHROMIUM, args=[f"--{switch}" for switch in (*_SWITCHES, "no-first-run")]
        )
        yield browser
        browser.close()


@contextlib.contextmanager
def serving(cache, *options):
    """`sam-jax serve` as users start it; its address, once its ONNX files are there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "sam_jax", "serve", "--port", str(port), *options]
    process = subprocess.Popen(command, cwd=ROOT, env=environment | {"XDG_CACHE_HOME": str(cache)})
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            while not _is_ready(client):
                assert process.poll() is None, "the server ended"
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _is_ready(client):
    try:
        state = client.get("/v1/model").json()["onnx"]
    except httpx.ConnectError:
        return False
    assert state != "not available", "the extra onnx is not installed"
    return state == "ready"


class Visitor:
    """A user of the page."""

    def __init__(self, page, url, decoder="this browser"):
        self.page = page
        self.errors = []
        page.set_default_timeout(WAIT)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(url)
        if decoder:
            page.wait_for_selector(f"html[data-decoder*='{decoder}']", state="attached")

    def open(self, content, name="image.png"):
        """Chooses an image file; seconds until it is ready."""
        start = time.perf_counter()
        self.page.set_input_files("#file", {"name": name, "mimeType": "image/*", "buffer": content})
        self.wait_for_image()
        return time.perf_counter() - start

    def wait_for_image(self):
        self.page.wait_for_selector("#latency:not(:empty)")

    def at(self, x, y):
        """Where a pixel of the image, at its actual size, is on the page. The image has to be that of `shown`."""
        left, top = self.corner
        return left + x, top + y

    def actual_size(self, height, width):
        self.page.keyboard.press("a")
        box = self.page.locator("#stage").bounding_box()
        assert box["width"] > width, box
        assert box["height"] > height, box
        # As the page centres it: on whole pixels.
        self.corner = [
            box[start] + np.floor((box[room] - length) / 2 + 0.5)
            for start, room, length in (("x", "width", width), ("y", "height", height))
        ]

    def click(self, x, y, **options):
        self.page.mouse.click(*self.at(x, y), **options)
        self.wait_for_mask()

    def drag(self, x0, y0, x1, y1, wait_for=MASK):
        self.page.mouse.move(*self.at(x0, y0))
        self.page.mouse.down()
        self.page.mouse.move(*self.at((x0 + x1) / 2, (y0 + y1) / 2))
        self.page.mouse.move(*self.at(x1, y1))
        self.page.mouse.up()
        self.wait_for_mask(wait_for)

    def wait_for_mask(self, selector=MASK):
        self.page.wait_for_selector(selector)
        self.page.mouse.move(2, 2)
        self.frames()

    def frames(self):
        """Until what is asked for is drawn."""
        self.page.evaluate("() => new Promise(go => requestAnimationFrame(() => requestAnimationFrame(go)))")

    def seen(self, height, width):
        """(H, W, 3) the image, at its actual size, as it is on the screen."""
        self.frames()
        left, top = self.corner
        shot = self.page.screenshot(clip={"x": left, "y": top, "width": width, "height": height})
        return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)

    def keep(self):
        self.page.keyboard.press("k")
        self.page.wait_for_selector("#tray li")

    def download(self, selector):
        """Content and name of the file that a button gives."""
        with self.page.expect_download() as waiting:
            self.page.locator(selector).last.click()
        return Path(waiting.value.path()).read_bytes(), waiting.value.suggested_filename

    def coco(self):
        return json.loads(self.download("#save-coco")[0])

    def kept_mask(self):
        """(H, W) bool, the mask that was kept last."""
        return decode_mask(self.coco()["annotations"][-1]["segmentation"])

    def violations(self):
        return violations(self.page)


def violations(page):
    """What axe-core, which has to be loaded, finds on a page: rules and elements."""
    tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
    found = page.evaluate("tags => axe.run({runOnly: tags})", tags)["violations"]
    return [(one["id"], [node["html"] for node in one["nodes"]]) for one in found]


def iou(a, b):
    return (a & b).sum() / max((a | b).sum(), 1)


def as_file(image, image_format="PNG", **options):
    content = io.BytesIO()
    Image.fromarray(image).save(content, image_format, **options)
    return content.getvalue()


def median(values):
    return float(np.median(values))
