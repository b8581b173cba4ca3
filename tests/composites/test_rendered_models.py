"""Images of 3-D models with their parts, and the pool that keeps them."""

import json
import subprocess
import zipfile

import numpy as np
import pytest

from sam_jax.cli import data
from sam_jax.composites.pool import load_pool, split_of
from sam_jax.composites.pool_models import render_pool
from sam_jax.composites.rendered_models import ModelError, render_model
from sam_jax.composites.source import CompositeSource
from sam_jax.config import CompositeConfig
from tests.tiny_pool import write_pool

pytestmark = pytest.mark.oracle

LIBRARY = "usr/share/sweethome3d/furniture"
MATERIALS = "newmtl {0}\nKd 0.9 0.1 0.1\nnewmtl {1}\nKd 0.1 0.1 0.9\n"


def _box(lower, upper, start):
    """Lines of an .obj: a box between two heights, its corners numbered from `start`."""
    corners = [(x, y, z) for x in (-1, 1) for y in (lower, upper) for z in (-1, 1)]
    sides = ((0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3))
    faces = ["f " + " ".join(str(start + corner) for corner in side) for side in sides]
    return [f"v {x} {y} {z}" for x, y, z in corners], faces


def _write_model(path, names=("top", "bottom")):
    """Two boxes: the upper one red, the lower one blue and twice as high."""
    upper, lower = _box(0.0, 1.0, 1), _box(-2.0, 0.0, 9)
    lines = ["mtllib boxes.mtl", *upper[0], *lower[0], f"usemtl {names[0]}", *upper[1], f"usemtl {names[1]}", *lower[1]]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    path.with_name("boxes.mtl").write_text(MATERIALS.format(*names))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return _write_model(tmp_path_factory.mktemp("model") / "boxes.obj")


def test_parts_are_what_each_material_covers(model):
    for seed in range(4):
        drawn = render_model(model, np.random.default_rng(seed))
        red, blue = drawn.rgba[..., 0].astype(int), drawn.rgba[..., 2].astype(int)
        solid = drawn.rgba[..., 3] == 255
        assert drawn.parts.max() == 2
        areas = np.bincount(drawn.parts.ravel(), minlength=3)
        assert areas[1] >= areas[2] > 0, "the largest part comes first"
        inside = solid & (np.abs(red - blue) > 30)
        reds = inside & (red > blue)
        for number in (1, 2):
            share = (reds & (drawn.parts == number)).sum() / (inside & (drawn.parts == number)).sum()
            assert share < 0.02 or share > 0.98
        assert not drawn.parts[drawn.rgba[..., 3] < 128].any()
        assert (drawn.parts[inside] > 0).mean() > 0.98
        rows = np.nonzero(reds)[0].mean(), np.nonzero(inside & ~reds)[0].mean()
        assert rows[0] < rows[1], "the red box is the upper one"


def test_the_same_seed_draws_the_same_and_a_model_is_turned(model):
    one, other = (render_model(model, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(one.rgba, other.rgba)
    other = render_model(model, np.random.default_rng(6))
    assert one.rgba.shape != other.rgba.shape or (one.rgba != other.rgba).any(), "another seed, another side"
    turned = render_model(model, np.random.default_rng(5), np.diag([1.0, -1.0, -1.0]))
    red = turned.rgba[..., 0].astype(int) - turned.rgba[..., 2] > 30
    assert np.nonzero(red)[0].mean() > turned.rgba.shape[0] / 2, "upside down the red box is the lower one"


def test_a_file_that_is_no_model_is_an_error_that_names_it(tmp_path):
    (tmp_path / "empty.obj").write_text("# nothing\n")
    with pytest.raises(ModelError, match=r"empty\.obj"):
        render_model(tmp_path / "empty.obj", np.random.default_rng(0))


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A directory with a Debian package of one library: two models, one of them upside down, and one that is broken."""
    root = tmp_path_factory.mktemp("package")
    models, files = ("good", "turned", "broken"), root / "files"
    for name in models:
        _write_model(files / name / f"{name}.obj", (f"{name}_a", f"{name}_b"))
    (files / "broken/broken.obj").write_text("f 1 2 3\n")
    rows = [f"model#{number}=/{name}/{name}.obj\nicon#{number}=/{name}.png" for number, name in enumerate(models, 1)]
    rows.append("modelRotation#2=1 0 0 0 -1 0 0 0 -1")
    (root / f"tree/{LIBRARY}").mkdir(parents=True)
    with zipfile.ZipFile(root / f"tree/{LIBRARY}/Made.sh3f", "w") as archive:
        archive.writestr("PluginFurnitureCatalog.properties", "\n".join(rows))
        for file in files.rglob("*.*"):
            archive.write(file, file.relative_to(files))
    (root / "tree/DEBIAN").mkdir()
    control = "Package: sweethome3d-furniture\nVersion: 7-1\nArchitecture: all\nMaintainer: m\nDescription: d\n"
    (root / "tree/DEBIAN/control").write_text(control)
    out = root / "sweethome3d-furniture_7-1_all.deb"
    subprocess.run(["dpkg-deb", "--build", root / "tree", out], check=True, capture_output=True)
    return root


def test_models_join_a_pool_and_composites(package, tmp_path, capsys):
    write_pool(tmp_path)
    with pytest.warns(UserWarning, match=r"left out: .*broken\.obj"):
        assert data.main(["pool-render", str(tmp_path), "--packages", str(package)]) == 0
    assert "2 rendered models" in capsys.readouterr().out
    entries = json.loads((tmp_path / "pool.json").read_text())["files"]
    found = [entry for entry in entries if entry["kind"] == "model"]
    assert [entry["source"] for entry in found] == ["Made/good/good.obj", "Made/turned/turned.obj"]
    assert {entry["version"] for entry in found} == {"7-1"}
    assert found[0]["split"] == split_of("sweethome3d-furniture/Made/good.png"), "held out with its icon"
    with pytest.warns(UserWarning, match="left out"):
        assert render_pool(tmp_path, package) == 2
    assert len(json.loads((tmp_path / "pool.json").read_text())["files"]) == len(entries), "nothing is there twice"

    for entry in found:
        entry["split"] = "train"
    (tmp_path / "pool.json").write_text(json.dumps({"files": entries}))
    assert data.main(["pack-pool", str(tmp_path), str(tmp_path / "pool.tar")]) == 0
    for root in (tmp_path, tmp_path / "pool.tar"):
        pool = load_pool(root, "train")
        assert len(pool.models) == 2
        assert all(model.rgba.shape[:2] == model.parts.shape for model in pool.models)
        config = CompositeConfig(
            image_size=128, masks_per_image=16, model_object=1.0, regions=0, mosaics=0, pseudo_regions=0, labelled=0
        )
        nested = 0
        for index in range(6):
            example = CompositeSource(pool, config, seed=0)[index]
            masks = example["masks"][example["mask_valid"]].reshape(-1, 32 * 32)
            shared = masks.astype(int) @ masks.T.astype(int)
            nested += ((shared == shared.diagonal()) & (shared.diagonal()[:, None] > shared.diagonal())).sum()
        assert nested > 0, "parts lie in wholes"


def test_what_is_missing_is_named_before_any_work(tmp_path, capsys):
    write_pool(tmp_path)
    assert data.main(["pool-render", str(tmp_path), "--packages", str(tmp_path)]) == 2
    assert "sweethome3d-furniture_*.deb" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()
