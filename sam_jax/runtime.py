"""Process-wide settings, which commands apply and the library never does by itself."""

from __future__ import annotations

import os
from pathlib import Path

import jax

_WEEK = 7 * 24 * 3600


def use_compilation_cache() -> None:
    """Caches compiled programs on disk, so that the next start does not compile again.

    The directory is JAX_COMPILATION_CACHE_DIR, or sam_jax/jit in the user's cache directory.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(root / "sam_jax" / "jit"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def connect_hosts(coordinator: str | None, num_hosts: int | None, host: int | None) -> tuple[int, int]:
    """Connects this process with those of the other hosts. Call it before anything that uses a device.

    Args:
      coordinator: address of host 0, "HOST:PORT"; all arguments may be None on TPU VMs, Slurm and Kubernetes.
      num_hosts: number of hosts.
      host: number of this host, from 0.

    Returns:
      The number of this host, and the number of hosts.
    """
    # A host that finishes early must wait for the others, however long they take: it may be the coordinator.
    jax.distributed.initialize(coordinator, num_hosts, host, shutdown_timeout_seconds=_WEEK)
    return jax.process_index(), jax.process_count()


def wait_for_hosts() -> None:
    """Returns when all hosts have called it, and disconnects them."""
    jax.distributed.shutdown()
