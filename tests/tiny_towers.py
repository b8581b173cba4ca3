"""Tiny towers with the tokenizers of both families, made without a network: odd sizes show swapped axes."""

import dataclasses
import json

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from sam_jax.config import TextTowerConfig, TowersConfig, VisionTowerConfig
from sam_jax.config.towers import GREY
from sam_jax.text.embedding import LoadedTowers
from sam_jax.text.loading import save_towers
from sam_jax.text.tokenizers import open_tokenizer
from sam_jax.text.towers import init_towers

WORDS = ("a", "the", "red", "green", "blue", "square", "circle", "triangle", "dog", "ball", "of", ".", "yellow", "dot")
VISION = VisionTowerConfig(image_size=24, patch_size=8, width=24, depth=2, num_heads=2, mlp_dim=40)
TINY_CLIP = TowersConfig(vision=VISION, text=TextTowerConfig(40, 16, 16, 2, 2, 24), embed_dim=20)
# 26 pixels in patches of 8: two rows and columns are left out.
TINY_SIGLIP = TowersConfig(
    "siglip",
    dataclasses.replace(VISION, image_size=26),
    TextTowerConfig(40, 12, 16, 2, 2, 24),
    24,
    "gelu_tanh",
    GREY,
    GREY,
)


def tokenizer_json(config):
    """A tokenizer.json of whole words, with the special tokens of a family. The end of CLIP's texts comes last."""
    special = ["<pad>", "<unk>"] if config.is_clip else ["<pad>", "<eos>", "<bos>", "<unk>"]
    last = ["<|startoftext|>", "<|endoftext|>"] if config.is_clip else []
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS, *last])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return json.dumps(json.loads(tokenizer.to_str())).encode()


def random_towers(config, seed=0):
    """Variables with every leaf random, such that activations stay of order one."""
    rng = np.random.default_rng(seed)
    leaves = {}
    for path, leaf in flatten_dict(jax.eval_shape(lambda: init_towers(config, jax.random.key(0)))).items():
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        if path[-1] == "kernel":
            leaves[path] = noise / np.sqrt(np.prod(leaf.shape[:-1]), dtype=np.float32)
        else:
            leaves[path] = (
                np.float32(0.1) * noise + np.float32(path[-1] == "scale") + np.float32(2 * (path[-1] == "logit_scale"))
            )
    return unflatten_dict(leaves)


def loaded(config, variables=None):
    """Towers as `load_towers` gives them."""
    variables = random_towers(config) if variables is None else variables
    return LoadedTowers(config, variables, open_tokenizer(config, tokenizer_json(config)))


def colour_towers():
    """Towers that know red, green and blue, in images and in texts, by weights that are set by hand.

    An embedding's first three numbers are the mean colour, the fourth is that of words without a colour.
    """
    variables = jax.tree.map(np.zeros_like, random_towers(TINY_CLIP))
    params = variables["params"]
    params["logit_scale"] = np.float32(3)
    for tower in ("vision_model", "text_model"):
        width = TINY_CLIP.vision.width if tower == "vision_model" else TINY_CLIP.text.width
        norms = [block[name] for block in params[tower]["encoder"].values() for name in ("layer_norm1", "layer_norm2")]
        norms += [part for name, part in params[tower].items() if "norm" in name]
        for norm in norms:
            norm["scale"] = np.ones(width, np.float32)
        # Queries and keys of zero look at all tokens alike.
        attention = params[tower]["encoder"]["layers_1"]["self_attn"]
        attention["v_proj"]["kernel"] = attention["out_proj"]["kernel"] = np.eye(width, dtype=np.float32)
        projection = params["visual_projection" if tower == "vision_model" else "text_projection"]
        projection["kernel"][:4, :4] = np.eye(4)
    kernel = params["vision_model"]["embeddings"]["patch_embedding"]["kernel"]
    for channel in range(3):
        kernel[:, :, channel, channel] = 1 / 64
    table = params["text_model"]["embeddings"]["token_embedding"]
    table[1 : 2 + len(WORDS), 3] = 1.0
    for channel, colour in enumerate(("red", "green", "blue")):
        table[2 + WORDS.index(colour), :4] = *np.where(np.arange(3) == channel, 1, -1), 0
    return variables


def save_colour_towers(path):
    """The same as a directory, for programs."""
    save_towers(path, TINY_CLIP, colour_towers(), tokenizer_json(TINY_CLIP))
