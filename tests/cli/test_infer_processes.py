"""The command over many images in processes of its own, which can be killed and can be several hosts."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.many_images import OPTIONS, contents, failures, folder

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Where these processes keep compiled programs."""
    return tmp_path_factory.mktemp("compiled")


def start(checkpoint, compiled, out, *arguments, devices=1):
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(compiled),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, ROOT / "infer.py", *arguments, *OPTIONS, "--checkpoint", checkpoint, "--out", out]
    return subprocess.Popen(
        list(map(str, command)), env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.long
def test_killed_and_started_again(checkpoint, compiled, tmp_path):
    inputs = folder(tmp_path / "p", 60)
    out = tmp_path / "out"
    process = start(checkpoint, compiled, out, inputs, "--format", "png,coco")
    while process.poll() is None and len(list(out.rglob("*.json"))) < 8:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()[0]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.json")}
    assert 8 <= len(before) < 60
    for path in before:
        json.loads(path.read_text())  # whole
    process = start(checkpoint, compiled, out, inputs, "--format", "png,coco")
    text = process.communicate()[0]
    assert process.returncode == 0, text
    assert f"already finished: {len(before)}" in text
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in before.items())  # no image twice
    alone = tmp_path / "alone"
    process = start(checkpoint, compiled, alone, inputs, "--format", "png,coco")
    text = process.communicate()[0]
    assert process.returncode == 0, text
    assert contents(out) == contents(alone)  # none missing, none half


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_two_hosts_write_what_one_does(checkpoint, compiled, tmp_path):
    inputs = folder(tmp_path / "p", 9)
    (inputs / "bad.jpg").write_text("no image")
    alone = start(checkpoint, compiled, tmp_path / "alone", inputs, "--format", "coco,png")
    text = alone.communicate()[0]
    assert alone.returncode == 1, text
    port = free_port()
    hosts = [
        start(
            *(checkpoint, compiled, tmp_path / "pair", inputs, "--format", "coco,png", "--distributed"),
            *("--coordinator", f"localhost:{port}", "--num-hosts", 2, "--host", host),
            devices=2,
        )
        for host in range(2)
    ]
    texts = [process.communicate()[0] for process in hosts]
    assert sorted(process.returncode for process in hosts) == [0, 1], texts
    assert contents(tmp_path / "pair", ["failures"]) == contents(tmp_path / "alone", ["failures"])
    lists = [path.name for path in (tmp_path / "pair").glob("failures*")]
    assert len(lists) == 1
    assert lists[0] in ("failures_0.jsonl", "failures_1.jsonl")
    assert failures(tmp_path / "pair", lists[0]) == failures(tmp_path / "alone")
