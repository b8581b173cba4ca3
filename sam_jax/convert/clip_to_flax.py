"""Converts CLIP's and SigLIP 2's towers to a directory that text prompts use.

Reads Hugging Face's `CLIPModel` and `SiglipModel` as .safetensors or .pth, and OpenAI's CLIP files, of which the
tensors alone are read. Size and family are read off the tensors. Every tensor that the towers compute with is used once
and every leaf filled, or nothing is written. A tokenizer.json beside the file comes along.
"""

from __future__ import annotations

import os
from pathlib import Path

import jax
import numpy as np

from sam_jax.checkpoint import Variables
from sam_jax.config import TowersConfig
from sam_jax.convert.clip_rules import (
    TOWER_RELATIVES,
    UNUSED,
    expected_tower_leaves,
    from_openai,
    tower_key,
)
from sam_jax.convert.errors import ConversionError, check_new_directory
from sam_jax.convert.foreign import refuse_relatives, without_prefixes
from sam_jax.convert.torch_files import read_state_dict
from sam_jax.convert.torch_to_flax import fill_leaves
from sam_jax.convert.tower_sizes import infer_towers, read_tower_hints
from sam_jax.text.loading import TOKENIZER_FILE, save_towers


def load_clip(path: str | os.PathLike[str]) -> tuple[TowersConfig, Variables]:
    """A file of CLIP or SigLIP 2 as a config and Flax variables, float32 on the default device.

    Raises:
      ConversionError: the file cannot be read, is another network, or tensors are missing, left over, misshapen or
        not finite. The message names them.
    """
    tensors = read_state_dict(path)
    try:
        return from_state_dict(tensors, read_tower_hints(path))
    except ConversionError as error:
        raise ConversionError(f"{path} cannot be converted: {error}") from error


def from_state_dict(
    tensors: dict[str, np.ndarray], hints: dict[str, object] | None = None
) -> tuple[TowersConfig, Variables]:
    """As `load_clip`, of a state dict as arrays; needs no torch. `hints` as of `tower_sizes.read_tower_hints`."""
    tensors = without_prefixes(tensors)
    refuse_relatives(tensors, TOWER_RELATIVES)
    tensors = {key: array for key, array in tensors.items() if not UNUSED.fullmatch(key)}
    if any(key.startswith("visual.") for key in tensors):
        tensors = from_openai(tensors)
    config = infer_towers({key: array.shape for key, array in tensors.items()}, hints or {})
    name = "CLIP" if config.is_clip else "SigLIP"
    return config, fill_leaves(expected_tower_leaves(config), tower_key, tensors, name)


def convert(source: str, target: str) -> None:
    """Writes the directory `target`, and says so. Raises as `load_clip`, and where the target exists."""
    check_new_directory(target)
    config, variables = load_clip(source)
    tokenizer = Path(source).parent / TOKENIZER_FILE
    if not tokenizer.exists() and not config.is_clip:
        raise ConversionError(f"{tokenizer} does not exist; put SigLIP's tokenizer.json beside its weights")
    save_towers(target, config, variables, tokenizer.read_bytes() if tokenizer.exists() else None)
    leaves = jax.tree.leaves(variables)
    millions = sum(leaf.size for leaf in leaves) / 1e6
    v = config.vision
    print(
        f"{source}: {config.family}, {v.depth} blocks of width {v.width}, {v.image_size} px in patches of "
        f"{v.patch_size}, {len(leaves)} tensors, {millions:.1f} M numbers, all used"
    )
    vocabulary = f"with its {TOKENIZER_FILE}" if tokenizer.exists() else "for instant-clip-tokenizer's vocabulary"
    print(f"{target}: written, {vocabulary}")
