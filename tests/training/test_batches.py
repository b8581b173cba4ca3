"""Which images a run sees, in which order, and what happens to the bad ones."""

import dataclasses
import itertools
import logging

import numpy as np
import pytest

from sam_jax.config import RecordDataConfig, StageConfig
from sam_jax.data.record_stream import chosen_indices, image_hash
from sam_jax.data.records import DataError
from sam_jax.training.batches import HeldOutBatches, make_batches
from tests.tiny_sa1b import write_folder, write_tar

STAGE = StageConfig(image_size=48, batch_size=4, masks_per_image=2, num_steps=10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("images"), 24)


def config_of(folder, **changes):
    return RecordDataConfig(str(folder), **{"hold_out": 0.0, **changes})


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def ids_of(batches):
    return np.concatenate([batch["image_id"] for batch in batches])


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def test_every_epoch_holds_every_image_once_in_another_order(folder):
    ids = ids_of(take(make_batches(config_of(folder), STAGE, 0, 0), 18)).reshape(3, 24)
    for epoch in ids:
        assert sorted(epoch) == list(range(1, 25))
    assert (ids[0] != ids[1]).any()
    assert (ids_of(take(make_batches(config_of(folder), STAGE, 1, 0), 6)) != ids[0]).any()


def test_a_batch_may_be_one_image(folder):
    batches = take(make_batches(config_of(folder), dataclasses.replace(STAGE, batch_size=1), 0, 0), 24)
    assert sorted(ids_of(batches)) == list(range(1, 25))


def test_a_later_start_another_form_and_workers_give_the_same_batches(folder, tmp_path):
    write_tar(tmp_path / "sa_000000.tar", 24)
    expected = take(make_batches(config_of(folder), STAGE, 0, 0), 9)
    for batch, other in zip(expected[5:], make_batches(config_of(folder), STAGE, 0, 5), strict=False):
        same(batch, other)
    for batch, other in zip(expected, make_batches(config_of(tmp_path), STAGE, 0, 0), strict=False):
        same(batch, other)


def test_finer_masks_are_those_of_the_same_objects(folder):
    stage = dataclasses.replace(STAGE, image_size=192)  # no mask is so small that it vanishes on one of the grids
    fine = dataclasses.replace(stage, mask_stride=1)
    for coarse, finer in zip(*(take(make_batches(config_of(folder), s, 0, 0), 6) for s in (stage, fine)), strict=True):
        assert finer["masks"].shape == (4, 2, 192, 192)
        share = finer["masks"].reshape(4, 2, 48, 4, 48, 4).mean(axis=(3, 5))
        assert (coarse["masks"] == (share > 0.5)).mean() > 0.98  # rounding twice moves single cells


def test_hosts_share_each_batch(folder):
    whole = take(make_batches(config_of(folder), STAGE, 0, 3), 4)
    parts = [take(make_batches(config_of(folder), STAGE, 0, 3, (host, 2)), 4) for host in range(2)]
    for batch, first, second in zip(whole, *parts, strict=True):
        same(batch, {name: np.concatenate([first[name], second[name]]) for name in first})
    with pytest.raises(ValueError, match="does not divide over 3 hosts"):
        make_batches(config_of(folder), STAGE, 0, 0, (0, 3))


def test_held_out_images_are_never_trained_on(folder):
    config = config_of(folder, hold_out=0.4)
    trained = set(ids_of(take(make_batches(config, STAGE, 0, 0), 12)))
    evaluated = list(HeldOutBatches(config, STAGE, 0, 1000))
    valid = np.concatenate([batch["mask_valid"].any(axis=1) for batch in evaluated])
    held_out = ids_of(evaluated)[valid]
    assert len(set(held_out)) == len(held_out) > 0
    assert trained | set(held_out) == set(range(1, 25))
    assert not trained & set(held_out)
    parts = [list(HeldOutBatches(config, STAGE, 0, 1000, (host, 2))) for host in range(2)]
    for batch, first, second in zip(evaluated, *parts, strict=True):
        same(batch, {name: np.concatenate([first[name], second[name]]) for name in first})


def test_the_choice_of_images_hangs_on_ids_alone():
    ids = np.random.default_rng(0).permutation(np.arange(10_000, dtype=np.int64))
    hashes = image_hash(ids, 0)
    assert 0 <= hashes.min() < hashes.max() < 1
    np.testing.assert_allclose(np.histogram(hashes, bins=10, range=(0, 1))[0], 1000, rtol=0.15)
    config = RecordDataConfig(hold_out=0.1)

    def chosen(ids, **changes):
        return set(ids[chosen_indices(ids, RecordDataConfig(hold_out=0.1, **changes), held_out=False)])

    assert chosen(ids) == chosen(np.sort(ids))
    assert len(chosen(ids, max_images=500)) == 500
    assert chosen(ids, max_images=500) < chosen(ids, max_images=2000) < chosen(ids)
    held_out = set(ids[chosen_indices(ids, config, held_out=True)])
    assert len(held_out) + len(chosen(ids)) == 10_000


@pytest.mark.parametrize("count", [2, 3, 9, 10])
def test_of_every_small_set_something_is_held_out_and_something_is_not(count):
    """COCO's first nine ids among them, of which a hold-out by chance alone takes none."""
    config = RecordDataConfig(hold_out=0.1)
    assert image_hash(np.arange(1, 10, dtype=np.int64), 0).min() > config.hold_out
    for first in range(300):
        ids = np.arange(first, first + count, dtype=np.int64)
        held_out, trained = (chosen_indices(ids, config, held_out=which) for which in (True, False))
        assert min(len(held_out), len(trained)) > 0
        assert sorted([*held_out, *trained]) == list(range(count))
    assert not len(chosen_indices(ids, RecordDataConfig(hold_out=0.0), held_out=True))


def test_bad_images_are_named_and_replaced_up_to_a_share(tmp_path, caplog):
    folder = write_folder(tmp_path / "images", 24)
    for number in (3, 7):
        (folder / f"sa_{number}.jpg").write_bytes(b"no image")
    with caplog.at_level(logging.WARNING):
        batches = take(make_batches(config_of(folder, max_bad_share=0.5), STAGE, 0, 0), 6)
    assert "sa_3.jpg" in caplog.text
    assert "sa_7.jpg" in caplog.text
    ids = ids_of(batches)
    assert not {3, 7} & set(ids)
    assert len(ids) == 24
    again = take(make_batches(config_of(folder, max_bad_share=0.5), STAGE, 0, 2), 2)
    same(again[0], batches[2])

    for number in range(1, 20):
        (folder / f"sa_{number}.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"images cannot be read, the last one: .*sa_"):
        take(make_batches(config_of(folder, max_bad_share=0.1), STAGE, 0, 0), 12)


def test_no_image_left_is_an_error(folder):
    with pytest.raises(DataError, match="leaves no held-out image"):
        list(HeldOutBatches(config_of(folder), STAGE, 0, 4))
