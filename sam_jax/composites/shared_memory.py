"""Memory that processes share and that has no name: it is gone with the last process that maps it, however that ends.

A process reaches it through a file descriptor that it inherits.
"""

from __future__ import annotations

import itertools
import mmap
import os
import pickle
import struct
import tempfile
from typing import Any

_LENGTH = struct.Struct("<q")


def allocate(size: int) -> int:
    """A descriptor of `size` bytes, all zero. No memory is taken before they are written."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("sam_jax")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, size)
    return descriptor


def attach(descriptor: int, writable: bool = False) -> mmap.mmap:
    """The bytes of a descriptor; they stay mapped when it is closed."""
    return mmap.mmap(descriptor, 0, access=mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ)


def share(value: Any) -> int:
    """A descriptor from which `receive` gives a picklable value back, the data of its numpy arrays shared."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    parts = [buffer.raw() for buffer in buffers]
    tail = pickle.dumps(([part.nbytes for part in parts], pickled))
    descriptor = allocate(sum(part.nbytes for part in parts) + len(tail) + _LENGTH.size)
    memory, place = attach(descriptor, writable=True), 0
    for part in (*parts, memoryview(tail), memoryview(_LENGTH.pack(len(tail)))):
        memory[place : place + part.nbytes] = part
        place += part.nbytes
    memory.close()
    return descriptor


def receive(descriptor: int) -> Any:
    """The value that `share` was given; its arrays are read-only and lie in the shared memory."""
    memory = memoryview(attach(descriptor))
    (length,) = _LENGTH.unpack(memory[-_LENGTH.size :])
    sizes, pickled = pickle.loads(memory[-_LENGTH.size - length : -_LENGTH.size])
    ends = itertools.accumulate(sizes)
    return pickle.loads(pickled, buffers=[memory[end - size : end] for size, end in zip(sizes, ends, strict=True)])
