"""Processes that make composites, and what lies between them and whoever trains: slots in shared memory, two pipes."""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator

from sam_jax.composites.pool import load_pool
from sam_jax.composites.shared_memory import allocate, share
from sam_jax.composites.slots import Slots, slot_dtype
from sam_jax.composites.worker import TASK
from sam_jax.config import CompositeConfig

MOST_ASKED = 2000  # tasks at a time: both pipes hold 4096 of them
_PATIENCE = 0.2  # seconds between two looks at whether the workers live
# One thread each: there is a worker for every core.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class WorkerError(ChildProcessError):
    """A process that makes composites is gone."""


class Workers:
    """`count` processes that make examples of one pool and config, and write them into slots of shared memory.

    They are programs of their own, which inherit nothing of this process but a few descriptors: no JAX, no threads, no
    `__main__`. When this process ends, however it ends, they read the end of a pipe and end, too; the memory has no
    name, and goes with them. A context manager that ends them at once.

    Args:
      pool: the directory of a pool, of which the train split is used.
      config: how composites are made.
      seed: with an example's index, what it hangs on; as `CompositeSource`.
      count: processes.
      capacity: slots.
    """

    def __init__(self, pool: str, config: CompositeConfig, seed: int, count: int, capacity: int):
        memory = allocate(capacity * slot_dtype(config).itemsize)
        source = share((config, seed))
        read_tasks, self._tasks = os.pipe()
        self._results, write_results = os.pipe()
        inherited = (_shared_pool(pool), source, memory, read_tasks, write_results)
        self.slots = Slots(memory, config)
        self._asked = 0
        command = [sys.executable, "-m", "sam_jax.composites.worker", *map(str, inherited)]
        environment = os.environ | _ONE_THREAD | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._processes = [
            # In a session of their own, for Ctrl-C is not for them.
            subprocess.Popen(command, env=environment, pass_fds=inherited, start_new_session=True)
            for _ in range(count)
        ]
        for descriptor in inherited[1:]:
            os.close(descriptor)

    def __len__(self) -> int:
        return len(self._processes)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def asked(self) -> int:
        """Examples that were asked for and are not finished."""
        return self._asked

    def ask(self, index: int, slot: int) -> None:
        """Has an example made and written into a slot. At most MOST_ASKED are to be asked for at a time."""
        with contextlib.suppress(BrokenPipeError):  # all are dead, which `finished` says
            os.write(self._tasks, TASK.pack(index, slot))
        self._asked += 1

    def finished(self, wait: bool = True) -> list[int]:
        """Slots that are filled since the last call; waits for at least one if it is told to.

        Raises:
          WorkerError: a worker has ended.
        """
        while True:
            ready = list(self._read(_PATIENCE if wait else 0.0))
            for process in self._processes:
                if (code := process.poll()) is not None:
                    raise WorkerError(f"a process that makes composites {_end(code)}; run the same command to go on")
            if ready or not wait:
                self._asked -= len(ready)
                return ready

    def _read(self, seconds: float) -> Iterator[int]:
        while select.select([self._results], [], [], seconds)[0]:
            records = os.read(self._results, TASK.size * MOST_ASKED)
            if not records:  # every worker is gone
                return
            yield from (slot for _, slot in TASK.iter_unpack(records))
            seconds = 0.0

    def close(self) -> None:
        """Ends the processes, which have nothing to lose. May be called twice."""
        if self._tasks < 0:
            return
        for descriptor in (self._tasks, self._results):
            os.close(descriptor)
        self._tasks = self._results = -1
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()


@functools.lru_cache(maxsize=1)
def _shared_pool(root: str) -> int:
    """The train split, decoded once for all workers of all stages: a descriptor that stays open."""
    return share(vars(load_pool(root, "train")))


def _end(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}; what it said stands above"
    return f"ended with exit code {code} ({signal.Signals(-code).name}): was there enough memory?"
