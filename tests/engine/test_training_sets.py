"""What a round learns from and is judged by."""

import numpy as np
import pytest
from PIL import Image

from sam_jax.config import EngineConfig
from sam_jax.data.open_records import open_records
from sam_jax.data.records import image_key
from sam_jax.engine.rows import AUTOMATIC
from sam_jax.engine.schema import StoreError
from sam_jax.engine.store import init_store
from sam_jax.engine.training_sets import check_counts, count_masks, write_sets
from sam_jax.evaluation import open_image_set
from sam_jax.inference.images import read_image
from sam_jax.ops.rle import decode_mask
from tests.engine.labelling import label, labelled_store
from tests.engine.stores import draft, make_store, rectangle
from tests.predicting import make_image


def test_training_and_evaluation_read_them_and_share_no_image(tmp_path):
    with labelled_store(tmp_path) as store:
        write_sets(store, tmp_path / "sets", automatic=False)
        for name, held_out in (("train", False), ("held_out", True)):
            records, images = open_records(tmp_path / "sets" / name), list(store.images(held_out))
            assert records.image_ids.tolist() == [image.id for image in images]
            for record, image in zip(map(records.__getitem__, range(len(records))), images, strict=True):
                assert record.image == store.image_path(image).read_bytes()  # so that embeddings are found again
                expected = {mask.segmentation["counts"] for mask in store.masks(image.id)}
                assert {rle["counts"] for rle in record.segmentations} == expected
            seen = open_image_set(tmp_path / "sets" / name)
            np.testing.assert_array_equal(seen[0].image, read_image(store.image_path(images[0])))
        assert not (tmp_path / ".sets.unfinished").exists()


def test_an_image_that_the_camera_held_sideways_is_turned_upright(tmp_path):
    sideways = tmp_path / "sideways.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(make_image(30, 50)).save(sideways, exif=exif, quality=95)
    with init_store(tmp_path / "store", EngineConfig(hold_out=0.0)) as store:
        image, _ = store.add_image(sideways)
        assert image.size == (50, 30)
        mask = rectangle(2, 3, 40, 20, image.size)
        label(store, image, [mask])
        write_sets(store, tmp_path / "sets", automatic=False)
    one = open_image_set(tmp_path / "sets" / "train")[0]
    np.testing.assert_array_equal(one.image, read_image(sideways))
    np.testing.assert_array_equal(decode_mask(one.segmentations[0]), mask)
    record = open_records(tmp_path / "sets" / "train")[0]
    assert image_key(record.image) != image_key(sideways.read_bytes())


def test_masks_of_stage_3_count_when_asked_and_never_judge(tmp_path):
    with make_store(tmp_path, 6, hold_out=0.5) as store:
        for image in store.images():
            store.fill_image(image.id, [draft(), draft(rectangle(16, 3, 29, 30))], AUTOMATIC, store.present().id)
        free, held = next(store.images(False)), next(store.images(True))
        assert count_masks(store, automatic=False).images == 0
        everything = count_masks(store, automatic=True)
        assert (everything.images, everything.held_out_images) == (store.count_images(False), 0)
        with pytest.raises(StoreError, match=r"no image that may be trained on .*--automatic"):
            check_counts(count_masks(store, automatic=False), 0.5)
        with pytest.raises(StoreError, match=r"no held-out image has a mask .* 50% of all images are held out"):
            check_counts(everything, 0.5)
        task = store.claim_next("ada", image_id=held.id)
        mask = store.masks(held.id)[0]
        store.save_mask(task.id, "ada", draft(rectangle(5, 5, 15, 21), key=mask.key), version=1)
        assert count_masks(store, automatic=True).held_out_masks == 1  # Ada has seen this one
        before = count_masks(store, automatic=True)
        check_counts(before, 0.5)
        task = store.claim_next("ada", image_id=free.id)
        mask = store.masks(free.id)[0]
        store.save_mask(task.id, "ada", draft(rectangle(5, 5, 15, 19), key=mask.key), version=1)
        assert count_masks(store, automatic=True).digest != before.digest


def test_the_digest_follows_what_is_trained_on_and_nothing_else(tmp_path):
    with labelled_store(tmp_path) as store:
        first = count_masks(store, automatic=False)
        held, free = next(store.images(True)), next(store.images(False))
        label(store, held, [rectangle(25, 3, 29, 30)])
        assert count_masks(store, automatic=False).digest == first.digest
        label(store, free, [rectangle(25, 3, 29, 30)])
        assert count_masks(store, automatic=False).digest != first.digest
