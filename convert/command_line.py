"""What the converters' command lines share: a source, a target, and how they fail."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import jax
from etils import epath

from convert.errors import one_line_errors
from sam_jax.checkpoint import CheckpointError

MODEL_DIRECTORY = "model directory to write, local or gs://; must not exist yet"


def make_parser(program: str, description: str | None, source: str, target: str) -> argparse.ArgumentParser:
    """A parser with `source` and `target`, each described in a line; options are the caller's to add."""
    parser = argparse.ArgumentParser(
        prog=program, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help=source)
    parser.add_argument("target", help=target)
    return parser


def run(convert: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Converts on the CPU; what a user can mend ends in one line on stderr and exit code 2."""
    jax.config.update("jax_platforms", "cpu")  # leaves the accelerator alone
    with one_line_errors():
        convert(args)


def check_new_directory(target: str) -> None:
    """Raises CheckpointError where the target exists. save_model says so too, but only after the work."""
    if epath.Path(target).exists():
        raise CheckpointError(f"{target} exists already; remove it or choose another directory")
