"""Errors of the converters; the message names the value at fault and the remedy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from etils import epath


class ConversionError(ValueError):
    """A checkpoint that cannot be converted."""


@contextlib.contextmanager
def needs_torch() -> Iterator[None]:
    """Turns a missing torch or safetensors into a ConversionError that says how to get it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "safetensors"):
            raise
        raise ConversionError(
            f"{error.name} is not installed; conversion needs it: pip install 'sam_jax[convert]'"
        ) from None


def check_new_directory(target: str) -> None:
    """Raises ConversionError if the target exists. save_model checks this too, but only after the conversion."""
    if epath.Path(target).exists():
        raise ConversionError(f"{target} exists already; remove it or choose another directory")
