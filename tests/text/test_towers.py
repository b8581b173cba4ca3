"""Towers against the torch classes of transformers (oracle), and what holds of them by themselves."""

import dataclasses

import jax
import numpy as np
import pytest

from sam_jax import config as configs
from sam_jax.config import TextTowerConfig, TowersConfig, VisionTowerConfig
from sam_jax.convert.clip_rules import expected_tower_leaves, tower_key
from sam_jax.convert.clip_to_flax import from_state_dict
from sam_jax.convert.torch_to_flax import torch_shape
from sam_jax.text.towers import Towers
from tests.tiny_towers import TINY_CLIP, TINY_SIGLIP, loaded, random_towers

SIZES = {
    "clip_vit_b_32": 151.3,
    "clip_vit_b_16": 149.6,
    "clip_vit_l_14": 427.6,
    "clip_vit_l_14_336": 427.9,
    "siglip2_base": 375.2,
    "siglip2_so400m": 1136.0,
}
FULL = ("clip_vit_b_32", "siglip2_base")
TOWERS = [
    pytest.param(TINY_CLIP, id="clip"),
    pytest.param(TINY_SIGLIP, id="siglip"),
    pytest.param(FULL[0], id=FULL[0]),
    pytest.param(FULL[1], id=FULL[1], marks=pytest.mark.slow),
]
FAMILIES = pytest.mark.parametrize("config", [TINY_CLIP, TINY_SIGLIP], ids=["clip", "siglip"])


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.oracle] * ("l_14" in n or "so" in n)) for n in SIZES]
)
def test_sizes_are_the_published_ones(name):
    leaves = expected_tower_leaves(getattr(configs, name)())
    assert round(sum(np.prod(leaf.shape) for leaf in leaves.values()) / 1e6, 1) == pytest.approx(SIZES[name], abs=0.1)


@FAMILIES
def test_embeddings_have_length_one_and_tell_inputs_apart(config):
    towers, side = loaded(config), config.vision.image_size
    images = np.random.default_rng(0).integers(0, 256, (5, side, side, 3), np.uint8)
    found = towers.embed_images(images, batch_size=2)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    assert found.shape == (5, config.embed_dim)
    assert np.unique(found.round(4), axis=0).shape == found.shape
    np.testing.assert_allclose(towers.embed_images(images[3:4]), found[3:4], atol=1e-6)
    texts = towers.embed_texts(["a red ball", "the dog"])
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, rtol=1e-5)
    assert not np.allclose(*texts)


@FAMILIES
def test_a_mask_of_tokens_hides_the_rest(config):
    """Where tokens meet nowhere but in what the embedding is read from, the rest has no part in it at all."""
    config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, depth=1))
    variables, vision = random_towers(config), config.vision
    if not config.is_clip:  # its pooling follows the blocks, in which all tokens meet
        projection = variables["params"]["vision_model"]["encoder"]["layers_0"]["self_attn"]["out_proj"]
        projection["kernel"] = 0 * projection["kernel"]
    towers = loaded(config, variables)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, vision.image_size, vision.image_size, 3), np.uint8)
    other = image.copy()
    other[:, vision.patch_size :] = rng.integers(0, 256, other[:, vision.patch_size :].shape, np.uint8)
    inside = np.zeros((1, 3, 3), bool)
    inside[:, 0] = True
    np.testing.assert_allclose(towers.embed_images(image, inside), towers.embed_images(other, inside), atol=1e-6)
    assert not np.allclose(towers.embed_images(image), towers.embed_images(other), atol=1e-3)
    # An empty mask hides nothing: better than NaN.
    whole = towers.embed_images(image, np.zeros((1, 3, 3), bool))
    assert np.isfinite(whole).all()
    if not config.is_clip:
        np.testing.assert_allclose(whole, towers.embed_images(image), atol=1e-6)


def test_what_follows_the_end_of_a_clip_text_has_no_part(monkeypatch):
    module, variables = Towers(TINY_CLIP), random_towers(TINY_CLIP)
    rows = np.array([[15, 3, 4, 16] + [0] * 12, [15, 3, 4, 16, 16] + [9] * 11])
    one, other = module.apply(variables, rows, method="embed_tokens")
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TowersConfig(family="align"), "family must be one of clip, siglip, not 'align'"),
        (lambda: TowersConfig(activation="relu"), "activation must be one of quick_gelu"),
        (lambda: VisionTowerConfig(image_size=8), "image_size 8 must be at least patch_size 32"),
        (lambda: TextTowerConfig(num_heads=7), "width 512 must be a multiple of num_heads"),
        (lambda: dataclasses.replace(TINY_SIGLIP, embed_dim=32), "embed_dim 32 must be the vision tower's width 24"),
    ],
)
def test_sizes_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def build_theirs(config):
    """transformers' model of a config, as random as its own initialisation makes it."""
    import transformers

    v, t = config.vision, config.text
    vision = {
        "image_size": v.image_size,
        "patch_size": v.patch_size,
        "hidden_size": v.width,
        "num_hidden_layers": v.depth,
        "num_attention_heads": v.num_heads,
        "intermediate_size": v.mlp_dim,
    }
    text = {
        "vocab_size": t.vocab_size,
        "max_position_embeddings": t.context_length,
        "hidden_size": t.width,
        "num_hidden_layers": t.depth,
        "num_attention_heads": t.num_heads,
        "intermediate_size": t.mlp_dim,
    }
    if config.is_clip:
        text["eos_token_id"] = t.vocab_size - 1
        whole = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=config.embed_dim)
        return transformers.CLIPModel(whole).eval()
    text["projection_size"] = config.embed_dim
    return transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=vision)).eval()


@pytest.mark.oracle
@pytest.mark.parametrize("name", SIZES)
def test_shapes_are_those_of_transformers(name):
    import torch

    config = getattr(configs, name)()
    with torch.device("meta"):
        theirs = {key: tuple(tensor.shape) for key, tensor in build_theirs(config).state_dict().items()}
    ours = {}
    for path, leaf in expected_tower_leaves(config).items():
        key, axes = tower_key(path.split("/", 1)[1])
        ours[key] = torch_shape(leaf.shape, axes)
    assert ours == theirs


@pytest.mark.oracle
@pytest.mark.parametrize("config", TOWERS)
def test_embeddings_are_those_of_transformers(config):
    import torch

    from tests.oracle import randomise

    full = isinstance(config, str)
    config = getattr(configs, config)() if full else config
    torch.manual_seed(0)
    model = build_theirs(config)
    if not full:
        randomise(model, seed=0)
        with torch.no_grad():
            model.logit_scale.fill_(1.5)
    hints = {
        "vision_config": {"num_attention_heads": config.vision.num_heads, "image_size": config.vision.image_size},
        "text_config": {"num_attention_heads": config.text.num_heads},
    }
    state = {key: tensor.numpy().copy() for key, tensor in model.state_dict().items()}
    found, variables = from_state_dict(state, {} if full else hints)
    assert found == config
    rng = np.random.default_rng(0)
    side, text = config.vision.image_size, config.text
    images = rng.standard_normal((2, side, side, 3)).astype(np.float32)
    tokens = rng.integers(0, text.vocab_size - 1, (2, text.context_length)).astype(np.int32)
    tokens[0, 5:] = 0
    tokens[0, 5] = tokens[1, 7] = text.vocab_size - 1
    with torch.no_grad():
        out = model(
            input_ids=torch.from_numpy(tokens).long(), pixel_values=torch.from_numpy(images.transpose(0, 3, 1, 2))
        )
    module = Towers(config)
    embed = jax.jit(module.apply, static_argnames="method")
    np.testing.assert_allclose(embed(variables, images, method="embed_images"), out.image_embeds, atol=1e-5)
    np.testing.assert_allclose(embed(variables, tokens, method="embed_tokens"), out.text_embeds, atol=1e-5)
    np.testing.assert_allclose(embed(variables, images, tokens), out.logits_per_image, atol=1e-3)
