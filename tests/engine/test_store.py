import dataclasses
import hashlib
import os
import sqlite3

import numpy as np
import pytest

from sam_jax.config import EngineConfig
from sam_jax.engine import schema
from sam_jax.engine.image_table import FORMATS, is_held_out
from sam_jax.engine.rows import NotFound, NotHeld, StoreError, VersionConflict
from sam_jax.engine.store import Store, init_store
from sam_jax.inference.images import ImageError
from sam_jax.ops.rle import decode_mask, encode_mask
from tests.engine.stores import SIZE, draft, make_store, rectangle, write_images


def test_images_are_copied_or_linked_once(tmp_path):
    one, other = write_images(tmp_path / "a", 2)
    (tmp_path / "b").mkdir()
    same_name = (tmp_path / "b/IMAGE_0.PNG").absolute()
    same_name.write_bytes(other.read_bytes())
    with init_store(tmp_path / "store", EngineConfig(hold_out=0.5)) as store:
        first, new = store.add_image(one)
        assert (first.file_name, first.size, new) == ("image_0.png", SIZE, True)
        assert store.image_path(first).read_bytes() == one.read_bytes()
        again, new = store.add_image(one, link=True)
        assert (again, new) == (first, False)
        second, new = store.add_image(same_name, link=True)
        assert new
        assert second.file_name == f"IMAGE_0-{second.sha256[:12]}.PNG"
        assert store.image_path(second).resolve() == same_name
        broken = tmp_path / "broken.jpg"
        broken.write_bytes(one.read_bytes()[:300])
        with pytest.raises(ImageError, match=r"broken\.jpg"):
            store.add_image(broken)
        assert [image.id for image in store.images()] == [first.id, second.id]
        assert sorted(os.listdir(tmp_path / "store/images")) == sorted([first.file_name, second.file_name])
        assert [task.stage for task in store.tasks(state="open")] == ["assisted-manual"] * 2
        held = [image for image in store.images(held_out=True)]
        assert held == [image for image in (first, second) if image.held_out]
        assert store.count_images(True) + store.count_images(False) == store.count_images() == 2


def test_what_the_server_takes_is_what_the_store_takes():
    from sam_jax.serving.service import FORMATS as served

    assert served == FORMATS


def test_the_share_that_is_held_out():
    hashes = [hashlib.sha256(bytes([number % 256, number // 256])).hexdigest() for number in range(2000)]
    assert 160 < sum(is_held_out(name, 0.1) for name in hashes) < 240
    assert not any(is_held_out(name, 0.0) for name in hashes)
    assert all(is_held_out(name, 0.2) for name in hashes if is_held_out(name, 0.1))


def test_a_store_is_made_once_and_opened_where_it_is(tmp_path):
    with pytest.raises(StoreError, match="sam-jax engine init"):
        Store(tmp_path)
    config = EngineConfig(hold_out=0.25, lease_seconds=5, hint_seconds=7)
    init_store(tmp_path / "store", config, checkpoint=str(tmp_path / "my_model")).close()
    with pytest.raises(StoreError, match="has a store already"):
        init_store(tmp_path / "store")
    with Store(tmp_path / "store") as store:
        assert store.config == config
        assert store.present().name == "my_model"
        assert store.model_path(store.present()) == tmp_path / "my_model"


def test_files_of_others_are_refused(tmp_path):
    file = tmp_path / "engine.sqlite"
    file.write_bytes(b"no SQLite file at all" * 100)
    with pytest.raises(StoreError, match="no SQLite file"):
        Store(tmp_path)
    file.unlink()
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    with pytest.raises(StoreError, match="another program"):
        Store(tmp_path)


def test_a_newer_file_is_refused(tmp_path, store):
    store.close()
    file = tmp_path / "store/engine.sqlite"
    connection = sqlite3.connect(file)
    connection.execute(f"PRAGMA user_version = {len(schema.MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(StoreError, match="newer"):
        Store(tmp_path / "store")


def test_a_file_of_version_1_is_migrated(tmp_path, monkeypatch):
    """Its masks stay, and are counted as if the new version had been there from the beginning."""
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:1])
        with make_store(tmp_path, 2) as old:
            task = old.claim_next("ada")
            saved = [old.save_mask(task.id, "ada", draft(seconds=seconds), 0, 1) for seconds in (2.0, 4.0, None)]
            old.delete_mask(task.id, "ada", saved[2].key, 1)
            old.finish(task.id, "ada", 9.0)
            assert old.select_one("SELECT 1 FROM sqlite_schema WHERE name = 'totals'") is None
    with Store(tmp_path / "store") as new:
        assert new.select_one("PRAGMA user_version")[0] == len(schema.MIGRATIONS)
        assert new.masks(task.image_id) == saved[:2]
        found = new.statistics()
        assert (found.masks, found.seconds_per_mask, found.masks_per_image) == (2, 3.0, 2.0)
    with Store(tmp_path / "store") as again:
        assert again.statistics() == found


def test_a_failed_migration_leaves_the_file_as_it_was(tmp_path, monkeypatch, store):
    store.close()
    broken = ("CREATE TABLE half (x)", "CREATE TABLE images (x)")
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, broken))
        with pytest.raises(sqlite3.OperationalError, match="already exists"):
            Store(tmp_path / "store")
    with Store(tmp_path / "store") as opened:
        assert opened.select_one("SELECT 1 FROM sqlite_schema WHERE name = 'half'") is None
        assert opened.count_images() == 3


def test_a_mask_is_measured_and_kept_as_it_was_given(store):
    task = store.claim_next("ada")
    mask, proposal = rectangle(5, 5, 15, 20), rectangle(5, 5, 15, 25)
    given = draft(mask, name="a cup", corrections=2, seconds=3.5, predicted_iou=0.9, prominence=4)
    given = dataclasses.replace(given, proposal=encode_mask(proposal), prompts={"box": [1, 2, 3, 4]})
    saved = store.save_mask(task.id, "ada", given, 0, 1)
    assert np.array_equal(decode_mask(saved.segmentation), mask)
    assert (saved.area, saved.bbox, saved.proposal_iou) == (150, [5, 5, 14, 9], 0.75)
    assert (saved.state, saved.stage, saved.author, saved.version) == ("accepted", "assisted-manual", "ada", 1)
    assert (saved.name, saved.corrections, saved.seconds, saved.prominence) == ("a cup", 2, 3.5, 4)
    assert (saved.prompts, saved.proposal) == ({"box": [1, 2, 3, 4]}, encode_mask(proposal))
    assert not saved.from_model
    assert store.mask(given.key.upper()) == saved
    assert store.masks(task.image_id) == store.task_masks(task) == [saved]
    # Changed: the first proposal stays.
    changed = dataclasses.replace(given, segmentation=encode_mask(proposal), proposal=encode_mask(mask))
    assert store.save_mask(task.id, "ada", changed, 1).proposal_iou == 1.0


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "COCO's compressed run lengths"),
        ({"size": list(SIZE), "counts": [1200]}, "COCO's compressed run lengths"),
        ({"size": [40, 30], "counts": "0"}, "size"),
        ({"size": list(SIZE), "counts": "04"}, "1200"),
        (encode_mask(np.zeros(SIZE, bool)), "no pixel"),
    ],
    ids=["nothing", "list", "size", "sum", "empty"],
)
def test_what_is_no_mask_is_not_saved(store, segmentation, message):
    task = store.claim_next("ada")
    with pytest.raises(ValueError, match=message):
        store.save_mask(task.id, "ada", draft(segmentation=segmentation), 0)
    with pytest.raises(ValueError, match=message):
        store.fill_image(task.image_id, [draft(), draft(segmentation=segmentation)], "automatic", 1)
    assert store.masks(task.image_id) == []


def test_a_key_has_to_be_a_uuid(store):
    task = store.claim_next("ada")
    with pytest.raises(ValueError, match="no UUID"):
        store.save_mask(task.id, "ada", draft(key="../../etc"), 0)


def test_versions_of_a_mask(store):
    task = store.claim_next("ada")
    first = draft()
    saved = store.save_mask(task.id, "ada", first, 0)
    assert store.save_mask(task.id, "ada", first, 0) == saved  # sent again, as its answer was lost
    other = dataclasses.replace(first, segmentation=encode_mask(rectangle(0, 0, 3, 3)))
    with pytest.raises(VersionConflict) as caught:
        store.save_mask(task.id, "ada", other, 0)
    assert caught.value.present == saved
    assert store.save_mask(task.id, "ada", other, 1).version == 2
    with pytest.raises(VersionConflict, match="has version 2, by ada"):
        store.delete_mask(task.id, "ada", first.key, 1)
    with pytest.raises(VersionConflict, match="not been saved"):
        store.save_mask(task.id, "ada", draft(), 3)
    gone = store.delete_mask(task.id, "ada", first.key, 2)
    assert (gone.state, gone.version) == ("deleted", 3)
    assert store.delete_mask(task.id, "ada", first.key, 2) == gone
    assert store.masks(task.image_id) == store.task_masks(task) == []
    assert [mask.version for mask in store.masks(task.image_id, state=None)] == [3]
    assert store.save_mask(task.id, "ada", other, 3).state == "accepted"  # undone


def test_who_does_not_hold_a_task_cannot_write_to_it(store, clock):
    task = store.claim_next("ada")
    saved = store.save_mask(task.id, "ada", draft(), 0)
    for write in (
        lambda: store.save_mask(task.id, "bob", draft(), 0),
        lambda: store.delete_mask(task.id, "bob", saved.key, 1),
        lambda: store.renew(task.id, "bob"),
        lambda: store.release(task.id, "bob"),
        lambda: store.finish(task.id, "bob"),
        lambda: store.claim_next("bob", image_id=task.image_id),
    ):
        with pytest.raises(NotHeld, match="ada holds it") as caught:
            write()
        assert caught.value.task.annotator == "ada"
    with pytest.raises(NotFound):
        store.save_mask(99, "ada", draft(), 0)
    other = store.claim_next("bob")
    assert other.image_id != task.image_id
    with pytest.raises(NotFound, match="none of task"):
        store.save_mask(other.id, "bob", draft(key=saved.key), 1)


def test_leases(store, clock):
    task = store.claim_next("ada", lease_seconds=10)
    saved = store.save_mask(task.id, "ada", draft(), 0)
    assert store.claim_next("ada").id == task.id  # the same again, as after a reload
    store.renew(task.id, "ada", 10)
    assert [store.claim_next(name).image_id for name in ("bob", "eve")] == [2, 3]
    assert store.claim_next("zoe") is None
    clock.now += 11
    store.save_mask(task.id, "ada", draft(), 0)  # nobody has taken it yet
    taken = store.claim_next("zoe")
    assert (taken.id, taken.annotator) == (task.id, "zoe")
    with pytest.raises(NotHeld, match="zoe holds it"):
        store.save_mask(task.id, "ada", draft(), 0)
    assert len(store.task_masks(taken)) == 2  # what was saved stays
    assert store.save_mask(task.id, "zoe", draft(key=saved.key), 1).author == "zoe"
    store.release(task.id, "zoe")
    assert store.release(task.id, "zoe").state == "open"
    assert store.claim_next("ada").id == task.id


def test_a_finished_task(store, clock):
    task = store.claim_next("ada")
    keys = [store.save_mask(task.id, "ada", draft(seconds=4.0), 0).key for _ in range(3)]
    done = store.finish(task.id, "ada", 12.0, keys[::-1], model_version=1)
    assert (done.state, done.masks, done.seconds, done.model_version) == ("done", 3, 12.0, 1)
    assert store.finish(task.id, "ada", 12.0) == done  # sent again
    assert [mask.key for mask in store.masks(task.image_id)] == keys[::-1]
    with pytest.raises(NotHeld, match="ada has finished it"):
        store.save_mask(task.id, "bob", draft(), 0)
    again = store.claim_next("bob", image_id=task.image_id)
    assert again.id == task.id
    store.save_mask(task.id, "bob", draft(), 0)
    assert store.finish(task.id, "bob", 3.0).seconds == 15.0
    found = store.statistics()
    assert (found.images, found.done, found.open, found.masks, found.masks_per_image) == (3, 1, 2, 4, 4.0)
    with pytest.raises(NotFound):
        store.claim_next("bob", image_id=77)


def test_two_label_one_image_where_that_is_asked_for(store):
    task = store.claim_next("ada")
    first = store.save_mask(task.id, "ada", draft(), 0)
    repeat = store.claim_next("bob", image_id=task.image_id, shared=True)
    assert (repeat.stage, repeat.image_id) == ("repeat", task.image_id)
    assert store.claim_next("bob", image_id=task.image_id, shared=True).id == repeat.id
    assert store.task_masks(repeat) == []  # from nothing
    second = store.save_mask(repeat.id, "bob", draft(), 0)
    assert second.stage == "repeat"
    store.finish(repeat.id, "bob")
    assert store.masks(task.image_id) == store.task_masks(task) == [first]
    assert store.masks(task.image_id, checks=True) == [first, second]
    assert store.task(repeat.id).masks == 1
    assert store.statistics().done == 0  # of the data set itself


def test_masks_of_a_model_are_proposed_once(store):
    masks = [rectangle(0, 0, 5, 5), rectangle(8, 8, 20, 30)]
    assert store.fill_image(1, [draft(mask) for mask in masks], "semi-automatic", 1)
    assert not store.fill_image(1, [draft()], "semi-automatic", 1)
    assert store.is_filled(1, "semi-automatic", 1)
    assert not store.is_filled(1, "automatic", 1)
    assert store.masks(1) == []
    task = store.claim_next("ada", stage="semi-automatic")
    assert task.image_id == 1
    proposed, other = store.task_masks(task)
    assert (proposed.state, proposed.from_model, proposed.model_version) == ("proposed", True, 1)
    taken = store.save_mask(
        task.id, "ada", draft(key=proposed.key, segmentation=encode_mask(masks[0]), seconds=1), proposed.version
    )
    assert (taken.state, taken.from_model, taken.proposal_iou, taken.author) == ("accepted", True, 1.0, "ada")
    new = store.save_mask(task.id, "ada", draft(seconds=3), 0, 1)
    assert (new.stage, new.from_model) == ("semi-automatic", False)
    store.delete_mask(task.id, "ada", other.key, other.version)
    store.finish(task.id, "ada", model_version=1)
    assert not store.fill_image(1, [draft()], "semi-automatic", 2)  # it is done
    found = store.statistics()
    assert (found.masks, found.share_new, found.seconds_per_mask) == (2, 0.5, 2.0)
    assert (found.proposal_iou, found.stage) == (1.0, "assisted-manual")


def test_automatic_masks_are_accepted(store):
    assert store.fill_image(2, [draft(stability_score=0.97)], "automatic", 1)
    assert store.fill_image(3, [], "automatic", 1)
    (mask,) = store.stream_masks(stage="automatic")
    assert (mask.image_id, mask.state, mask.stability_score, mask.proposal) == (2, "accepted", 0.97, None)
    assert [image.id for image, _ in store.labelled_images()] == [2]
    (row,) = store.round_statistics()
    assert (row.stage, row.images, row.masks, row.masks_per_image, row.share_new) == ("automatic", 2, 1, 0.5, None)


def test_masks_are_streamed_by_image(tmp_path, monkeypatch):
    monkeypatch.setattr("sam_jax.engine.database.BATCH", 2)
    with make_store(tmp_path, 7, hold_out=0.5) as store:
        for number in range(7):
            task = store.claim_next("ada")
            for _ in range(number % 3):
                store.save_mask(task.id, "ada", draft(), 0)
            store.finish(task.id, "ada")
        counts = {image.id: len(masks) for image, masks in store.labelled_images()}
        assert counts == {2: 1, 3: 2, 5: 1, 6: 2}
        parts = [{mask.image_id for mask in store.stream_masks(held_out=flag)} for flag in (True, False)]
        assert parts[0] | parts[1] == set(counts)
        assert parts[0] == {image.id for image in store.images(held_out=True)} & set(counts)


def test_model_versions(store):
    first = store.present()
    assert (first.round, first.path, first.state) == (0, None, "promoted")
    with pytest.raises(StoreError, match="first one"):
        store.roll_back()
    second = store.add_candidate("0002", "models/0002", first.id)
    assert (second.round, second.state) == (1, "candidate")
    second = store.set_metrics(second.id, {"box": 0.8})
    assert store.present() == first
    assert store.promote(second.id).metrics == {"box": 0.8}
    assert store.model_version(first.id).state == "retired"
    assert store.model_path(store.present()) == store.directory / "models/0002"
    third = store.add_candidate("0003", "models/0003", second.id)
    assert store.reject(third.id).state == "rejected"
    with pytest.raises(StoreError, match="is rejected"):
        store.reject(third.id)
    with pytest.raises(StoreError, match="already"):
        store.add_candidate("0003", "models/0003", second.id)
    assert store.roll_back().id == first.id
    assert store.roll_back(to=third.id).id == third.id
    with pytest.raises(NotFound):
        store.promote(77)
    assert [version.state for version in store.model_versions()] == ["retired", "retired", "promoted"]


def test_statistics_over_rounds(store):
    for version, (corner, seconds) in enumerate([(10, 8.0), (14, 4.0)], 1):
        task = store.claim_next("ada")
        fields = {"seconds": seconds, "proposal": encode_mask(rectangle(5, 5, corner, 20))}
        saved = store.save_mask(task.id, "ada", draft(**fields), 0, version)
        store.save_mask(task.id, "ada", draft(seconds=seconds), 0, version)
        store.finish(task.id, "ada", 2 * seconds, model_version=version)
        if version == 1:
            store.promote(store.add_candidate("0002", "models/0002", 1).id)
    one, two = store.round_statistics()
    assert (one.name, one.round, one.state, two.name, two.round) == ("vit_tiny", 0, "retired", "0002", 1)
    assert (one.masks_per_image, one.seconds_per_mask, one.proposal_iou) == (2.0, 8.0, 0.5)
    assert (two.masks_per_image, two.seconds_per_mask, two.proposal_iou) == (2.0, 4.0, pytest.approx(0.9))
    assert saved.proposal_iou == pytest.approx(0.9)
