import numpy as np
import pytest

from sam_jax.engine.audit import read_agreement, read_audit
from sam_jax.engine.report import audit_text
from sam_jax.engine.rows import StoreError
from sam_jax.evaluation.metrics import bootstrap_means, interval
from sam_jax.ops.rle import encode_mask
from tests.engine.stores import draft, make_store, rectangle


def label(store, annotator, masks, **wanted):
    """Labels an image from nothing."""
    task = store.claim_next(annotator, **wanted)
    for mask in masks:
        store.save_mask(task.id, annotator, draft(mask), 0)
    store.finish(task.id, annotator)
    return task


def test_automatic_masks_and_their_corrections(tmp_path):
    automatic = [rectangle(0, 0, 10, 10), rectangle(10, 10, 20, 30), rectangle(20, 0, 25, 8)]
    with make_store(tmp_path, 4) as store:
        for image in (1, 2, 3):
            store.fill_image(image, [draft(mask) for mask in automatic], "automatic", 1)
        store.fill_image(4, [], "automatic", 1)
        with pytest.raises(StoreError, match="4 images are asked for; 3 have automatic masks"):
            store.open_checks("audit", 4)
        assert {task.image_id for task in store.open_checks("audit", 2, seed=1)} < {1, 2, 3}
        store.open_checks("audit", 1)
        with pytest.raises(StoreError, match="ask for 1 to 0"):
            store.open_checks("audit", 1)
        assert read_audit(store).shares == ()
        # What becomes of the first mask in each image: as it is, IoU 0.9 exactly, 0.8.
        ious, images = [], []
        for width in (10, 9, 8):
            task = store.claim_next("ada", stage="audit")
            first, second, third = store.task_masks(task)
            assert {mask.state for mask in (first, second, third)} == {"proposed"}
            store.save_mask(task.id, "ada", draft(rectangle(0, 0, 10, width), key=first.key), 1)
            store.save_mask(task.id, "ada", draft(automatic[1], key=second.key), 1)
            if width == 9:
                store.delete_mask(task.id, "ada", third.key, 1)
                extra = {"proposal": encode_mask(rectangle(25, 25, 29, 29))}
                store.save_mask(task.id, "ada", draft(rectangle(25, 25, 28, 28), **extra), 0)
            store.finish(task.id, "ada")
            ious += [width / 10, 1.0]
            images += [task.image_id] * 2
        found = read_audit(store, seed=5)
        assert (found.images, found.pairs, found.deleted, found.undecided, found.added) == (3, 6, 1, 2, 1)
        above = (np.array(ious)[:, None] > np.array([0.9, 0.75])).astype(float)
        assert [share.value for share in found.shares] == [4 / 6, 1.0]
        bounds = interval(bootstrap_means(above, np.array(images), seed=5))
        assert [(share.low, share.high) for share in found.shares] == [tuple(column) for column in bounds.T]
        text = audit_text(found, read_agreement(store))
        assert "of 9 automatic masks 6 were accepted, 1 deleted, 2 left undecided; 1 added" in text
        assert "above 0.90" in text
        assert "66.7 %" in text
        assert "94 %" in text
        # The data set is as it was.
        assert len(list(store.stream_masks())) == store.statistics().masks == 9
        assert [mask.state for mask in store.masks(1, stage="automatic", state=None)] == ["accepted"] * 3


def test_two_annotators(tmp_path):
    with make_store(tmp_path, 3) as store:
        label(store, "ada", [rectangle(0, 0, 10, 10), rectangle(10, 10, 20, 30), rectangle(25, 0, 30, 5)], image_id=1)
        label(store, "ada", [rectangle(0, 0, 10, 10)], image_id=2)
        with pytest.raises(StoreError, match="2 have masks by an annotator"):
            store.open_checks("repeat", 3)
        store.open_checks("repeat", 2)
        assert store.claim_next("ada", stage="repeat") is None  # her own images
        # Two share an object: one each, the better ones.
        ours = [rectangle(0, 0, 10, 9), rectangle(0, 0, 10, 7), rectangle(10, 10, 20, 26), rectangle(0, 30, 3, 33)]
        label(store, "bob", ours, stage="repeat", image_id=1)
        label(store, "bob", [], stage="repeat", image_id=2)
        found = read_agreement(store)
        assert (found.images, found.pairs, found.matched) == (2, 2, pytest.approx(2 * 2 / 8))
        assert found.iou.value == pytest.approx((0.9 + 0.8) / 2)
        assert "mean IoU 0.850" in audit_text(read_audit(store), found)
        label(store, "eve", ours, image_id=1, shared=True)
        assert read_agreement(store).images == 4  # each with each other on the first


def test_nothing_to_report(tmp_path):
    with make_store(tmp_path, 1) as store:
        assert "0 images audited" in audit_text(read_audit(store), read_agreement(store))
