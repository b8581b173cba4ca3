"""The whole loop of the data engine with the bundled model, and an annotator who knows the answers: label by clicks and
brush, train, have masks proposed, label, train, have the rest annotated."""

import contextlib

import jax
import numpy as np
import pytest

import sam_jax
from sam_jax.config import AmgConfig, AutomaticConfig, EngineConfig, FillConfig, RetrainConfig, ServingConfig
from sam_jax.engine.audit import read_audit
from sam_jax.engine.automatic import annotate
from sam_jax.engine.filling import fill
from sam_jax.engine.finding import LoadedVersion
from sam_jax.engine.judging import FIGURES
from sam_jax.engine.retraining import retrain
from sam_jax.engine.routes import EngineService, create_router
from sam_jax.engine.rows import ASSISTED, AUDIT, AUTOMATIC, PROMOTED, REJECTED, SEMI_AUTOMATIC
from sam_jax.engine.store import init_store
from sam_jax.evaluation.metrics import mask_iou
from sam_jax.ops.rle import decode_mask
from tests.engine.scenes import write_scenes
from tests.engine.scripted import ScriptedAnnotator
from tests.serving.running import running

HOLD_OUT = 0.3
ROUND = RetrainConfig(steps=40, batch_size=4, masks_per_image=6)


@pytest.fixture
def full_speed():
    """Undoes what makes tiny models compile faster: the bundled model would run several times as long."""
    before = jax.config.jax_disable_most_optimizations
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def load(store):
    version = store.present()
    return LoadedVersion(version, *sam_jax.load_model(store.model_path(version)))


@contextlib.contextmanager
def annotator(store, truth, stage=None):
    """The server with the present model, and somebody at it."""
    loaded = load(store)
    engine = EngineService(store, loaded.version, stage)
    model = loaded.model, loaded.variables
    with running(*model, ServingConfig(port=0), routers=[create_router(engine)]) as server, server.client() as client:
        yield ScriptedAnnotator(client, sam_jax.SamPredictor(*model), truth)
    engine.close()


def add(store, scenes):
    """Adds images; {file name: masks}."""
    return {store.add_image(path)[0].file_name: masks for path, masks in scenes.items()}


def train(store):
    """A round of training: what is promoted follows the rule, and the present model is never a worse one."""
    before = store.present()
    outcome = retrain(store, ROUND)
    found = outcome.comparison
    print(f"\n{found.table()}\nmodel {outcome.version.name} is {outcome.version.state}: {outcome.reason}")
    better = found.gain >= ROUND.margin and all(
        found.present[name] - found.candidate[name] <= ROUND.max_loss for name in FIGURES
    )
    assert outcome.version.state == (PROMOTED if better else REJECTED)
    assert store.present().name == (outcome.version.name if better else before.name)
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


@pytest.mark.long
def test_from_the_first_click_to_stage_3(tmp_path, full_speed):
    with init_store(tmp_path / "store", EngineConfig(hold_out=HOLD_OUT)) as store:
        truth = add(store, write_scenes(tmp_path / "one", 12, held_out=4, share=HOLD_OUT))
        with annotator(store, truth) as ada:
            assert ada.label_all(store) == 12
        statistics = store.statistics()
        assert statistics.masks == sum(map(len, truth.values()))
        assert 0 < statistics.proposal_iou < 1
        first = train(store)

        truth |= add(store, write_scenes(tmp_path / "two", 8, held_out=3, share=HOLD_OUT, seed=1000))
        found = fill(store, load(store), FillConfig(AmgConfig(points_per_side=12)))
        assert found.images == 8
        assert fill(store, load(store)).images == 0
        print(f"\nstage 2: {found.masks} masks; for an object, IoU, shown: {quality(store, truth, SEMI_AUTOMATIC)}")
        with annotator(store, truth) as ada:
            assert ada.label_all(store) == 8
        assert store.statistics().masks == sum(map(len, truth.values()))
        assert 0 < store.statistics().share_new <= 1
        assert not [mask for image in store.images() for mask in store.masks(image.id, state="proposed")]
        second = train(store)

        truth |= add(store, write_scenes(tmp_path / "three", 20, held_out=6, share=HOLD_OUT, seed=2000))
        config = AutomaticConfig(AmgConfig(points_per_side=12, min_mask_region_area=20, max_mask_cover=0.95))
        found = annotate(store, load(store), tmp_path / "out", config)
        assert found.images == 20
        assert len(list((tmp_path / "out").glob("*.json"))) == 20
        print(f"\nstage 3: {found.masks} masks; for an object, IoU, shown: {quality(store, truth, AUTOMATIC)}")
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
