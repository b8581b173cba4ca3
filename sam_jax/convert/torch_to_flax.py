"""Converts SAM weights from PyTorch to a model directory of this library.

Reads official state dicts, those of HQ-SAM and MobileSAM, and those of the Hugging Face `SamModel` and `SamHQModel`, as
.pth or .safetensors, also with a wrapper's prefix before all names (`module.`, `model.`, `_orig_mod.`). Size and family
are inferred from the tensors. Each of the network's tensors must be used exactly once, and every leaf of the model
filled; otherwise nothing is written.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from sam_jax import config as configs
from sam_jax.checkpoint import Variables, save_model
from sam_jax.config import MaskDecoderConfig, SamConfig
from sam_jax.convert.errors import ConversionError, check_new_directory
from sam_jax.convert.foreign import refuse_relatives, without_prefixes
from sam_jax.convert.rules import UNUSED, Axes, expected_leaves, official_key, official_name
from sam_jax.convert.sizes import infer_config
from sam_jax.convert.torch_files import read_decoder_heads, read_state_dict

DECODER_NUM_HEADS = 8


def load_official(path: str | os.PathLike[str], decoder_num_heads: int | None = None) -> tuple[SamConfig, Variables]:
    """A PyTorch checkpoint of SAM as a config and Flax variables.

    Args:
      path: .pth or .safetensors, with the official or the Hugging Face names.
      decoder_num_heads: attention heads of the mask decoder, which tensors do not show. None: as in a Hugging Face
        config.json beside the file, else 8, as in all official models.

    Returns:
      The config, and {"params": ..., "constants": ...} of float32 arrays on the default device. Other float
      types are cast.

    Raises:
      ConversionError: the file cannot be read, is another network, or tensors are missing, unknown, misshapen or
        not finite. The message names them.
    """
    tensors = read_state_dict(path)
    heads = read_decoder_heads(path) if decoder_num_heads is None else decoder_num_heads
    try:
        return from_state_dict(tensors, heads)
    except ConversionError as error:
        raise ConversionError(f"{path} cannot be converted: {error}") from error


def from_state_dict(
    tensors: dict[str, np.ndarray], decoder_num_heads: int | None = None
) -> tuple[SamConfig, Variables]:
    """As `load_official`, for a state dict of arrays; needs no torch.

    Args:
      tensors: by key; prefixes that all keys share are removed.
      decoder_num_heads: None means 8.
    """
    tensors = without_prefixes(tensors)
    refuse_relatives(tensors)
    tensors = {key: array for key, array in tensors.items() if not UNUSED.fullmatch(key)}
    if any(key.startswith("vision_encoder.") for key in tensors):
        tensors = _rename_hugging_face(tensors)
    shapes = {key: array.shape for key, array in tensors.items()}
    config = infer_config(shapes, DECODER_NUM_HEADS if decoder_num_heads is None else decoder_num_heads)
    return config, to_variables(config, tensors)


def to_variables(config: SamConfig, tensors: dict[str, np.ndarray]) -> Variables:
    """The arrays of an official state dict as Flax variables. Empties `tensors`, to free memory."""
    return fill_leaves(expected_leaves(config), official_key, tensors, "SAM")


def fill_leaves(
    leaves: dict[str, jax.ShapeDtypeStruct],
    key_of: Callable[[str], tuple[str, Axes]],
    tensors: dict[str, np.ndarray],
    network: str,
) -> Variables:
    """Lays the arrays of a state dict out as Flax variables. Empties `tensors`, to free memory.

    Args:
      leaves: shape of every leaf by path, with the collection first.
      key_of: a path without its collection -> the key of its tensor, and the axes that make our layout of it.
      network: its name, for messages.

    Raises:
      ConversionError: tensors are missing, left over, misshapen or not finite; all are named.
    """
    sources = {path: key_of(path.split("/", 1)[1]) for path in leaves}
    _check_coverage(leaves, sources, tensors, network)
    arrays = {}
    for path, (key, axes) in sources.items():
        array = _finite_float32(key, tensors.pop(key))
        # A copy, since an alias would keep the whole file mapped.
        arrays[path] = jnp.array(array if axes is None else array.transpose(axes), copy=True)
    return unflatten_dict(arrays, sep="/")


def _rename_hugging_face(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    sources: dict[str, str] = {}
    for key in tensors:
        first = sources.setdefault(official_name(key, tensors), key)
        if first != key and not np.array_equal(tensors[first], tensors[key]):
            raise ConversionError(f"{first} and {key} are two names of one tensor, but differ; remove the wrong one")
    return {name: tensors[key] for name, key in sources.items()}


def _check_coverage(
    leaves: dict[str, jax.ShapeDtypeStruct],
    sources: dict[str, tuple[str, Axes]],
    tensors: dict[str, np.ndarray],
    network: str,
) -> None:
    """Raises ConversionError unless every key is used, every leaf filled, and every shape right; names all problems."""
    keys = {key for key, _ in sources.values()}
    problems = []
    if missing := sorted(keys - tensors.keys()):
        problems.append("missing: " + ", ".join(missing))
    if unknown := sorted(tensors.keys() - keys):
        problems.append(f"not part of {network}: " + ", ".join(unknown))
    misshapen = []
    for path, (key, axes) in sources.items():
        shape = torch_shape(leaves[path].shape, axes)
        if key in tensors and tuple(tensors[key].shape) != shape:
            misshapen.append(f"{key} is {tuple(tensors[key].shape)}, expected {shape} for this size")
    if misshapen:
        problems.append("misshapen: " + ", ".join(misshapen))
    if problems:
        raise ConversionError("; ".join(problems))


def torch_shape(shape: tuple[int, ...], axes: Axes) -> tuple[int, ...]:
    """The torch shape of a leaf of shape `shape`."""
    return shape if axes is None else tuple(shape[i] for i in np.argsort(axes))


def _finite_float32(key: str, array: np.ndarray) -> np.ndarray:
    array = np.asarray(array)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ConversionError(f"{key} has dtype {array.dtype}; weights must be floating point")
    array = np.asarray(array, np.float32)
    if not np.isfinite(array).all():
        raise ConversionError(f"{key} holds NaN or infinity; take the weights from before training diverged")
    return array


def _describe(config: SamConfig) -> str:
    if config.is_hq:
        bare = {field.name: getattr(config.mask_decoder, field.name) for field in dataclasses.fields(MaskDecoderConfig)}
        return f"HQ-SAM on {_describe(dataclasses.replace(config, mask_decoder=MaskDecoderConfig(**bare)))}"
    for name in ("vit_b", "vit_l", "vit_h", "vit_tiny", "mobile_sam"):
        if getattr(configs, name)() == config:
            return name
    if config.is_mobile:
        return f"a TinyViT, {config.image_size} px"
    c = config.vit
    return f"{c.depth} blocks of width {c.embed_dim}, {c.image_size} px"


def convert(source: str, target: str, decoder_num_heads: int | None = None) -> None:
    """Writes the model directory `target` and prints a summary.

    Raises:
      ConversionError: the target exists; or as in `load_official`.
    """
    check_new_directory(target)
    config, variables = load_official(source, decoder_num_heads)
    leaves: list[Any] = jax.tree.leaves(variables)
    save_model(target, config, variables)
    millions = sum(leaf.size for leaf in leaves) / 1e6
    print(f"{source}: {_describe(config)}, {len(leaves)} tensors, {millions:.1f} M numbers, all used")
    print(f"{target}: written, with {config.mask_decoder.num_heads} heads in the mask decoder")
