"""Many users at once, for a while; and the end of a process that is told to stop.

The server is a process of its own, as it is for its users: in one process both sides would share Python's lock.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.serving.running import add, image_file

USERS = 32
ATTEMPTS = 3
MAX_GROWTH = 50e6  # bytes
PROMPT = {"objects": [{"point_coords": [[30, 20]], "point_labels": [1]}], "multimask_output": False}


class Server:
    """A process that serves, and its address."""

    def __init__(self, process, url):
        self.process, self.url = process, url

    def client(self):
        return httpx.Client(base_url=self.url, timeout=600, trust_env=False)

    def resident_bytes(self):
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def serving(checkpoint):
    command = [sys.executable, "-m", "sam_jax.serving", "--checkpoint", str(checkpoint), "--port", "0", "--no-onnx"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        else:
            raise AssertionError("the server did not start")
        threading.Thread(target=process.stderr.read, daemon=True).start()  # or it would wait for a reader
        try:
            yield Server(process, found[0])
        finally:
            process.kill()


@pytest.fixture(scope="module")
def server(checkpoint):
    with serving(checkpoint) as server:
        yield server


def ask(client, name):
    """Seconds to the answer."""
    start = time.perf_counter()
    answer = client.post(f"/v1/images/{name}/masks", json=PROMPT)
    assert answer.status_code == 200, answer.text
    return time.perf_counter() - start


def many(server, seconds, pause):
    """Latencies of USERS users, each with an image and a connection of its own, who pause between requests."""
    latencies, errors, begin = [], [], threading.Barrier(USERS)

    def user(number):
        try:
            with server.client() as client:
                name = add(client, image_file(number))
                begin.wait()
                time.sleep(pause * number / USERS)  # people do not click in step
                ends = time.monotonic() + seconds
                while time.monotonic() < ends:
                    latencies.append(ask(client, name))
                    time.sleep(pause)
        except BaseException as error:
            errors.append(error)
            begin.abort()

    threads = [threading.Thread(target=user, args=[number]) for number in range(USERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    return latencies


def alone(server):
    """The median latency of a single user."""
    with server.client() as client:
        name = add(client)
        return np.median([ask(client, name) for _ in range(30)][10:])


def load(server, seconds):
    """Latencies of many users for so many seconds, and that of one alone; no error, and memory is flat.

    People pause between clicks: here so long that all together ask for half of what one user without a pause gets.
    """
    single = alone(server)
    pause = 2 * USERS * single
    many(server, pause, pause)  # everybody's connection once, before memory is looked at
    before = server.resident_bytes()
    latencies = many(server, max(seconds, 2 * pause), pause)
    grown, single = server.resident_bytes() - before, max(single, alone(server))
    print(f"one user {single:.4f} s; {len(latencies)} requests of {USERS}, {grown} bytes more")
    assert grown < MAX_GROWTH
    return latencies, single


@pytest.mark.slow
def test_many_users_at_once(server):
    assert len(load(server, 3)[0]) >= 2 * USERS


@pytest.mark.slow
def test_many_users_wait_little(server):
    """For a minute; on a machine that others do not use, within the three attempts."""
    for _ in range(ATTEMPTS):
        latencies, single = load(server, 60)
        p95 = np.quantile(latencies, 0.95)
        print(f"p95 {p95:.4f} s, {p95 / single:.2f} times that of one user")
        if p95 < 4 * single:
            return
    raise AssertionError(f"p95 {p95:.4f} s, one user alone {single:.4f} s")


@pytest.mark.long
def test_memory_stays_flat_with_ever_new_sizes(server):
    with server.client() as client:

        def round_of(seed):
            size = 40 + seed % 97, 60 + seed % 89
            ask(client, add(client, image_file(seed, size)))

        for seed in range(100):
            round_of(seed)
        before = server.resident_bytes()
        for seed in range(100, 400):
            round_of(seed)
        assert server.resident_bytes() - before < MAX_GROWTH


@pytest.mark.long
def test_sigterm_finishes_what_runs(checkpoint):
    with serving(checkpoint) as server, server.client() as client:
        name = add(client)
        wanted = {"points_per_side": 16, "pred_iou_thresh": 0, "stability_score_thresh": 0}
        with client.stream("POST", f"/v1/images/{name}/everything", json=wanted) as answer:
            lines = answer.iter_lines()
            while "progress" not in next(lines):
                pass
            server.process.send_signal(signal.SIGTERM)
            assert any(line == "event: masks" for line in lines)
        assert server.process.wait(timeout=30) == 0
        with pytest.raises(httpx.ConnectError):
            client.get("/v1/health")
