"""The commands of the data engine, from an empty directory to an audit."""

import json

import pytest

from sam_jax.cli import engine, main
from sam_jax.engine.store import Store
from tests.engine.stores import draft, rectangle, write_images


@pytest.fixture
def run(capsys):
    def run(*words):
        code = main.main(["engine", *map(str, words)])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def folder(tmp_path, run):
    """A store of four images."""
    write_images(tmp_path / "images", 4)
    assert run("init", tmp_path / "store", "--hold-out", "0")[0] == 0
    assert run("add", tmp_path / "store", tmp_path / "images")[0] == 0
    return tmp_path / "store"


def test_images_are_added_and_bad_ones_said(tmp_path, run):
    images = write_images(tmp_path / "images", 3)
    (tmp_path / "images/broken.jpg").write_bytes(b"\xff\xd8 no image")
    store = tmp_path / "store"
    code, out, _ = run("init", store)
    assert code == 0
    assert "vit_tiny" in out
    code, out, err = run("add", store, tmp_path / "images", "--link")
    assert (code, out) == (1, "3 added, 0 were there; 3 images in all\n")
    assert "left out: " in err
    assert "broken.jpg" in err
    assert (store / "images/image_0.png").resolve() == images[0]
    code, out, err = run("add", store, *images)
    assert (code, out) == (0, "0 added, 3 were there; 3 images in all\n")
    for words, reason in (
        (["init", store], "has a store already"),
        (["init", tmp_path / "other", "--hold-out", "1"], "hold_out must be a share from 0 to below 1"),
        (["init", tmp_path / "other", "--checkpoint", tmp_path / "nothing"], "nothing"),
        (["add", store, tmp_path / "nothing"], "does not exist"),
        (["status", tmp_path], "sam-jax engine init"),
    ):
        code, _, err = run(*words)
        assert code == 2
        assert reason in err
        assert err.count("\n") == 1


def test_from_labels_to_exports_and_back(tmp_path, folder, run):
    assert "0 of 4 tasks done" in run("status", folder)[1]
    with Store(folder) as store:
        task = store.claim_next("ada")
        store.save_mask(task.id, "ada", draft(seconds=7.0, name="cup"), 0, 1)
        store.finish(task.id, "ada", 9.0, model_version=1)
    code, out, _ = run("status", folder)
    assert "1 of 4 tasks done, 4 images, 1 masks; model vit_tiny (round 0)" in out
    rows = [line.split() for line in out.splitlines()]
    assert ["0", "vit_tiny", "promoted", "assisted-manual", "1", "1", "1.0", "7.0", "-", "-"] in rows
    for form in ("sa1b", "coco", "label-studio"):
        out_path = tmp_path / form
        code, out, _ = run("export", folder, out_path, "--format", form)
        assert (code, out) == (0, f"1 masks of 1 images in {out_path}\n")
        other = tmp_path / f"store_{form}"
        run("init", other)
        run("add", other, tmp_path / "images")
        assert run("import", other, out_path, "--format", form)[:2] == (0, "1 new masks in 1 images\n")
        with Store(other) as store:
            (mask,) = store.stream_masks()
            assert (mask.name, mask.area) == ("cup", 150)
    assert json.loads((tmp_path / "label-studio").read_text())[0]["data"] == {
        "image": "/data/local-files/?d=image_0.png"
    }
    code, _, err = run("import", folder, tmp_path / "coco", "--format", "sa1b")
    assert code == 1
    code, _, err = run("import", folder, tmp_path / "nothing.json", "--format", "coco")
    assert code == 2
    assert "cannot be read" in err


def test_an_audit(folder, run):
    with Store(folder) as store:
        store.fill_image(2, [draft(rectangle(0, 0, 10, 10))], "automatic", 1)
    assert run("audit", folder, "--sample", "2")[0] == 2
    assert "1 audit tasks are open" in run("audit", folder, "--sample", "1")[1]
    with Store(folder) as store:
        task = store.claim_next("ada", stage="audit")
        (mask,) = store.task_masks(task)
        store.save_mask(task.id, "ada", draft(rectangle(0, 0, 10, 8), key=mask.key), 1)
        store.finish(task.id, "ada")
    code, out, _ = run("audit", folder)
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert ["above", "0.90", "0.0", "%", "0.0", "to", "0.0", "%", "94", "%"] in rows
    assert ["above", "0.75", "100.0", "%", "100.0", "to", "100.0", "%", "97", "%"] in rows


def test_a_store_that_is_busy_is_one_line(folder, run, monkeypatch):
    monkeypatch.setattr("sam_jax.engine.database.BUSY_SECONDS", 0.05)
    with Store(folder) as store, store.transaction():
        code, _, err = run("add", folder, *write_images(folder.parent / "more", 1, seed=50))
        assert code == 2
        assert "the store cannot be used (database is locked)" in err


def test_the_server_needs_its_libraries(folder, run, monkeypatch):
    import sys

    monkeypatch.delitem(sys.modules, "sam_jax.engine.server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "sam_jax.serving.server", raising=False)
    code, _, err = run("serve", folder)
    assert code == 2
    assert "pip install 'sam_jax[engine]'" in err


def test_every_command_is_in_the_help():
    assert all(f"{{program}} {name} " in engine.HELP for name in engine.COMMANDS)
