"""A pool as a tar: the same files, smaller, and the same composites but for what WebP changes."""

import json
import tarfile

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from sam_jax.cli import data
from sam_jax.composites.pool import load_pool
from sam_jax.composites.pool_packing import PACKED_SIDE
from sam_jax.composites.source import CompositeSource
from sam_jax.config import CompositeConfig
from sam_jax.training.fingerprint import fingerprint_of_pool
from tests.tiny_pool import write_pool


def _annotations(mask):
    code = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return json.dumps({"annotations": [{"segmentation": {"size": code["size"], "counts": code["counts"].decode()}}]})


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """The tiny pool with a labelled image, a large photograph, its region, and one file that is held out."""
    root = write_pool(tmp_path_factory.mktemp("pool"))
    files = json.loads((root / "pool.json").read_text())["files"]
    for folder in ("backgrounds", "regions", "labelled"):
        (root / folder).mkdir()
    y, x = np.mgrid[0:1:600j, 0:1:800j]
    photo = Image.fromarray((255 * np.dstack([x, y, x * y])).astype(np.uint8))
    photo.save(root / "backgrounds/00007.jpg", quality=95)
    photo.thumbnail((448, 448))
    photo.save(root / "regions/00007.jpg", quality=95)
    (root / "regions/00007.json").write_text(_annotations(np.asarray(photo)[..., 0] > 128))
    square = np.zeros((60, 90), bool)
    square[10:40, 20:70] = True
    Image.fromarray(np.dstack([square * np.uint8(200)] * 3)).save(root / "labelled/1.jpg")
    (root / "labelled/1.json").write_text(_annotations(square))
    new = [("backgrounds/00007.jpg", "background"), ("regions/00007.jpg", "region"), ("labelled/1.jpg", "labelled")]
    files += [{"path": path, "kind": kind, "package": "made-up", "split": "train"} for path, kind in new]
    files.append({"path": "background_0.png", "kind": "background", "package": "made-up", "split": "val"})
    (root / "pool.json").write_text(json.dumps({"files": files}))
    return root


@pytest.fixture(scope="module")
def packed(pool, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed") / "pool.tar"
    assert data.main(["pack-pool", str(pool), str(out)]) == 0
    return out


def test_a_packed_pool_is_the_same_but_for_webp(pool, packed):
    loose, tight = load_pool(pool, "train"), load_pool(packed, "train")
    for kind in ("cutouts", "backgrounds"):
        for one, other in zip(getattr(loose, kind), getattr(tight, kind), strict=True):
            if min(one.shape[:2]) > PACKED_SIDE:
                assert min(other.shape[:2]) == PACKED_SIDE
            else:
                assert one.shape == other.shape
    for one, other in zip(loose.cutouts, tight.cutouts, strict=True):
        assert np.abs(one[..., 3].astype(int) - other[..., 3]).mean() < 3
    for kind in ("labelled", "regions"):
        for one, other in zip(getattr(loose, kind), getattr(tight, kind), strict=True):
            assert one.segmentations == other.segmentations
            assert one.image.shape == other.image.shape
            assert np.abs(one.image.astype(int) - other.image).mean() < 3
    np.testing.assert_array_equal(loose.background_cdf, tight.background_cdf)
    config = CompositeConfig(image_size=64, masks_per_image=4)
    assert CompositeSource(tight, config, 0)[3]["mask_valid"].any()


def test_what_is_held_out_stays_behind_and_nothing_is_there_twice(packed):
    with tarfile.open(packed) as archive:
        names = archive.getnames()
    assert len(set(names)) == len(names)
    assert "regions/00007.webp" not in names
    assert "regions/00007.json" in names
    with pytest.raises(ValueError, match=r"split 'val' of .*0 cut-outs"):
        load_pool(packed, "val")


def test_a_packed_pool_has_a_fingerprint_and_packs_again(packed, tmp_path):
    assert fingerprint_of_pool(str(packed))["images"] == 9
    assert data.main(["pack-pool", str(packed), str(tmp_path / "again.tar")]) == 0
    assert fingerprint_of_pool(str(tmp_path / "again.tar"))["samples"].keys()


def test_a_packed_pool_is_not_added_to(packed, capsys):
    assert data.main(["pool-label", str(packed)]) == 2
    assert "is a packed pool; add to the directory" in capsys.readouterr().err


def test_no_pool_is_one_line(tmp_path, capsys):
    assert data.main(["pack-pool", str(tmp_path / "none"), str(tmp_path / "out.tar")]) == 2
    assert "no cut-out pool at" in capsys.readouterr().err
    (tmp_path / "text.tar").write_text("no tar")
    with pytest.raises(ValueError, match="is no tar of a pool"):
        load_pool(tmp_path / "text.tar", "train")
    assert not list(tmp_path.glob("*.unfinished"))
