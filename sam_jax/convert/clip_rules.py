"""How each leaf of the towers is called, and laid out, in the files of CLIP and SigLIP 2. Rules are data.

The Hugging Face state dict is the common tongue; `HUGGING_FACE_TOWERS` drives the conversion, `OPENAI` renames the keys
of OpenAI's CLIP to Hugging Face's.
"""

from __future__ import annotations

import re
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from sam_jax.config import TowersConfig
from sam_jax.convert.errors import ConversionError
from sam_jax.convert.foreign import Relative
from sam_jax.convert.rules import CONV, DENSE, SAME, Axes, Rule, foreign_key
from sam_jax.text.towers import init_towers

HUGGING_FACE_TOWERS = (
    Rule(r"(.*/patch_embedding)/kernel", r"\1.weight", CONV),
    Rule(r"(.*/in_proj)/kernel", r"\1_weight", DENSE),
    Rule(r"(.*/in_proj)/bias", r"\1_bias", SAME),
    Rule(r"(.*)/kernel", r"\1.weight", DENSE),
    Rule(r"(.*)/scale", r"\1.weight", SAME),
    Rule(r"(.*/(?:token|position)_embedding)", r"\1.weight", SAME),
    Rule(r"(.*)", r"\1", SAME),
)

# OpenAI name -> Hugging Face name; every line is applied, in order, wherever it matches.
OPENAI = (
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection$", "text_projection.weight"),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
)
_JOINED = re.compile(r"(.*)\.attn\.in_proj_(weight|bias)")  # queries, keys and values in one
_TRANSPOSED = ("visual_projection.weight", "text_projection.weight")

# What files hold beside the network: numbers 0, 1, 2, ... of places, and sizes.
UNUSED = re.compile(r".*\.position_ids|input_resolution|context_length|vocab_size")

_ADVICE = "convert a CLIP with a ViT, or a SigLIP 2 of fixed size, such as siglip2-base-patch16-224"
TOWER_RELATIVES = (
    Relative(r"visual\.(layer\d|attnpool)\..*", "a CLIP with a ResNet, which is another network", _ADVICE),
    Relative(r"visual\.trunk\..*", "a model of open_clip on a network of timm", _ADVICE),
    Relative(r"(image_encoder|mask_decoder)\..*", "a SAM", "convert it by from-torch"),
)


def tower_key(path: str) -> tuple[str, Axes]:
    """The Hugging Face key of a leaf of the towers (its path without the collection) and the axes of its tensor."""
    return foreign_key(path, HUGGING_FACE_TOWERS)


def expected_tower_leaves(config: TowersConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape of every leaf of towers, by path with the collection first."""
    shapes: Any = jax.eval_shape(lambda: init_towers(config, jax.random.key(0)))
    return flatten_dict(shapes, sep="/")


def from_openai(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A state dict of OpenAI's CLIP under Hugging Face's names and layouts.

    Raises:
      ConversionError: what holds queries, keys and values together cannot be cut in three.
    """
    found = {}
    for key, array in tensors.items():
        name = key
        for pattern, replacement in OPENAI:
            name = re.sub(pattern, replacement, name)
        if match := _JOINED.fullmatch(name):
            if len(array) % 3:
                raise ConversionError(f"{key} has {len(array)} rows; queries, keys and values need a multiple of three")
            for part, one in zip("qkv", np.split(array, 3), strict=True):
                found[f"{match[1]}.self_attn.{part}_proj.{match[2]}"] = one
        else:
            found[name] = array.T if name in _TRANSPOSED else array
    return found
