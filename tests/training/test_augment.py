"""Mirrored and recoloured on the device: held to plain numpy statements, one image at a time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.config import AugmentConfig, CompositeDataConfig, StageConfig, TrainConfig
from sam_jax.data.example import make_example
from sam_jax.ops.transforms import normalize_batch
from sam_jax.training.augment import BRIGHTNESS, CONTRAST, GAIN, augment, mirror, recolour
from sam_jax.training.embedding_cache import check_cache_config

SIDE, SIZES = 32, [(32, 32), (32, 20), (24, 32), (32, 22), (32, 13)]  # widths that are multiples of four, and not


@pytest.fixture(scope="module", params=[4, 1], ids=["stride 4", "stride 1"])
def batch(request):
    """Images padded at the right and bottom, each with three masks, of which the last is invalid."""
    rng, rows = np.random.default_rng(0), []
    for number, (h, w) in enumerate(SIZES):
        image = rng.integers(0, 256, (h, w, 3), np.uint8)
        masks = np.zeros((2, h, w), bool)
        masks[0, 2:19, 1 : w - 2] = rng.random((17, w - 3)) < 0.9
        masks[1, :, : w // 2] = True
        rows.append(make_example(image, masks, number, SIDE, 3, request.param).to_dict())
    return {name: jnp.stack([row[name] for row in rows]) for name in rows[0] if name != "image_id"}


def mirrored(image, masks, size):
    """The statement: cut to whole cells, and turn what is left."""
    stride = image.shape[1] // masks.shape[2]
    w = size[1] // stride * stride
    turned, turned_masks = image.copy(), np.zeros_like(masks)
    turned[:, :w] = image[:, :w][:, ::-1]
    turned_masks[:, :, : w // stride] = masks[:, :, : w // stride][:, :, ::-1]
    return turned, turned_masks, (size[0], w)


def test_mirroring_is_that_of_each_image_within_its_width(batch):
    chosen = np.array([True, True, False, True, True])
    found = jax.tree.map(np.asarray, jax.jit(mirror)(batch, chosen))
    for i, (h, w) in enumerate(SIZES):
        image, masks, size = (np.asarray(batch[name][i]) for name in ("image", "masks", "input_size"))
        if chosen[i]:
            image, masks, size = mirrored(image, masks, (h, w))
        np.testing.assert_array_equal(found["input_size"][i], size)
        np.testing.assert_array_equal(found["masks"][i], masks)
        np.testing.assert_array_equal(found["image"][i, : size[0], : size[1]], image[: size[0], : size[1]])
    assert {name: x.dtype for name, x in found.items()} == {name: x.dtype for name, x in batch.items()}
    np.testing.assert_array_equal(found["mask_valid"], batch["mask_valid"])


def test_a_mask_that_is_cut_off_is_no_longer_valid(batch):
    stride = SIDE // batch["masks"].shape[3]
    alone = jnp.zeros_like(batch["masks"]).at[3, 0, :, 20 // stride : 22 // stride or None].set(True)
    found = mirror(batch | {"masks": alone, "mask_valid": batch["mask_valid"]}, np.arange(5) == 3)
    assert bool(found["mask_valid"][3, 0]) == (stride == 1)
    assert not found["masks"][~np.asarray(found["mask_valid"])].any()


def test_recolouring_changes_pixels_and_no_padding(batch):
    rng = np.random.default_rng(1)
    gain, shift = np.exp(rng.normal(0, 0.3, (5, 3))), rng.normal(0, 20, 5)
    found = np.asarray(recolour(batch["image"], batch["input_size"], *map(np.float32, (gain, shift))))
    for i, (h, w) in enumerate(SIZES):
        expected = np.asarray(batch["image"][i]).copy()
        inside = (expected[:h, :w].astype(float) - 128) * gain[i] + 128 + shift[i]
        expected[:h, :w] = np.round(np.clip(inside, 0, 255))
        assert np.abs(found[i].astype(int) - expected).max() <= 1  # half a step is rounded either way
        np.testing.assert_array_equal(found[i, h:], expected[h:])
        np.testing.assert_array_equal(found[i, :, w:], expected[:, w:])


def test_padding_is_zero_after_normalisation(batch):
    found = augment(AugmentConfig(1.0, 1.0), batch, jax.random.key(0))
    normal = np.asarray(normalize_batch(found["image"], found["input_size"], (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)))
    for pixels, (h, w) in zip(normal, np.asarray(found["input_size"]), strict=True):
        assert not pixels[h:].any()
        assert not pixels[:, w:].any()
        assert pixels[:h, :w].any(axis=2).mean() > 0.9


def test_half_of_the_images_and_colours_as_said():
    many = {
        "image": jnp.full((2000, 4, 4, 3), 128, jnp.uint8).at[:, :, :2].set(100),
        "masks": jnp.ones((2000, 1, 1, 1), bool),
        "mask_valid": jnp.ones((2000, 1), bool),
        "input_size": jnp.full((2000, 2), 4, jnp.int32),
    }
    turned = np.asarray(augment(AugmentConfig(mirror=0.5), many, jax.random.key(1))["image"])[:, 0, 0, 0] == 128
    assert abs(turned.mean() - 0.5) < 0.05
    image = np.asarray(augment(AugmentConfig(recolour=0.7), many, jax.random.key(1))["image"]).astype(float)
    changed = (image != np.asarray(many["image"])).any(axis=(1, 2, 3))
    assert abs(changed.mean() - 0.7) < 0.05
    grey = image[changed][:, 0, 2]  # of 128: shifted alone
    assert grey.std(axis=0) == pytest.approx([BRIGHTNESS] * 3, rel=0.1)
    ratio = np.log((image[changed][:, 0, 2] - image[changed][:, 0, 0]) / 28)
    assert ratio.std(axis=0) == pytest.approx([np.hypot(GAIN, CONTRAST)] * 3, rel=0.1)


def test_nothing_changes_where_nothing_is_asked_for(batch):
    found = augment(AugmentConfig(), batch, jax.random.key(0))
    assert all(found[name] is batch[name] for name in batch)


def test_a_cache_of_embeddings_refuses_images_that_change():
    config = TrainConfig(stages=(StageConfig(64),), data=CompositeDataConfig("pool"), augment=AugmentConfig(mirror=0.5))
    finetune = dataclasses.replace(config.finetune, frozen=("image_encoder/.*",), embedding_cache="cache")
    with pytest.raises(ValueError, match=r"without data\.jitter and augment"):
        check_cache_config(dataclasses.replace(config, finetune=finetune))
