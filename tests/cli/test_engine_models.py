"""`sam-jax engine fill`, `auto`, `retrain` and `roll-back`: what they say, and their exit codes."""

from types import SimpleNamespace

import pytest

from sam_jax.cli import engine_models, main
from sam_jax.config import vit_tiny
from sam_jax.engine import automatic, filling, retraining
from sam_jax.engine.finding import LoadedVersion
from sam_jax.engine.judging import FIGURES, Comparison
from sam_jax.engine.rows import PROMOTED
from sam_jax.engine.store import Store
from sam_jax.training.interruption import Interrupted
from sam_jax.training.loop import NonFiniteLossError
from tests.engine.labelling import Rectangles, label
from tests.engine.stores import make_store, rectangle


@pytest.fixture
def folder(tmp_path):
    """A store of four images, the first of them labelled."""
    with make_store(tmp_path, 4) as store:
        label(store, next(store.images()), [rectangle(2, 2, 20, 30)])
    return tmp_path / "store"


@pytest.fixture
def run(capsys, monkeypatch):
    """Runs a command with a model that finds a rectangle; its exit code, and what it says."""
    finds = Rectangles([rectangle(2, 2, 20, 30)])
    monkeypatch.setattr(filling, "EverythingSegmenter", finds)
    monkeypatch.setattr(automatic, "EverythingSegmenter", finds)
    model = SimpleNamespace(config=vit_tiny())
    monkeypatch.setattr(engine_models, "_load", lambda store, dtype: LoadedVersion(store.present(), model, None))

    def run(*words):
        code = main.main(["engine", *map(str, words)])
        said = capsys.readouterr()
        return code, said.out, said.err

    run.finds = finds
    return run


def test_fill_and_auto(run, folder, tmp_path):
    assert run("fill", folder, "--limit", 1)[:2] == (0, "proposed 1 masks in 1 images\n")
    assert run("fill", folder, "--confidence", 0.25)[:2] == (0, "proposed 2 masks in 2 images\n")
    assert run.finds.options["pred_iou_thresh"] == pytest.approx(0.5 + 0.25 * 0.5)
    out = tmp_path / "out"
    words = "auto", folder, "--out", out, "--crop-layers", 1, "--points-per-side", 8
    assert run(*words)[:2] == (0, "accepted 3 masks in 3 images\n")
    assert (run.finds.options["crop_n_layers"], run.finds.options["points_per_side"]) == (1, 8)
    assert len(list(out.glob("*.json"))) == 3
    assert run("auto", folder, "--everything")[:2] == (0, "accepted 0 masks in 1 images\n")  # there is one already
    assert len(list((folder / "automatic").glob("*.json"))) == 1


def test_failures_are_told(run, folder):
    (folder / "images" / "image_2.png").write_bytes(b"broken")
    code, out, _ = run("fill", folder)
    assert code == 1
    assert "proposed 2 masks in 2 images\nfailed: " in out
    assert "image_2.png" in out


@pytest.mark.parametrize("command", ["fill", "auto"])
def test_bad_input_is_one_line(run, folder, tmp_path, command):
    code, _, err = run(command, folder, "--limit", 0)
    assert (code, err) == (2, f"sam-jax engine {command}: --limit 0 must be 1 or more\n")
    code, _, err = run(command, tmp_path)
    assert code == 2
    assert "has no engine.sqlite; make one with: sam-jax engine init" in err
    code, _, err = run(command, folder, "--max-overlap", 1.5)
    assert (code, err) == (2, f"sam-jax engine {command}: max_overlap must be a share from 0 to 1, not 1.5\n")


def test_retrain_says_who_is_better(run, folder, monkeypatch):
    figures = dict.fromkeys(FIGURES, 0.5)
    asked = []

    def retrain(store, config):
        asked.append(config)
        version = store.promote(store.add_candidate("0001", "models/0001", store.present().id).id)
        found = Comparison(figures, dict.fromkeys(FIGURES, 0.6), 0.1, (0.05, 0.15), 3, 9)
        return retraining.Outcome(version, found, found.reason(config))

    monkeypatch.setattr(retraining, "retrain", retrain)
    code, out, _ = run("retrain", folder, "--steps", 5, "--margin", 0.01)
    assert (code, asked[0].steps, asked[0].margin) == (0, 5, 0.01)
    assert "mean change +0.1000 [+0.0500, +0.1500] on 9 masks of 3 images" in out
    assert out.endswith("model 0001 is promoted: the mean of the figures changes by +0.1000\n")
    (folder / "models" / "0001").mkdir()
    assert run("roll-back", folder)[:2] == (0, "model vit_tiny is in use again, in the place of 0001\n")
    assert run("roll-back", folder, "--to", 1)[:2] == (0, "model 0001 is in use again, in the place of vit_tiny\n")
    with Store(folder) as store:
        assert (store.present().name, store.present().state) == ("0001", PROMOTED)
    code, _, err = run("roll-back", folder, "--to", "0007")
    assert (code, err) == (
        2,
        "sam-jax engine roll-back: there is no model version '0007'; there are vit_tiny, 0001\n",
    )


@pytest.mark.parametrize(
    ("error", "code"), [(Interrupted("stopped at step 3"), 75), (NonFiniteLossError("loss nan at step 3"), 3)]
)
def test_a_training_that_ends_early(run, folder, monkeypatch, error, code):
    def retrain(store, config):
        raise error

    monkeypatch.setattr(retraining, "retrain", retrain)
    found, _, err = run("retrain", folder)
    assert found == code
    assert err.endswith(f"sam-jax engine retrain: {error}\n")


def test_too_little_to_train_on_is_an_error_before_work(run, folder):
    code, _, err = run("retrain", folder)
    assert code == 2
    assert "sam-jax engine retrain: no held-out image has a mask that people made or accepted" in err
    assert run("retrain", folder, "--steps", 3, "--minutes", 2)[0] == 2
