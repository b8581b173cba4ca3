"""Converts a model directory of this library to a PyTorch file that the official code loads.

All values are preserved bit for bit. Edge refinement (`SamConfig.crf`) has no weights and is not part of the file.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from sam_jax.checkpoint import Variables, load_config, load_variables
from sam_jax.convert.errors import ConversionError
from sam_jax.convert.rules import expected_leaves, official_key


def to_state_dict(variables: Variables) -> dict[str, np.ndarray]:
    """Flax variables as an official state dict of float32 arrays."""
    leaves = flatten_dict(variables, sep="/")
    del variables  # if the caller keeps no reference, memory holds the model once, not twice
    state = {}
    for path in sorted(leaves):
        key, axes = official_key(path.split("/", 1)[1])
        array = np.asarray(leaves.pop(path), np.float32)
        # A copy, because torch warns about jax's read-only memory, and could write to it.
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


def convert(source: str, target: str) -> None:
    """Writes the file `target` and prints a summary.

    Raises:
      ConversionError: the file exists, or the official code has no such network.
    """
    if epath.Path(target).exists():  # save_official checks this too, but only after the conversion
        raise ConversionError(f"{target} exists already; remove it or choose another name")
    config = load_config(source)
    if config.details:
        raise ConversionError(
            f"{source} holds a model with details, for which the official code has no layers; only models without "
            "details (SamConfig.details 0) can be converted"
        )
    if config.mask_decoder.iou_times_stability:
        raise ConversionError(
            f"{source} multiplies predicted IoUs by stability scores, which the official code does not; only models "
            "with MaskDecoderConfig.iou_times_stability False can be converted"
        )
    if config.text_embed_dim:
        raise ConversionError(
            f"{source} holds a model with text prompts, for which the official code has no layer; only models without "
            "(SamConfig.text_embed_dim 0) can be written for it"
        )
    expected = unflatten_dict(expected_leaves(config), sep="/")
    state = to_state_dict(load_variables(source, expected))
    save_official(target, state)
    print(f"{target}: {len(state)} tensors written, from {source} for the official code")
    if config.is_mobile:
        print("load_state_dict(state, strict=False): MobileSAM's files also hold a classifier, which masks do not need")
