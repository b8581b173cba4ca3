"""The whole loop of the data engine with the bundled model, and an annotator who knows the answers: label by clicks and
brush, train, have masks proposed, label, train, have the rest annotated."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import sam_jax
from sam_jax.config import EngineConfig, RetrainConfig, ServingConfig
from sam_jax.engine.audit import read_audit
from sam_jax.engine.finding import LoadedVersion
from sam_jax.engine.judging import FIGURES, from_json
from sam_jax.engine.routes import EngineService, create_router
from sam_jax.engine.rows import ASSISTED, AUDIT, AUTOMATIC, PROMOTED, REJECTED, SEMI_AUTOMATIC
from sam_jax.engine.store import init_store
from sam_jax.evaluation.metrics import mask_iou
from sam_jax.ops.rle import decode_mask
from tests.engine.annotating import WIDE, Annotator
from tests.engine.scenes import SIZE, write_scenes
from tests.engine.scripted import AnnotatorAtThePage, ScriptedAnnotator
from tests.serving.browsing import check_page_is_built
from tests.serving.running import running

HOLD_OUT = 0.3
STEPS = 40
ROOT = Path(__file__).parents[2]


@pytest.fixture
def full_speed():
    """Undoes what makes tiny models compile faster: the bundled model would run several times as long."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def command(store, name, *words):
    """Runs a command of `sam-jax engine` as people do: in a process of its own, with one device."""
    line = [sys.executable, "-m", "sam_jax", "engine", name, str(store.directory), *map(str, words)]
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    began = time.monotonic()
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr
    print(f"\n{name}, {time.monotonic() - began:.0f} s: {done.stdout}")
    return done.stdout


def load(store):
    version = store.present()
    return LoadedVersion(version, *sam_jax.load_model(store.model_path(version)))


@contextlib.contextmanager
def served(store, stage=None):
    """The server with the present model, and a predictor of that model."""
    loaded = load(store)
    engine = EngineService(store, loaded.version, stage)
    model = loaded.model, loaded.variables
    with running(*model, ServingConfig(port=0), routers=[create_router(engine)]) as server:
        yield server, sam_jax.SamPredictor(*model)
    engine.close()


@contextlib.contextmanager
def annotator(store, truth, stage=None):
    """Somebody at the server."""
    with served(store, stage) as (server, predictor), server.client() as client:
        yield ScriptedAnnotator(client, predictor, truth)


@contextlib.contextmanager
def annotator_at_the_page(browser, store, truth):
    """The same with the page."""
    check_page_is_built()
    with served(store) as (server, predictor):
        ada = Annotator(browser.new_context(viewport=WIDE).new_page(), server.url, size=SIZE)
        yield AnnotatorAtThePage(ada, predictor, truth)
        ada.page.context.close()
        assert ada.errors == []


def add(store, scenes):
    """Adds images; {file name: masks}."""
    return {store.add_image(path)[0].file_name: masks for path, masks in scenes.items()}


def train(store):
    """A round of training: what is promoted follows the rule, and the present model is never a worse one."""
    before = store.present()
    command(store, "retrain", "--steps", STEPS, "--batch-size", 2, "--masks-per-image", 6)
    version, rule = store.model_versions()[-1], RetrainConfig()
    found = from_json(version.metrics["comparison"])
    assert version.parent == before.id
    better = found.gain >= rule.margin and all(
        found.present[name] - found.candidate[name] <= rule.max_loss for name in FIGURES
    )
    assert version.state == (PROMOTED if better else REJECTED)
    assert store.present().name == (version.name if better else before.name)
    return found


def quality(store, truth, stage):
    """Of masks of a stage: how many there are for an object, mean IoU with the best of the truth, and the share of
    objects that one of them shows."""
    count, best, shown, objects = 0, [], 0, 0
    for image in store.images():
        masks = [decode_mask(mask.segmentation) for mask in store.masks(image.id, stage=stage, state=None)]
        if not masks:
            continue
        table = np.array([[mask_iou(mask, target) for target in truth[image.file_name]] for mask in masks])
        count, objects = count + len(masks), objects + table.shape[1]
        best += table.max(axis=1).tolist()
        shown += int((table.max(axis=0) > 0.5).sum())
    return count / objects, float(np.mean(best)), shown / objects


@pytest.mark.slow
def test_from_the_first_click_to_stage_3(tmp_path, full_speed, browser):
    with init_store(tmp_path / "store", EngineConfig(hold_out=HOLD_OUT)) as store:
        truth = add(store, write_scenes(tmp_path / "one", 12, held_out=4, share=HOLD_OUT))
        with annotator_at_the_page(browser, store, truth) as ada:
            assert ada.label_all(store) == 12
        for image in store.images():
            saved = [decode_mask(mask.segmentation) for mask in store.masks(image.id)]
            np.testing.assert_array_equal(saved, truth[image.file_name])
        statistics = store.statistics()
        assert statistics.masks == sum(map(len, truth.values()))
        assert 0 < statistics.proposal_iou < 1
        first = train(store)

        truth |= add(store, write_scenes(tmp_path / "two", 8, held_out=3, share=HOLD_OUT, seed=1000))
        assert "in 5 images" in command(store, "fill", "--points-per-side", 12)
        assert "in 0 images" in command(store, "fill", "--points-per-side", 12)
        proposed = quality(store, truth, SEMI_AUTOMATIC)
        print(f"\nstage 2: masks for an object, their IoU, objects shown: {proposed}")
        with annotator(store, truth) as ada:
            assert ada.label_all(store) == 8
        assert store.statistics().masks == sum(map(len, truth.values()))
        assert store.statistics().share_new == pytest.approx(1 - proposed[2], abs=0.25)  # people add what is not shown
        assert not [mask for image in store.images() for mask in store.masks(image.id, state="proposed")]
        second = train(store)

        truth |= add(store, write_scenes(tmp_path / "three", 20, held_out=6, share=HOLD_OUT, seed=2000))
        assert "in 20 images" in command(store, "auto", "--points-per-side", 12, "--crop-layers", 0)
        assert len(list((store.directory / "automatic").glob("*.json"))) == 20
        print(f"\nstage 3: masks for an object, their IoU, objects shown: {quality(store, truth, AUTOMATIC)}")
        assert {row.stage for row in store.round_statistics()} == {ASSISTED, SEMI_AUTOMATIC, AUTOMATIC}

        store.open_checks(AUDIT, 6)
        with annotator(store, truth, AUDIT) as ada:
            assert ada.label_all(store) == 6
        audit = read_audit(store)
        assert audit.images == 6
        assert audit.pairs + audit.deleted > 0
        assert audit.undecided == 0
        print(f"\n{audit}", *store.round_statistics(), sep="\n")
        print(f"mean change of the figures: {first.gain:+.4f}, {second.gain:+.4f}")
        assert store.present().round >= 1
