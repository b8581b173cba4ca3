"""Stage 3: which images are gone through, and what becomes of masks that are there."""

import dataclasses
import json

import numpy as np
import pytest

from sam_jax.config import AmgConfig, vit_tiny
from sam_jax.config.engine_models import AutomaticConfig
from sam_jax.data.open_records import open_records
from sam_jax.engine import automatic
from sam_jax.engine.finding import LoadedVersion
from sam_jax.engine.rows import ACCEPTED, AUTOMATIC
from sam_jax.inference.automatic_mask_generator import SamAutomaticMaskGenerator
from sam_jax.models.sam import Sam
from sam_jax.ops.rle import decode_mask
from tests.engine.labelling import LARGE, SMALL, Rectangles, label, present
from tests.engine.stores import make_store, rectangle
from tests.tiny import TINY


@pytest.fixture
def finds(monkeypatch):
    found = Rectangles([SMALL, LARGE])
    monkeypatch.setattr(automatic, "EverythingSegmenter", found)
    return found


def areas(store, image):
    return [int(mask.area) for mask in store.masks(image.id)]


def test_images_that_nobody_has_labelled_get_masks_and_files(tmp_path, finds):
    with make_store(tmp_path, 4) as store:
        mine, taken, free, released = store.images()
        label(store, mine, [LARGE])
        store.claim_next("bob", image_id=taken.id)
        store.release(store.claim_next("eve", image_id=released.id).id, "eve")
        found = automatic.annotate(store, present(store), tmp_path / "out")
        assert dataclasses.astuple(found) == (2, 4, 0, ())
        assert [areas(store, image) for image in (mine, taken, free, released)] == [
            [LARGE.sum()],
            [],
            [LARGE.sum(), SMALL.sum()],
            [LARGE.sum(), SMALL.sum()],
        ]
        mask = store.masks(free.id)[0]
        assert (mask.stage, mask.state, mask.author) == (AUTOMATIC, ACCEPTED, "vit_tiny")
        content = json.loads((tmp_path / "out" / f"{store.result_name(free)}.json").read_text())
        assert content["image"] == {"image_id": free.id, "width": 40, "height": 30, "file_name": free.file_name}
        written = [decode_mask(annotation["segmentation"]) for annotation in content["annotations"]]
        np.testing.assert_array_equal(written, [LARGE, SMALL])
        assert automatic.annotate(store, present(store), tmp_path / "out").images == 0
        everything = AutomaticConfig(everything=True)
        assert automatic.annotate(store, present(store), tmp_path / "out", everything).masks == 3  # LARGE is there
        assert sorted(areas(store, mine)) == [SMALL.sum(), LARGE.sum()]


def test_a_later_model_goes_through_them_again_when_asked_and_keeps_what_people_changed(tmp_path, finds):
    with make_store(tmp_path, 2) as store:
        changed, plain = store.images()
        automatic.annotate(store, present(store), tmp_path / "out")
        task = store.claim_next("ada", image_id=changed.id)
        large = store.masks(changed.id)[0]
        draft = automatic.drafts_of(finds.records([rectangle(2, 2, 20, 28)], changed.size))[0]
        store.save_mask(task.id, "ada", dataclasses.replace(draft, key=large.key), version=1)
        store.release(task.id, "ada")
        store.promote(store.add_candidate("0001", None, store.present().id).id)
        finds.masks = [LARGE]
        assert automatic.annotate(store, present(store), tmp_path / "out").images == 0
        found = automatic.annotate(store, present(store), tmp_path / "out", AutomaticConfig(again=True))
        assert (found.images, found.masks) == (2, 1)  # LARGE overlaps with what Ada made of it
        assert areas(store, changed) == [18 * 26]
        assert areas(store, plain) == [LARGE.sum()]
        store.roll_back()
        again = AutomaticConfig(again=True)
        assert automatic.annotate(store, present(store), tmp_path / "out", again).images == 0
        assert areas(store, plain) == [LARGE.sum()]  # of the later model, whichever is in use


def test_a_kill_between_filling_and_deleting_leaves_nothing_twice(tmp_path, finds, monkeypatch):
    with make_store(tmp_path, 1) as store:
        (image,) = store.images()
        automatic.annotate(store, present(store), tmp_path / "out")
        store.promote(store.add_candidate("0001", None, store.present().id).id)
        with monkeypatch.context() as patch:
            patch.setattr(automatic, "delete_replaced", lambda *_: None)
            automatic.annotate(store, present(store), tmp_path / "out", AutomaticConfig(again=True))
        assert len(areas(store, image)) == 4
        automatic.annotate(store, present(store), tmp_path / "out")
        assert areas(store, image) == [LARGE.sum(), SMALL.sum()]
        assert {mask.model_version for mask in store.masks(image.id)} == {store.present().id}


def test_a_file_of_another_program_stops_it_before_it_begins(tmp_path, finds):
    with make_store(tmp_path, 2) as store:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "image_1.json").write_text('{"mine": 1}')
        with pytest.raises(ValueError, match=r"image_1\.json exists and was not written by this program"):
            automatic.annotate(store, present(store), tmp_path / "out")
        assert finds.images == 0


def test_the_settings_are_those_of_sa1b(finds, tmp_path):
    with make_store(tmp_path, 1) as store:
        automatic.annotate(store, present(store), tmp_path / "out")
    amg = AmgConfig(**finds.options)
    assert (amg.pred_iou_thresh, amg.stability_score_thresh) == (0.5, 0.5)  # of vit_tiny
    assert (amg.box_nms_thresh, amg.crop_nms_thresh, amg.min_mask_region_area, amg.max_mask_cover) == (
        *(0.7, 0.7),
        *(100, 0.95),
    )
    generator = SamAutomaticMaskGenerator(Sam(vit_tiny()), {"params": {}}, **vars(amg))
    assert [len(grid) for grid in generator.point_grids] == [32 * 32, 16 * 16, 8 * 8]
    assert generator.count_points((1500, 2250)) == 32 * 32 + 4 * 16 * 16 + 16 * 8 * 8


@pytest.mark.long
def test_a_network_annotates_in_sa1b_s_format(tmp_path, variables):
    """The whole way with a real, if random, model."""
    amg = AmgConfig(points_per_side=4, pred_iou_thresh=0.0, stability_score_thresh=0.0, min_mask_region_area=5)
    with make_store(tmp_path, 1) as store:
        (image,) = store.images()
        loaded = LoadedVersion(store.present(), Sam(TINY), variables)
        found = automatic.annotate(store, loaded, tmp_path / "out", AutomaticConfig(amg))
        masks = store.masks(image.id)
        assert found.masks == len(masks) > 0
        (tmp_path / "out" / "image_0.jpg").write_bytes(store.image_path(image).read_bytes())
        record = open_records(tmp_path / "out")[0]
        assert [rle["counts"] for rle in record.segmentations] == [mask.segmentation["counts"] for mask in masks]
