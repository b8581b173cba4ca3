import numpy as np
import pytest

from sam_jax.composites.mosaics import mosaic
from sam_jax.composites.pool import load_pool
from sam_jax.composites.source import CompositeSource
from sam_jax.config import CompositeConfig, CompositeDataConfig, StageConfig
from sam_jax.training.batches import make_batches
from tests.tiny_pool import write_pool


@pytest.fixture(scope="module")
def pool_dir(tmp_path_factory):
    return write_pool(tmp_path_factory.mktemp("pool"))


def test_surfaces_do_not_overlap_and_cover_most_of_the_image(pool_dir):
    pool = load_pool(str(pool_dir), "train")
    for seed in range(20):
        image, masks = mosaic(np.random.default_rng(seed), pool, 40, 64)
        assert image.shape == (40, 64, 3)
        assert image.dtype == np.uint8
        assert masks.sum(axis=0).max(initial=0) <= 1
        assert masks.shape[1:] == (40, 64)
        if len(masks) > 1:
            assert masks.any(axis=0).mean() > 0.5
            assert masks.sum(axis=(1, 2)).min() > 0.01 * 40 * 64


def test_a_stage_can_ask_for_mosaics_alone(pool_dir):
    """Every pixel that is in the image belongs to at most one mask, which composites with parts do not keep to."""
    plain = CompositeConfig(labelled=0, pseudo_regions=0, parts=1, degrade=0)
    data, stage = CompositeDataConfig(str(pool_dir), plain), StageConfig(64, 4, 16, num_steps=3, mosaics=1.0)
    batch = next(make_batches(data, stage, seed=0, first_step=0))
    assert batch["masks"].sum(axis=1).max() <= 1
    source = CompositeSource(load_pool(str(pool_dir), "train"), plain, seed=0)
    assert max(source[i]["masks"].sum(axis=0).max() for i in range(8)) > 1


def test_kept_examples_come_again_and_equal_the_source(pool_dir):
    data = CompositeDataConfig(str(pool_dir))
    stage = StageConfig(64, 4, 4, num_steps=9, num_examples=8)
    batches = make_batches(data, stage, seed=5, first_step=0)
    epochs = [[next(batches) for _ in range(2)] for _ in range(3)]
    source = CompositeSource(
        load_pool(str(pool_dir), "train"), CompositeConfig(image_size=64, masks_per_image=4), seed=5
    )
    for epoch in epochs:
        ids = np.concatenate([batch["image_id"] for batch in epoch])
        assert sorted(ids) == list(range(8))
        for batch in epoch:
            for row, index in enumerate(batch["image_id"]):
                for name, value in source[int(index)].items():
                    np.testing.assert_array_equal(batch[name][row], value)
    later = next(make_batches(data, stage, seed=5, first_step=3))
    np.testing.assert_array_equal(later["image"], epochs[1][1]["image"])
