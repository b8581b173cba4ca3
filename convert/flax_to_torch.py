"""Converts a model directory of this library to a PyTorch file that the official code loads.

    python -m convert.flax_to_torch checkpoints/sam_vit_b out.pth

Every value stays bit for bit what it is. What `SamConfig.crf` does to masks afterwards does not travel with them.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from convert.command_line import make_parser, run
from convert.errors import ConversionError
from convert.rules import expected_leaves, official_key
from sam_jax.checkpoint import Variables, load_config, load_variables


def to_state_dict(variables: Variables) -> dict[str, np.ndarray]:
    """Flax variables as an official state dict of float32 arrays."""
    leaves = flatten_dict(variables, sep="/")
    del variables  # a caller that keeps no tree of its own then pays for the model once, not twice
    state = {}
    for path in sorted(leaves):
        key, axes = official_key(path.split("/", 1)[1])
        array = np.asarray(leaves.pop(path), np.float32)
        # A copy: torch warns of, and could write through, jax's read-only memory.
        state[key] = np.array(array if axes is None else array.transpose(np.argsort(axes)), order="C")
    return state


def save_official(path: str | os.PathLike[str], state: dict[str, np.ndarray]) -> None:
    """Writes a state dict. The file appears under its name only when it is complete.

    Raises:
      ConversionError: the file exists already.
    """
    import torch

    target = Path(path)
    if target.exists():
        raise ConversionError(f"{target} exists already; remove it or choose another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{target.name}.unfinished")
    try:
        torch.save({key: torch.from_numpy(array) for key, array in state.items()}, unfinished)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> None:
    """The command line; see the module's docstring."""
    source, target = "model directory, local or gs://", ".pth file to write; must not exist yet"
    parser = make_parser("python -m convert.flax_to_torch", __doc__, source, target)
    run(lambda args: _convert(args.source, args.target), parser.parse_args(argv))


def _convert(source: str, target: str) -> None:
    if epath.Path(target).exists():  # save_official says so too, but only after the work
        raise ConversionError(f"{target} exists already; remove it or choose another name")
    config = load_config(source)
    if config.details:
        raise ConversionError(
            f"{source} holds a model with details, for which the official code has no layers; only models without "
            "(SamConfig.details 0) can be written for it"
        )
    expected = unflatten_dict(expected_leaves(config), sep="/")
    state = to_state_dict(load_variables(source, expected))
    save_official(target, state)
    print(f"{target}: {len(state)} tensors written, from {source} for the official code")


if __name__ == "__main__":
    main()
