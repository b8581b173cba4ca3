"""Random bits by hashing: as even and independent as one would ask of dropout, and the same on every mesh."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax import sharding
from sam_jax.ops.random_bits import Dropping, _hash, draw, hash_key

KEY = jax.random.key(3)


def kept(key, probability, shape):
    return Dropping(draw(key, shape[:-2]), probability).kept(shape)


def drawn(key=KEY, probability=0.9, shape=(4, 64, 512)):
    return np.asarray(kept(key, probability, shape))


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_the_share_is_the_probability_everywhere(probability):
    """Of all elements, of each matrix, row and column: within five standard deviations."""
    found, spread = drawn(probability=probability), (probability * (1 - probability)) ** 0.5
    for axes in ((0, 1, 2), (1, 2), (2,), (1,)):
        means = found.mean(axis=axes)
        count = found.size / means.size
        assert np.abs(means - probability).max() < 5 * spread / count**0.5
        assert means.std() < 1.5 * spread / count**0.5


def test_neighbours_matrices_and_keys_are_independent():
    """Correlations of n pairs of independent bits have a standard deviation of 1 / sqrt(n)."""
    found = drawn(probability=0.5)
    other, later = drawn(jax.random.key(4), probability=0.5), drawn(jax.random.fold_in(KEY, 1), probability=0.5)
    pairs = [(found[:, 1:], found[:, :-1]), (found[1:], found[:-1]), (found, other), (found, later)]
    pairs += [(found[..., step:], found[..., :-step]) for step in (1, 2, 3, 8, 64, 128, 256)]
    for one, another in pairs:
        product = (2.0 * one - 1) * (2.0 * another - 1)
        assert abs(product.mean()) < 5 / product.size**0.5


def test_the_hash_is_a_permutation_and_mixes_every_bit():
    numbers = np.random.default_rng(0).integers(0, 2**32, 4000, dtype=np.uint32)
    assert len(np.unique(_hash(jnp.arange(1 << 16, dtype=jnp.uint32)))) == 1 << 16
    before = np.asarray(_hash(jnp.asarray(numbers)))
    for bit in range(32):
        changed = before ^ np.asarray(_hash(jnp.asarray(numbers ^ np.uint32(1 << bit))))
        shares = (changed[:, None] >> np.arange(32, dtype=np.uint32) & 1).mean(axis=0)
        assert np.abs(shares - 0.5).max() < 0.1


def test_the_same_on_every_mesh():
    alone = drawn(shape=(8, 2, 16, 128))
    for fsdp in (1, 4):
        where = sharding.batch_sharding(sharding.make_mesh(-1, fsdp))
        split = jax.jit(lambda key: kept(key, 0.9, (8, 2, 16, 128)), out_shardings=where)(KEY)
        np.testing.assert_array_equal(split, alone)
    columns = jax.sharding.NamedSharding(
        sharding.make_mesh(-1, 1), jax.sharding.PartitionSpec(None, None, None, "data")
    )
    split = jax.jit(lambda key: kept(key, 0.9, (8, 2, 16, 128)), out_shardings=columns)(KEY)
    np.testing.assert_array_equal(split, alone)


def test_numbers_of_a_hashing_key_are_normal_and_independent():
    """Moments, and correlations with neighbours, with other streams and with other seeds."""
    key, shape = hash_key(3), (256, 512)
    found = jax.random.normal(key, shape)
    others = [jax.random.normal(jax.random.fold_in(key, data), shape) for data in (0, 1, 2**31)]
    others += [jax.random.normal(part, shape) for part in jax.random.split(key, 3)]
    others += [jax.random.normal(hash_key(seed), shape) for seed in (0, 4)]
    spread = found.size**-0.5
    for x in (found, *others):
        for power, moment, deviation in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
            assert abs(float((x**power).mean()) - moment) < 5 * spread * deviation**0.5
    pairs = [(found[:, 1:], found[:, :-1]), (found[1:], found[:-1]), *((found, other) for other in others)]
    pairs += itertools.pairwise(others)
    for one, another in pairs:
        assert abs(float((one * another).mean())) < 5 * spread


def test_numbers_of_a_hashing_key_do_not_depend_on_the_mesh():
    def draw():
        return jax.random.normal(hash_key(5), (64, 96))

    split = jax.jit(draw, out_shardings=sharding.batch_sharding(sharding.make_mesh()))()
    np.testing.assert_allclose(split, jax.jit(draw)(), rtol=1e-6)
