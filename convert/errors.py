"""How the converters fail: one line on stderr, exit code 2."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from sam_jax.checkpoint import CheckpointError


class ConversionError(ValueError):
    """A checkpoint that cannot be converted. The message names the value at fault and the remedy."""


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns the errors that a user can cause into one line on stderr and exit code 2; others keep their traceback."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "safetensors"):
            raise
        _exit(f"{error.name} is not installed; conversion needs it: pip install 'sam_jax[convert]'")
    except (ConversionError, CheckpointError) as error:
        _exit(str(error))
    except OSError as error:
        _exit(f"{error}; check the path, its permissions and the space left")


def _exit(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)
