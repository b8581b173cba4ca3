"""Many users at once, for a while; and the end of a process that is told to stop."""

import gc
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

from sam_jax.config import ServingConfig
from tests.serving.running import add, image_file, running

USERS = 32
ATTEMPTS = 3
MAX_GROWTH = 50e6  # bytes
PROMPT = {"objects": [{"point_coords": [[30, 20]], "point_labels": [1]}], "multimask_output": False}


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


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


@pytest.fixture(scope="module")
def server(crf_model, variables):
    with running(crf_model, variables, ServingConfig(port=0)) as server:
        server.service.warm_up()
        yield server


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
    gc.collect()
    before = resident_bytes()
    latencies = many(server, max(seconds, 2 * pause), pause)
    gc.collect()
    grown, single = resident_bytes() - before, max(single, alone(server))
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
        before = resident_bytes()
        for seed in range(100, 400):
            round_of(seed)
        assert resident_bytes() - before < MAX_GROWTH


@pytest.fixture
def process(checkpoint):
    command = [sys.executable, "-m", "sam_jax.serving", "--checkpoint", str(checkpoint), "--port", "0", "--no-onnx"]
    command += ["--max-batch", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                yield process, found[0]
                break
        else:
            raise AssertionError("the server did not start")
        process.kill()


@pytest.mark.long
def test_sigterm_finishes_what_runs(process):
    process, url = process
    with httpx.Client(base_url=url, timeout=600, trust_env=False) as client:
        name = add(client)
        wanted = {"points_per_side": 16, "pred_iou_thresh": 0, "stability_score_thresh": 0}
        with client.stream("POST", f"/v1/images/{name}/everything", json=wanted) as answer:
            lines = answer.iter_lines()
            while "progress" not in next(lines):
                pass
            process.send_signal(signal.SIGTERM)
            assert any(line == "event: masks" for line in lines)
    assert process.wait(timeout=30) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/v1/health", trust_env=False)
