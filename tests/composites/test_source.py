"""Composites from a small pool made on the spot: no downloads."""

import json
import pickle

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from sam_jax.composites import pool as cutout_pool
from sam_jax.composites.patches import Patch
from sam_jax.composites.pool import load_pool, split_of
from sam_jax.composites.pool_packages import licence_of
from sam_jax.composites.pseudo_regions import find_regions
from sam_jax.composites.scene import Scene
from sam_jax.composites.source import CompositeConfig, CompositeSource, choose_masks
from sam_jax.data.example import PIXEL_MEAN_RGB

CONFIG = CompositeConfig(image_size=128, masks_per_image=8, length=1000)
COUNT = 60


def _write_files(root, rng):
    """Discs of plain colour as cut-outs, noise as photographs, one labelled square."""
    for folder in ("cutouts", "backgrounds", "labelled"):
        (root / folder).mkdir(parents=True)
    y, x = np.mgrid[-1:1:64j, -1:1:48j]
    for number in range(6):
        disc = np.dstack([np.full((64, 48, 3), 40 * number), 255 * (x * x + y * y < 0.9)]).astype(np.uint8)
        Image.fromarray(disc).save(root / f"cutouts/{number}.png")
        noise = rng.integers(0, 256, (150, 200, 3), np.uint8)
        Image.fromarray(noise).save(root / f"backgrounds/{number}.jpg")
    square = np.zeros((90, 120), np.uint8)
    square[20:60, 30:80] = 1
    code = coco_mask.encode(np.asfortranarray(square))
    segmentation = {"size": code["size"], "counts": code["counts"].decode()}
    Image.fromarray(np.dstack([square * 200] * 3)).save(root / "labelled/0.jpg", quality=95)
    (root / "labelled/0.json").write_text(json.dumps({"annotations": [{"segmentation": segmentation}]}))


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    root = tmp_path_factory.mktemp("pool")
    _write_files(root, np.random.default_rng(0))
    files = []
    for number in range(6):
        for kind, path in (
            ("photo_cutout", f"cutouts/{number}.png"),
            ("background", f"backgrounds/{number}.jpg"),
        ):
            split = "val" if number == 5 else "train"
            files.append({"path": path, "kind": kind, "package": "made-up", "split": split})
    files.append({"path": "labelled/0.jpg", "kind": "labelled", "package": "made-up", "split": "train"})
    (root / "pool.json").write_text(json.dumps({"files": files}))
    return load_pool(root, "train")


@pytest.fixture(scope="module")
def examples(pool):
    source = CompositeSource(pool, CONFIG, seed=7)
    return [source[index] for index in range(COUNT)]


def _equal(one, other):
    return all(np.array_equal(one[name], other[name]) for name in one)


def test_same_seed_and_index_give_the_same_bytes_in_any_order(pool, examples):
    source = CompositeSource(pool, CONFIG, seed=7)
    for index in (41, 3, 17):
        assert _equal(source[index], examples[index])


def test_a_pickled_source_gives_the_same_bytes(pool, examples):
    pickled = pickle.dumps(CompositeSource(pool, CONFIG, seed=7))
    assert len(pickled) < 2000  # the pool travels by name
    assert _equal(pickle.loads(pickled)[5], examples[5])


def test_seed_and_index_both_matter(pool, examples):
    assert not _equal(CompositeSource(pool, CONFIG, seed=8)[0], examples[0])
    assert not np.array_equal(examples[0]["image"], examples[1]["image"])


def test_shapes_and_dtypes(examples):
    expected = {
        "image": ((128, 128, 3), np.uint8),
        "masks": ((8, 32, 32), np.bool_),
        "mask_valid": ((8,), np.bool_),
        "input_size": ((2,), np.int32),
        "image_id": ((), np.int64),
    }
    for index, example in enumerate(examples):
        assert {name: (value.shape, value.dtype) for name, value in example.items()} == expected
        assert example["image_id"] == index


def test_masks_are_where_mask_valid_says_and_inside_the_image(examples):
    for example in examples:
        h, w = example["input_size"]
        assert example["mask_valid"].any()
        assert np.array_equal(example["masks"].any(axis=(1, 2)), example["mask_valid"])
        assert not example["masks"][:, -(-h // 4) :].any()
        assert not example["masks"][:, :, -(-w // 4) :].any()
        assert (example["image"][h:] == PIXEL_MEAN_RGB).all()
        assert (example["image"][:, w:] == PIXEL_MEAN_RGB).all()


def test_images_of_every_orientation_occur_and_fill_the_longer_side(examples):
    sizes = np.array([example["input_size"] for example in examples])
    assert (sizes.max(axis=1) == 128).all()
    assert {-1, 0, 1} <= set(np.sign(sizes[:, 0] - sizes[:, 1]).tolist())


def test_some_masks_are_parts_of_others(examples):
    nested = 0
    for example in examples:
        masks = example["masks"][example["mask_valid"]]
        for part in masks:
            nested += any((part <= whole).all() and part.sum() < 0.9 * whole.sum() for whole in masks)
    assert nested >= 10


def test_large_and_hollow_masks_are_kept_more_often():
    masks = np.zeros((4, 100, 100), bool)
    masks[0, :30, :30] = True
    masks[1, :30, :30] = np.eye(30, dtype=bool)
    masks[2, 50:53, 50:53] = True  # the last one is empty
    rng = np.random.default_rng(0)
    first = [choose_masks(rng, masks, 1)[0].sum() for _ in range(300)]
    full, hollow, tiny = (first.count(size) for size in (900, 30, 9))
    assert hollow > 2 * full > 2 * tiny > 0
    assert sorted(mask.sum() for mask in choose_masks(rng, masks, 9)) == [9, 30, 900]
    assert choose_masks(rng, masks[3:], 2).shape == choose_masks(rng, masks[:0], 2).shape == (0, 100, 100)


def test_a_mask_lies_on_its_object(pool):
    """With one plain cut-out on a plain canvas the mask can be read off the image."""
    scene = Scene(np.zeros((40, 60, 3), np.uint8))
    disc = Patch.from_rgba(pool.cutouts[4])
    scene.paste(disc, -20, 30)
    assert np.array_equal(scene.masks()[0], scene.canvas[..., 0] > 80)


def test_objects_hide_what_is_below_but_parts_do_not_hide_their_whole():
    scene = Scene(np.zeros((40, 40, 3), np.uint8))

    def square(side, grey=200):
        return Patch(np.full((side, side, 3), grey, np.float32), np.ones((side, side), np.float32))

    whole = scene.paste(square(20), 0, 0)
    assert scene.paste_part(square(10), 15, 15, whole) is None  # cannot be seen
    part = scene.paste_part(square(10, grey=90), 15, 15, whole)
    assert scene.layers[whole].visible.sum() == 400
    assert scene.layers[part].visible.sum() == 25  # clipped to the whole
    scene.paste(square(10), 0, 0)
    assert scene.layers[whole].visible.sum() == 300
    assert scene.paste_part(square(40, grey=90), 0, 0, whole) is None  # would be the whole again
    scene.paste(square(19), 0, 0)
    assert len(scene.masks()) == 2  # the whole is all but hidden, and so is the object at its corner


def test_labelled_photos_keep_their_masks(pool):
    source = CompositeSource(pool, CompositeConfig(image_size=128, labelled=1.0, degrade=0.0), seed=0)
    for index in range(5):
        example = source[index]
        inside = np.repeat(np.repeat(example["masks"][0], 4, 0), 4, 1)
        h, w = example["input_size"]
        image = example["image"][:h, :w].astype(float).mean(axis=2)
        assert abs(image[inside[:h, :w]].mean() - image[~inside[:h, :w]].mean()) > 60


def test_find_regions_sees_a_disc_in_a_photo():
    y, x = np.mgrid[:150, :200]
    disc = (y - 70) ** 2 + (x - 90) ** 2 < 30**2
    photo = np.where(disc[..., None], (200, 60, 40), (30, 90, 160)).astype(np.uint8)
    regions = find_regions(photo)
    assert any((region & disc).sum() > 0.85 * (region | disc).sum() for region in regions)


def test_splits_share_no_file(pool):
    val = load_pool(pool.root, "val")
    assert (len(pool.cutouts), len(val.cutouts)) == (5, 1)
    assert not any(np.array_equal(val.cutouts[0], cutout) for cutout in pool.cutouts)
    assert not any(np.array_equal(val.backgrounds[0], photo) for photo in pool.backgrounds)


def test_split_of_is_stable_and_about_one_in_ten():
    splits = [split_of(f"package/image_{number}.png") for number in range(2000)]
    assert 150 < splits.count("val") < 250
    assert splits == [split_of(f"package/image_{number}.png") for number in range(2000)]


def test_a_missing_pool_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"pool\.json is missing.*sam-jax data pool"):
        load_pool(tmp_path / "nowhere", "train")


def test_a_missing_package_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="tuxpaint-stamps-default_"):
        cutout_pool.build_pool(tmp_path / "out", packages=tmp_path)
    assert not (tmp_path / "out").exists()


def test_index_beyond_the_end_is_an_error(pool):
    with pytest.raises(IndexError):
        CompositeSource(pool, CONFIG, seed=0)[1000]


def test_the_last_matching_licence_wins():
    pairs = [("*", "GPL-3+"), ("images/*", "CC-BY-SA-4.0"), ("images/land/sea*", "public-domain")]
    assert licence_of("usr/share/games/x/images/land/sea1.jpg", pairs, "?") == "public-domain"
    assert licence_of("usr/share/games/x/images/ship/a.png", pairs, "?") == "CC-BY-SA-4.0"
    assert licence_of("usr/share/backgrounds/a_by_b.jpg", [("16.04/a_by_b.jpg", "CC-BY-4.0")], "?") == "CC-BY-4.0"
    assert licence_of("usr/share/doc/x", pairs, "?") == "GPL-3+"
    assert licence_of("anything", [], "?") == "?"
