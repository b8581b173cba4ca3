"""The former place of `sam_jax.batch.stream`, and of its names; goes with version 0.3."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

_NEW_NAMES = {"segment_photos": "segment_images", "PhotoResult": "ImageResult", "Hooks": "Hooks", "Timings": "Timings"}


def __getattr__(name: str) -> Any:
    if name not in _NEW_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    new = _NEW_NAMES[name]
    warnings.warn(f"{__name__}.{name} is sam_jax.batch.stream.{new} now", FutureWarning, stacklevel=2)
    return getattr(importlib.import_module("sam_jax.batch.stream"), new)
