"""Process-wide settings that the scripts make and the library never does by itself."""

from __future__ import annotations

import os
from pathlib import Path

import jax


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that a script's second start does not compile again.

    The directory is JAX_COMPILATION_CACHE_DIR, or sam_jax in the user's cache directory.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(root / "sam_jax" / "jit"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
