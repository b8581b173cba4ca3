"""Stage 2: what is proposed, to whom, and how often."""

import dataclasses

import numpy as np
import pytest

from sam_jax.config import AmgConfig, vit_b, vit_tiny
from sam_jax.config.engine_models import FillConfig
from sam_jax.engine import filling
from sam_jax.engine.finding import LoadedVersion
from sam_jax.engine.rows import PROPOSED, SEMI_AUTOMATIC
from sam_jax.models.sam import Sam
from tests.engine.labelling import LARGE, SMALL, Rectangles, label, present
from tests.engine.stores import draft, make_store, rectangle
from tests.tiny import TINY


@pytest.fixture
def finds(monkeypatch):
    """A model that finds two rectangles in every image."""
    found = Rectangles([SMALL, LARGE])
    monkeypatch.setattr(filling, "EverythingSegmenter", found)
    return found


def proposed(store, image):
    return [(mask.area, mask.state, mask.stage) for mask in store.masks(image.id, state=PROPOSED)]


def test_images_that_wait_get_proposals_the_largest_first_and_once_for_each_model(tmp_path, finds):
    with make_store(tmp_path) as store:
        first, second, third = store.images()
        label(store, first, [LARGE])
        assert dataclasses.astuple(filling.fill(store, present(store))) == (2, 4, 0, ())
        both = [(LARGE.sum(), PROPOSED, SEMI_AUTOMATIC), (SMALL.sum(), PROPOSED, SEMI_AUTOMATIC)]
        assert [proposed(store, image) for image in (first, second, third)] == [[], both, both]
        assert filling.fill(store, present(store)).images == 0
        assert finds.images == 2
        mask = store.masks(second.id, state=PROPOSED)[0]
        assert (mask.model_version, mask.from_model) == (store.present().id, True)
        assert mask.prompts == {"point_coords": [[3.0, 4.0]], "point_labels": [1], "box": None}


def test_a_newer_model_proposes_only_what_is_not_there(tmp_path, finds):
    with make_store(tmp_path, 1) as store:
        task = store.claim_next("ada")
        store.save_mask(task.id, "ada", draft(rectangle(2, 2, 20, 29)), version=0)
        gone = store.save_mask(task.id, "ada", draft(rectangle(21, 30, 28, 37)), version=0)
        store.delete_mask(task.id, "ada", gone.key, 1)
        store.release(task.id, "ada")
        assert filling.fill(store, present(store)).masks == 0  # one was made already, the other deleted
        store.promote(store.add_candidate("0001", None, store.present().id).id)
        finds.masks = [*finds.masks, rectangle(0, 31, 10, 39)]
        assert dataclasses.astuple(filling.fill(store, present(store)))[:2] == (1, 1)


def test_an_image_that_is_taken_up_meanwhile_is_left_to_its_annotator(tmp_path, finds):
    with make_store(tmp_path, 1) as store:
        finds.before = lambda number: store.claim_next("ada")
        assert dataclasses.astuple(filling.fill(store, present(store))) == (0, 0, 1, ())
        assert store.masks(1, state=None) == []


def test_it_goes_on_after_a_stop_and_after_a_broken_image(tmp_path, finds):
    def stop(number):
        if number == 1:
            raise KeyboardInterrupt

    with make_store(tmp_path, 4) as store:
        finds.before = stop
        with pytest.raises(KeyboardInterrupt):
            filling.fill(store, present(store))
        broken = next(image for image in store.images() if not store.is_filled(image.id, SEMI_AUTOMATIC, 1))
        content = store.image_path(broken).read_bytes()
        store.image_path(broken).write_bytes(b"broken")
        finds.before = lambda number: None
        failures = filling.fill(store, present(store)).failures
        assert len(failures) == 1
        assert broken.file_name in failures[0]
        store.image_path(broken).write_bytes(content)
        assert filling.fill(store, present(store)).failures == ()
        assert [len(proposed(store, image)) for image in store.images()] == [2] * 4


def test_a_limit_takes_what_annotators_get_first(tmp_path, finds):
    with make_store(tmp_path) as store:
        assert filling.fill(store, present(store), limit=1).images == 1
        assert store.claim_next("ada").stage == SEMI_AUTOMATIC


def test_held_out_images_get_none(tmp_path, finds):
    with make_store(tmp_path, 6, hold_out=0.5) as store:
        assert filling.fill(store, present(store)).images == store.count_images(held_out=False)
        assert [mask for image in store.images(held_out=True) for mask in store.masks(image.id, state=None)] == []


def test_confident_is_half_way_from_the_thresholds_of_the_model_to_one(finds, tmp_path):
    for sam, thresholds in ((vit_b(), (0.94, 0.975)), (vit_tiny(), (0.75, 0.75))):
        amg = FillConfig().of_model(sam)
        assert (amg.pred_iou_thresh, amg.stability_score_thresh) == pytest.approx(thresholds)
        assert amg.mask_nms_thresh == 0.5
    with make_store(tmp_path, 1) as store:
        filling.fill(store, present(store))
    assert AmgConfig(**finds.options) == FillConfig().of_model(vit_tiny())


@pytest.mark.long
def test_a_network_proposes_masks(tmp_path, variables):
    """The whole way with a real, if random, model."""
    amg = AmgConfig(points_per_side=4, pred_iou_thresh=0.0, stability_score_thresh=0.0)
    with make_store(tmp_path, 1) as store:
        loaded = LoadedVersion(store.present(), Sam(TINY), variables)
        found = filling.fill(store, loaded, FillConfig(amg, confidence=0.0))
        (image,) = store.images()
        masks = store.masks(image.id, state=PROPOSED)
        assert (found.images, found.masks) == (1, len(masks))
        assert found.masks > 0
        assert [mask.area for mask in masks] == sorted((mask.area for mask in masks), reverse=True)
        assert np.isfinite([mask.predicted_iou for mask in masks]).all()
