"""A process that makes composites: python -m sam_jax.composites.worker POOL SOURCE SLOTS TASKS RESULTS

Each argument is a descriptor that the process inherits; `workers.Workers` starts it. It imports no JAX.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import sys

from sam_jax.composites.pool import CutoutPool
from sam_jax.composites.shared_memory import receive
from sam_jax.composites.slots import Slots
from sam_jax.composites.source import CompositeSource

TASK = struct.Struct("<qq")  # the example's index, the slot that it goes into
_NICENESS = 5  # whoever feeds the accelerator comes first


def work(source: CompositeSource, slots: Slots, tasks: int, results: int) -> None:
    """Makes one example after the other until there is nobody left to ask for more.

    All workers read from one pipe and write to one: each takes the next task when it is done with the last. What is
    read or written is far shorter than PIPE_BUF, so that none is ever torn.
    """
    with contextlib.suppress(BrokenPipeError):  # whoever asked is gone
        while task := os.read(tasks, TASK.size):
            index, slot = TASK.unpack(task)
            slots.write(slot, source[index])
            os.write(results, task)


def main() -> None:
    """Works until the pipe of tasks is closed. Signals are for whoever started it: it decides when to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(_NICENESS)
    pool, source, slots, tasks, results = map(int, sys.argv[1:])
    config, seed = receive(source)
    work(CompositeSource(CutoutPool(**receive(pool)), config, seed), Slots(slots, config), tasks, results)


if __name__ == "__main__":
    main()
