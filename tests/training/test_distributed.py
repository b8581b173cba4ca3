"""Two processes on loopback with four devices each, as two hosts of a pod: train, lose one, go on, also elsewhere."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_sa1b import write_tar

ROOT = Path(__file__).parents[2]
CONFIG_FILE = """
from sam_jax.config import *
from sam_jax import sharding
from tests.tiny import SMALLEST

sharding.MIN_SPLIT_ELEMENTS = 64  # tiny as they are, parameters are to be split

def get_config():
    return TrainConfig(
        sam=SMALLEST,
        stages=(StageConfig(48, 8, 2, num_steps={steps}),),
        data=RecordDataConfig({path!r}, hold_out=0.3),
        interaction=InteractionConfig(num_points=0, num_mask_only_steps=0),
        optim=OptimConfig(learning_rate=3e-5, warmup_steps=2, milestones=()),
        mesh=MeshConfig(fsdp=4),
        checkpoint_every=5,
        log_every=1,
        eval_every=10,
        eval_images=4,
    )
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("distributed")
    write_tar(root / "sa_000000.tar", 20)
    (root / "config.py").write_text(CONFIG_FILE.format(path=str(root), steps=20))
    return root


def start(root, workdir, host=None, hosts=1, port=None, devices=8, *options):
    env = dict(os.environ, XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}", PYTHONPATH=str(ROOT))
    env |= {"JAX_COMPILATION_CACHE_DIR": str(root / "jax_cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    env |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "JAX_PLATFORMS": "cpu"}
    args = [sys.executable, "train.py", str(root / "config.py"), "--workdir", str(workdir), *options]
    if hosts > 1:
        args += ["--distributed", "--coordinator", f"localhost:{port}", "--num-hosts", str(hosts), "--host", str(host)]
    with (root / f"{workdir.name}_{host}.txt").open("a") as out:
        return subprocess.Popen(args, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT)


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def both(root, workdir, *options):
    port = free_port()
    return [start(root, workdir, host, 2, port, 4, *options) for host in range(2)]


def losses_of(workdir):
    rows = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    return np.array([row["loss"] for row in rows if "loss" in row])


def output(root, workdir):
    return "\n".join(path.read_text()[-3000:] for path in root.glob(f"{workdir.name}_*.txt"))


@pytest.fixture(scope="module")
def alone(root):
    """The curve of one process with eight devices."""
    assert start(root, root / "alone").wait() == 0, output(root, root / "alone")
    return losses_of(root / "alone")


@pytest.mark.long
def test_two_processes_give_the_curve_of_one(root, alone):
    workdir = root / "pair"
    assert [process.wait() for process in both(root, workdir)] == [0, 0], output(root, workdir)
    np.testing.assert_allclose(losses_of(workdir), alone, atol=1e-5)
    assert {path.name for path in (workdir / "logs").iterdir()} == {"host_0.log", "host_1.log"}


@pytest.mark.slow
def test_a_lost_process_and_another_mesh(root, alone):
    """One process dies; both start again and are stopped in good order; one process ends the run on another mesh."""
    workdir = root / "lost"
    processes = both(root, workdir)
    while not (workdir / "log.jsonl").exists() or len(losses_of(workdir)) < 7:
        assert all(process.poll() is None for process in processes), output(root, workdir)
        time.sleep(0.02)
    processes[1].kill()
    processes[1].wait()
    processes[0].kill()  # what a scheduler does when a host is gone
    processes[0].wait()

    processes = both(root, workdir)
    while "step 5 of 20" not in (workdir / "logs" / "host_1.log").read_text():
        assert all(process.poll() is None for process in processes), output(root, workdir)
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGTERM)  # one host is told; both save and stop
    codes = [process.wait() for process in processes]
    assert codes in ([75, 75], [0, 0]), output(root, workdir)

    assert start(root, workdir, "last", 1, None, 8, "--mesh.fsdp", "2").wait() == 0, output(root, workdir)
    np.testing.assert_allclose(losses_of(workdir), alone, atol=1e-5)
    assert (workdir / "model").exists()
