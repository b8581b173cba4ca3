"""`sam-jax COMMAND ...`: finds the command and runs it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from sam_jax import __version__
from sam_jax.cli import parsing

COMMANDS = {
    "infer": "segment images: by points and boxes, or everything in them",
    "train": "train or fine-tune a model, from a recipe by name or file",
    "video": "carry masks through the frames of a video",
    "evaluate": "score a model's masks on labelled images",
    "zero-shot": "edges, object proposals and instances, as in the SAM paper",
    "convert": "convert weights from and to PyTorch, and models to ONNX",
    "serve": "serve a model to many users over HTTP",
    "engine": "label images by hand and by model, round after round",
    "data": "prepare, check and describe training data",
}
_LINES = "\n".join(f"  sam-jax {name:<9} {text}" for name, text in COMMANDS.items())
HELP = f"""Segment Anything in JAX.

usage: sam-jax COMMAND ...

{_LINES}

`sam-jax COMMAND --help` explains each; `sam-jax --version` prints the version."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0 done, 2 wrong input, others as in the command's help."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--version"]:
        print(f"sam_jax {__version__}")
        return 0
    chosen = parsing.choose(COMMANDS, "sam-jax", HELP, arguments)
    if isinstance(chosen, int):
        return chosen
    _, program, rest = chosen
    done: int = importlib.import_module(f"sam_jax.cli.{program.split()[-1].replace('-', '_')}").main(rest)
    return done
