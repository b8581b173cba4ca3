"""The server's process is killed at random points while clients save."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import httpx
import numpy as np
import pytest

from sam_jax.engine.store import Store
from sam_jax.ops.rle import encode_mask
from tests.engine.stores import SIZE, make_store

ROOT = Path(__file__).parents[2]


class Server:
    """One process after the other, on one port."""

    def __init__(self, directory):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._command = [sys.executable, "-m", "tests.engine.store_server", str(directory), str(self.port)]
        self.process = None

    def start(self):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        self.process = subprocess.Popen(self._command, cwd=ROOT, env=environment)
        with self.client() as client:
            while self.process.poll() is None:
                with contextlib.suppress(httpx.TransportError):
                    if client.get("/v1/engine").status_code == 200:
                        return
                time.sleep(0.05)
        raise AssertionError("the server ended")

    def client(self):
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30, trust_env=False)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def insist(client, method, path, **options):
    """Sends until there is an answer, as the page does."""
    while True:
        with contextlib.suppress(httpx.TransportError):
            answer = client.request(method, path, **options)
            if answer.status_code != 503:
                return answer
        time.sleep(0.02)


def annotate(server, annotator, stop, answered, seed):
    """Saves new masks and changes some, until told to stop; `answered` has what was answered 200."""
    rng = np.random.default_rng(seed)
    with server.client() as client:
        task = insist(client, "POST", "/v1/engine/next", json={"annotator": annotator}).json()
        mine = []
        while not stop.is_set():
            key = rng.choice(mine) if mine and rng.random() < 0.3 else str(uuid.uuid4())
            version = answered[key][0] if key in answered else 0
            mask = encode_mask(rng.random(SIZE) > 0.5)
            sent = {"annotator": annotator, "version": version, "segmentation": mask}
            answer = insist(client, "PUT", f"/v1/engine/tasks/{task['task_id']}/masks/{key}", json=sent)
            assert answer.status_code == 200, answer.text
            assert answer.json()["version"] == version + 1
            answered[key] = (version + 1, mask["counts"])
            mine += [] if version else [key]


def check(directory, answered):
    """Everything that was answered is there, once, and nothing else but what was on its way."""
    with Store(directory) as store:
        assert store.select_one("PRAGMA integrity_check")[0] == "ok"
        assert store.select("PRAGMA foreign_key_check") == []
        found = {mask.key: (mask.version, mask.segmentation["counts"]) for mask in store.stream_masks()}
        assert len(found) == store.statistics().masks
    return found


def kill_while_saving(tmp_path, kills, seed=0):
    with make_store(tmp_path, 3) as store:
        directory = store.directory
    server, stop, answered = Server(directory), threading.Event(), [{}, {}]
    rng = np.random.default_rng(seed)
    server.start()
    threads = [
        threading.Thread(target=annotate, args=(server, f"annotator {number}", stop, answered[number], number))
        for number in range(2)
    ]
    failures = []
    threading.excepthook, before = lambda failure: failures.append(failure.exc_value), threading.excepthook
    try:
        for thread in threads:
            thread.start()
        for _ in range(kills):
            count = sum(map(len, answered))
            while sum(map(len, answered)) < count + 3 and not failures:
                time.sleep(0.01)
            time.sleep(rng.random() * 0.3)
            server.kill()
            said = {key: value for part in answered for key, value in part.copy().items()}
            found = check(directory, said)
            for key, (version, counts) in said.items():
                assert found[key] == (version, counts) or found[key][0] == version + 1
            assert len(found.keys() - said.keys()) <= len(threads)  # saved, but killed before the answer
            server.start()
        stop.set()
        for thread in threads:
            thread.join()
    finally:
        stop.set()
        threading.excepthook = before
        server.kill()
        for thread in threads:
            thread.join(5)
    assert failures == []
    said = {key: value for part in answered for key, value in part.items()}
    assert check(directory, said) == said
    return len(said)


def test_no_saved_mask_is_lost_when_the_server_is_killed(tmp_path):
    assert kill_while_saving(tmp_path, 2) > 6


@pytest.mark.long
def test_no_saved_mask_is_lost_when_the_server_is_killed_twenty_times(tmp_path):
    assert kill_while_saving(tmp_path, 20, seed=1) > 60


@pytest.mark.long
def test_the_command_serves_and_ends(tmp_path, checkpoint):
    """`sam-jax engine serve` itself, with its model: an image from next to done; SIGTERM ends it."""
    with make_store(tmp_path, 1) as store:
        store.promote(store.add_candidate("tiny", str(checkpoint), 1).id)
        directory = store.directory
    server = Server(directory)
    server._command = [sys.executable, "-m", "sam_jax", "engine", "serve", str(directory), "--no-onnx"]
    server._command += ["--port", str(server.port)]
    server.start()
    with server.client() as client:
        assert client.get("/v1/engine").json()["model_version"] == "tiny"
        task = client.post("/v1/engine/next", json={"annotator": "ada"}).json()
        content = client.get(f"/v1/engine/images/{task['image']['id']}/file").content
        image = client.post("/v1/images", content=content).json()
        wanted = {"objects": [{"point_coords": [[9, 9]], "point_labels": [1]}], "multimask_output": False}
        (found,) = client.post(f"/v1/images/{image['id']}/masks", json=wanted).json()["objects"]
        mask = found["masks"][0]["segmentation"] if found["masks"][0]["area"] else encode_mask(np.ones(SIZE, bool))
        sent = {"annotator": "ada", "version": 0, "segmentation": mask, "proposal": mask}
        path = f"/v1/engine/tasks/{task['task_id']}"
        assert client.put(f"{path}/masks/{uuid.uuid4()}", json=sent).status_code == 200
        done = client.post(f"{path}/done", json={"annotator": "ada", "seconds": 3, "order": []})
        assert json.loads(done.text)["statistics"]["proposal_iou"] == 1
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) in (0, -signal.SIGTERM)
