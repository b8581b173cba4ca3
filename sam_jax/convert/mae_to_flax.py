"""Converts the encoder of a masked autoencoder (MAE) to a SAM model directory for training to start from.

SAM's image encoder is initialised from MAE (SAM paper, appendix A). As in ViTDet, the position embedding and, for
ViT-H, the 14 px patch kernel are resized bicubically. Parts that MAE lacks (relative positions, neck, prompt encoder,
mask decoder) are newly initialised; parts that SAM lacks (class token, last norm, MAE's decoder) are dropped. Any other
tensor is an error.
Sources: facebookresearch/mae, `models_mae.py`; for the patch kernel facebookresearch/long_seq_mae, issue 2.
"""

from __future__ import annotations

import math
import os
import re

import jax
import jax.numpy as jnp
import numpy as np

from sam_jax.checkpoint import Variables, save_model
from sam_jax.config import SamConfig, vit_b, vit_h, vit_l
from sam_jax.convert.errors import ConversionError, check_new_directory
from sam_jax.convert.flax_to_torch import to_state_dict
from sam_jax.convert.foreign import without_prefixes
from sam_jax.convert.rules import expected_leaves, official_key
from sam_jax.convert.torch_files import read_state_dict
from sam_jax.convert.torch_to_flax import to_variables, torch_shape
from sam_jax.models.layers import resize_pos_embed
from sam_jax.models.sam import Sam, init_variables

SIZES = {"vit_b": vit_b(), "vit_l": vit_l(), "vit_h": vit_h()}
# Official SAM names of tensors that MAE's encoder has; the rest of SAM is newly initialised.
TRUNK = re.compile(r"image_encoder\.(pos_embed|patch_embed\..*|blocks\.\d+\.(?:norm[12]|attn\.(?:qkv|proj)|mlp)\..*)")
# MAE's names of tensors that SAM lacks. Full pre-training checkpoints also have the mask token and the decoder.
DROPPED = re.compile(r"cls_token|norm\.(?:weight|bias)|mask_token|decoder_.*")


def load_mae(path: str | os.PathLike[str], seed: int = 0) -> tuple[SamConfig, Variables]:
    """An MAE checkpoint as the config and Flax variables of an otherwise newly initialised SAM.

    Args:
      path: .pth (a state dict, or one under "model") or .safetensors with the names of the official MAE.
      seed: of the newly initialised parts.

    Raises:
      ConversionError: the file cannot be read, is another network or size, or tensors are missing, unknown,
        misshapen or not finite. The message names them.
    """
    tensors = read_state_dict(path)
    try:
        return from_state_dict(tensors, seed)
    except ConversionError as error:
        raise ConversionError(f"{path} cannot be converted: {error}") from error


def from_state_dict(tensors: dict[str, np.ndarray], seed: int = 0) -> tuple[SamConfig, Variables]:
    """As `load_mae`, for a state dict of arrays; needs no torch."""
    tensors = without_prefixes(tensors)
    config = infer_size({key: array.shape for key, array in tensors.items()})
    return config, to_sam_variables(config, tensors, seed)


def infer_size(shapes: dict[str, tuple[int, ...]]) -> SamConfig:
    """The SAM size whose encoder has the width and depth of an MAE. Tensors do not show the number of heads."""
    if len(shapes.get("pos_embed", ())) != 3:
        some = ", ".join(list(shapes)[:3]) or "none"
        raise ConversionError(
            f"it lacks pos_embed of shape (1, positions, width); its {len(shapes)} tensors are others ({some}, "
            "...); give an MAE file such as mae_pretrain_vit_base.pth"
        )
    width = shapes["pos_embed"][2]
    depth = len({match[1] for key in shapes if (match := re.match(r"blocks\.(\d+)\.", key))})
    for config in SIZES.values():
        if (config.vit.embed_dim, config.vit.depth) == (width, depth):
            return config
    known = ", ".join(f"{name} {c.vit.depth} x {c.vit.embed_dim}" for name, c in SIZES.items())
    raise ConversionError(f"it has {depth} blocks of width {width}, which is none of SAM's encoders ({known})")


def to_sam_variables(config: SamConfig, tensors: dict[str, np.ndarray], seed: int) -> Variables:
    """The variables of a newly initialised SAM of `config`, with an MAE's tensors as its image encoder.

    Goes through SAM's official state dict, so that its rules and checks apply to MAE as well.
    """
    sources = _sources(config)
    problems = []
    if missing := sorted(sources.keys() - tensors.keys()):
        problems.append("missing: " + ", ".join(missing))
    if unknown := sorted(key for key in tensors if key not in sources and not DROPPED.fullmatch(key)):
        problems.append("not part of an MAE: " + ", ".join(unknown))
    if problems:
        raise ConversionError("; ".join(problems))
    encoder = config.image_encoder
    trunk = {key: tensors[key] for key in sources} | {
        "pos_embed": _resize_positions(tensors["pos_embed"], encoder.grid_size),
        "patch_embed.proj.weight": _resize_kernel(tensors["patch_embed.proj.weight"], encoder.patch_size),
    }
    misshapen = [
        f"{key} is {tuple(trunk[key].shape)}, expected {shape} for this size"
        for key, (_, shape) in sources.items()
        if tuple(trunk[key].shape) != shape
    ]
    if misshapen:
        raise ConversionError("misshapen: " + ", ".join(misshapen))
    state = to_state_dict(init_variables(Sam(config), jax.random.key(seed)))
    return to_variables(config, state | {name: trunk[key] for key, (name, _) in sources.items()})


def _sources(config: SamConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """MAE's name of each trunk tensor -> SAM's official name and torch shape."""
    sources = {}
    for path, leaf in expected_leaves(config).items():
        name, axes = official_key(path.split("/", 1)[1])
        if match := TRUNK.fullmatch(name):
            # Inside the trunk only the layers of the MLP have other names.
            key = re.sub(r"\.mlp\.lin([12])\.", r".mlp.fc\1.", match[1])
            sources[key] = (name, torch_shape(leaf.shape, axes))
    return sources


def _resize_positions(table: np.ndarray, side: int) -> np.ndarray:
    """(1, 1 + g * g, C), with the class token first -> (1, side, side, C)."""
    grid = math.isqrt(max(0, table.shape[1] - 1))
    if grid < 1 or table.shape[1] != 1 + grid * grid:
        raise ConversionError(
            f"pos_embed holds {table.shape[1]} positions; expected one for the class token and those of a square grid"
        )
    return _resize(table[:, 1:].reshape(table.shape[0], grid, grid, table.shape[2]), side)


def _resize_kernel(kernel: np.ndarray, side: int) -> np.ndarray:
    """(C, 3, k, k) -> (C, 3, side, side)."""
    if kernel.ndim != 4 or kernel.shape[2] != kernel.shape[3]:
        raise ConversionError(f"patch_embed.proj.weight has shape {tuple(kernel.shape)}; expected (width, 3, k, k)")
    return _resize(kernel.transpose(0, 2, 3, 1), side).transpose(0, 3, 1, 2)


def _resize(table: np.ndarray, side: int) -> np.ndarray:
    """(n, s, s, c) -> (n, side, side, c), as in torch's bicubic interpolation with align_corners False."""
    return np.asarray(resize_pos_embed(jnp.asarray(table, jnp.float32), (side, side)))


def convert(source: str, target: str, seed: int = 0) -> None:
    """Writes the model directory `target` and prints a summary.

    Raises:
      ConversionError: the target exists; or as in `load_mae`.
    """
    check_new_directory(target)
    config, variables = load_mae(source, seed)
    save_model(target, config, variables)
    name = next(name for name, known in SIZES.items() if known == config)
    print(f"{source}: the encoder of {name}; class token, last norm and MAE's decoder, where present, are dropped")
    print(f"{target}: written; all but the encoder's trunk is newly initialised from seed {seed}; use it as init_from")
