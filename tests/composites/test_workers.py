"""Processes that make composites: the same batches as without them, whatever happens, and nothing left behind."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sam_jax.composites.shared_memory import receive, share
from sam_jax.composites.slots import slot_dtype
from sam_jax.composites.workers import WorkerError, Workers
from sam_jax.config import CompositeConfig, CompositeDataConfig, StageConfig
from sam_jax.training.batches import make_batches, worker_count
from tests.tiny_pool import write_pool

ROOT = Path(__file__).parents[2]
STAGE = StageConfig(48, batch_size=4, masks_per_image=3, num_steps=10)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    return str(write_pool(tmp_path_factory.mktemp("pool")))


def batches_of(pool, first_step=0, shard=(0, 1), stage=STAGE, **data):
    return make_batches(CompositeDataConfig(pool, **data), stage, 3, first_step, shard)


def take(batches, count):
    taken = list(itertools.islice(batches, count))
    batches.close()
    return taken


def same(ones, others):
    for one, other in zip(ones, others, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
            assert one[name].dtype == other[name].dtype


@pytest.fixture(scope="module")
def expected(pool):
    """What threads of this process make."""
    return take(batches_of(pool, num_workers=0), 6)


def test_batches_are_those_that_are_made_without_workers(pool, expected):
    same(take(batches_of(pool, num_workers=3), 6), expected)


def test_a_continuation_and_two_hosts_see_the_same_batches(pool, expected):
    same(take(batches_of(pool, first_step=2, num_workers=1), 4), expected[2:])
    parts = [take(batches_of(pool, 1, (host, 2), num_workers=1), 2) for host in range(2)]
    joined = [
        {name: np.concatenate([one[name], other[name]]) for name in one} for one, other in zip(*parts, strict=True)
    ]
    same(joined, expected[1:3])


def test_examples_that_are_kept_come_again_in_the_same_order(pool):
    stage = StageConfig(48, batch_size=4, masks_per_image=3, num_steps=10, num_examples=10)
    same(*(take(batches_of(pool, 1, stage=stage, num_workers=count), 7) for count in (0, 1)))


def test_reuse_is_bounded_and_new_examples_arrive(pool):
    batches = batches_of(pool, num_workers=1, reuse=3)
    seen = np.concatenate([batch["image_id"] for batch in take(batches, 16)])
    ids, uses = np.unique(seen, return_counts=True)
    assert uses.max() <= 3
    assert len(ids) >= 16 * 4 / 3
    again = batches_of(pool, first_step=16, num_workers=1, reuse=3)
    assert not set(take(again, 1)[0]["image_id"]) & set(ids)  # a continuation begins with new ones


def test_a_small_buffer_holds_the_examples_used_least(pool, expected):
    """Room for ten examples alone: they give way to new ones, each after one use at least."""
    room = 10 * slot_dtype(CompositeConfig(image_size=48, masks_per_image=3)).itemsize / 2**30
    batches = batches_of(pool, num_workers=2, reuse=50, buffer_gib=1.001 * room)
    seen = [set(batch["image_id"].tolist()) for batch in take(batches, 12)]
    assert all(len(ids) == 4 for ids in seen)
    assert max(max(ids) for ids in seen) > 10
    with pytest.raises(ValueError, match=r"data.buffer_gib 1e-05 holds 1 examples of 48 px, and 8 are two batches"):
        batches_of(pool, num_workers=2, buffer_gib=1e-5)


def test_workers_import_no_jax(pool):
    """Nor does any of them see this process's modules."""
    code = (
        "import sys; from sam_jax.composites import worker; print({'jax', 'flax', 'grain', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_dead_worker_is_an_error_that_names_its_end(pool, capfd):
    config = CompositeConfig(image_size=48)
    with Workers(pool, config, 0, 2, 8) as workers:
        workers.ask(0, 0)
        workers.finished()
        workers._processes[1].kill()
        workers._processes[1].wait()
        with pytest.raises(WorkerError, match=r"exit code -9 \(SIGKILL\).*enough memory.*same command"):
            workers.finished(wait=False)
    assert all(process.returncode is not None for process in workers._processes)
    with Workers(pool, config, 0, 1, 8) as workers:
        workers.ask(-1, 0)  # there is no such example
        with pytest.raises(WorkerError, match="exit code 1; what it said stands above"):
            workers.finished()
    assert "IndexError" in capfd.readouterr().err


def test_a_dead_worker_ends_the_batches(pool):
    batches = batches_of(pool, num_workers=1, reuse=2)
    next(batches)
    batches._workers._processes[0].kill()
    with pytest.raises(WorkerError):
        list(batches)


HOST = """
import signal, sys, time
from sam_jax.composites.workers import Workers
from sam_jax.config import CompositeConfig
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started this with SIGINT ignored
workers = Workers(sys.argv[1], CompositeConfig(image_size=48), 0, 2, 8)
workers.ask(0, 0)
workers.finished()
print(*(process.pid for process in workers._processes), flush=True)
while True:
    time.sleep(1)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_the_process_that_started_it(pool, number):
    host = subprocess.Popen([sys.executable, "-c", HOST, pool], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in host.stdout.readline().split()]
    assert len(pids) == 2
    os.kill(pids[0], signal.SIGTERM)  # as when all processes of a job are told to stop: it waits for its host
    assert all(is_running(pid) for pid in pids)
    assert "/dev/shm" not in Path(f"/proc/{pids[0]}/maps").read_text()  # memory with a name could stay
    host.send_signal(number)
    host.wait(10)
    host.stdout.close()
    deadline = time.monotonic() + 10
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid):
    try:
        os.kill(pid, 0)
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_shared_arrays_come_back_as_they_were_and_read_only():
    rng = np.random.default_rng(0)
    value = {"a": (rng.random((3, 5)), rng.integers(0, 9, (0, 2))), "b": [rng.random(7), "text"]}
    found = receive(share(value))
    np.testing.assert_array_equal(found["a"][0], value["a"][0])
    np.testing.assert_array_equal(found["b"][0], value["b"][0])
    assert found["a"][1].shape == (0, 2)
    assert found["b"][1] == "text"
    with pytest.raises(ValueError, match="read-only"):
        found["a"][0][0] = 1


def test_how_many_workers_there_are_by_default(pool):
    cores = len(os.sched_getaffinity(0))
    assert worker_count(CompositeDataConfig(pool), accelerated=True) == max(0, cores - 2)
    assert worker_count(CompositeDataConfig(pool), accelerated=False) == 0
    assert worker_count(CompositeDataConfig(pool, reuse=2), accelerated=False) == 1
    assert worker_count(CompositeDataConfig(pool, num_workers=5), accelerated=False) == 5
