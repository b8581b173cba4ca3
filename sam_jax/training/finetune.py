"""Which parameters are trained: all, some, or low-rank updates of some (LoRA, Hu et al. 2021).

A training state keeps two trees: `params`, which the optimizer updates, and `frozen`. `assemble` merges them into the
tree that the model takes.
"""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from sam_jax.config import FinetuneConfig
from sam_jax.ops.products import matmul

LORA = "lora"  # the sub-tree of `params` with the low-rank factors
_LORA_TARGET = re.compile(r"image_encoder/blocks_\d+/attn/qkv/kernel")


def split_params(config: FinetuneConfig, params: Any, key: jax.Array) -> tuple[Any, Any]:
    """Splits a model's whole parameter tree into (trained, frozen). `key` draws the low-rank factors.

    Raises:
      ValueError: a pattern of `config.frozen` matches nothing, or leaves nothing to train or to apply LoRA to.
    """
    flat = flatten_dict(params, sep="/")
    for pattern in config.frozen:
        if not any(re.fullmatch(pattern, path) for path in flat):
            raise ValueError(f"finetune.frozen {pattern!r} matches no parameter; paths look like {next(iter(flat))!r}")
    frozen = {path for path in flat if any(re.fullmatch(pattern, path) for pattern in config.frozen)}
    factors = {}
    if config.lora_rank:
        factors = _lora_factors(config.lora_rank, {path: x for path, x in flat.items() if path not in frozen}, key)
        frozen |= {path for path in flat if path.startswith("image_encoder/")}
    learning = {path: x for path, x in flat.items() if path not in frozen} | factors
    if not learning:
        raise ValueError(f"finetune.frozen {config.frozen} leaves no parameter to learn")
    return unflatten_dict(learning, sep="/"), unflatten_dict(
        {path: flat[path] for path in flat if path in frozen}, sep="/"
    )


def assemble(config: FinetuneConfig, params: Any, frozen: Any) -> Any:
    """The whole tree that the model takes: the inverse of `split_params`, with low-rank updates merged in."""
    if not frozen:
        return params
    whole = flatten_dict(frozen, sep="/") | flatten_dict(params, sep="/")
    factors = {path: whole.pop(path) for path in list(whole) if path.startswith(f"{LORA}/")}
    for path in {path.removeprefix(f"{LORA}/").rsplit("/", 1)[0] for path in factors}:
        down, up = factors[f"{LORA}/{path}/down"], factors[f"{LORA}/{path}/up"]
        whole[path] = whole[path] + config.lora_alpha / config.lora_rank * matmul(down, up)
    return unflatten_dict(whole, sep="/")


def encoder_is_frozen(config: FinetuneConfig) -> bool:
    """Whether image embeddings stay the same throughout training."""
    return not config.lora_rank and "image_encoder/.*" in config.frozen


def _lora_factors(rank: int, flat: dict[str, Any], key: jax.Array) -> dict[str, Any]:
    """Low-rank factors whose initial product is zero: `down` (C, rank) random, `up` (rank, 3 C) zero.

    Raises:
      ValueError: `flat` holds no qkv kernel of the image encoder.
    """
    targets = [path for path in sorted(flat) if _LORA_TARGET.fullmatch(path)]
    if not targets:
        raise ValueError(
            "finetune.lora_rank has no kernel to change: finetune.frozen names all qkv kernels of the encoder; "
            "set lora_rank 0, or take the encoder out of frozen"
        )
    factors = {}
    for path, sub in zip(targets, jax.random.split(key, len(targets)), strict=True):
        inputs, outputs = flat[path].shape
        factors[f"{LORA}/{path}/down"] = jax.random.normal(sub, (inputs, rank)) * inputs**-0.5
        factors[f"{LORA}/{path}/up"] = jnp.zeros((rank, outputs))
    return factors
