"""A round of training: what it takes, how it ends, and that it may be killed anywhere. The network itself learns in
test_loop.py; here stand-ins for training and measuring leave what these leave."""

import json
import os
import shutil
from pathlib import Path

import pytest

from sam_jax.checkpoint import load_config, model_path
from sam_jax.config import RetrainConfig, TrainConfig, vit_tiny
from sam_jax.engine import retraining
from sam_jax.engine.judging import FIGURES, Comparison
from sam_jax.engine.retraining import retrain, roll_back
from sam_jax.engine.rows import PROMOTED, REJECTED, RETIRED
from sam_jax.engine.schema import StoreError
from sam_jax.engine.store import Store
from tests.engine.labelling import label, labelled_store
from tests.engine.stores import rectangle


class Killed(BaseException):
    """What no code catches."""


def comparison(gain):
    means = [dict.fromkeys(FIGURES, 0.5), dict.fromkeys(FIGURES, 0.5 + gain)]
    return Comparison(*means, gain, (gain - 0.01, gain + 0.01), 3, 6)


@pytest.fixture
def world(monkeypatch):
    """Stand-ins, what they were called with, and how much better the next model is."""
    config_json = (Path(str(model_path(None))) / "config.json").read_text()

    class World:
        gain, trained, measured = 0.05, [], []

    World.trained, World.measured = [], []

    def train(config):
        assert len(list(Path(config.data.path).glob("*.json"))) > 0
        World.trained.append(config)
        model = Path(config.workdir) / "model"
        model.mkdir(parents=True, exist_ok=True)
        (model / "config.json").write_text(config_json)
        return model

    def measure(present, candidate, held_out, config):
        assert len(list(held_out.glob("*.json"))) > 0
        assert load_config(candidate) == vit_tiny()
        World.measured.append((present, candidate))
        return comparison(World.gain)

    monkeypatch.setattr(retraining, "train", train)
    monkeypatch.setattr(retraining, "compare_models", measure)
    monkeypatch.setattr(retraining, "load_model", lambda path: (None, {"params": {"image_encoder": path}}))
    monkeypatch.setattr(retraining, "fingerprint", lambda params: "encoder")
    return World


@pytest.fixture
def store(tmp_path):
    with labelled_store(tmp_path) as store:
        yield store


def states(store):
    return {version.name: version.state for version in store.model_versions()}


def label_more(store, row):
    label(store, next(store.images(held_out=False)), [rectangle(row, 3, row + 4, 30)])


def leftovers(store):
    """What a finished round must not leave."""
    return [path.name for path in (store.directory / "models").iterdir() if not path.name.isdigit()]


def test_a_better_model_is_promoted_and_a_worse_one_kept_but_not_used(store, world):
    first = retrain(store)
    assert (first.version.name, first.version.state, first.version.round) == ("0001", PROMOTED, 1)
    assert store.present() == first.version
    assert load_config(store.model_path(first.version)) is not None
    metrics = first.version.metrics
    assert metrics["comparison"]["gain"] == 0.05
    assert metrics["counts"]["masks"] == 2 * store.count_images(False)
    label_more(store, 21)
    world.gain = -0.05
    second = retrain(store)
    assert states(store) == {"vit_tiny": RETIRED, "0001": PROMOTED, "0002": REJECTED}
    assert second.version.parent == first.version.id
    assert (store.directory / "models" / "0002" / "config.json").exists()
    assert world.trained[1].init_from == str(store.directory / "models" / "0001")
    assert leftovers(store) == [".retrain.lock"]


def test_nothing_new_is_an_error_before_work(store, world):
    retrain(store)
    with pytest.raises(StoreError, match=r"nothing to train on has changed since version 0001 .* --again"):
        retrain(store)
    roll_back(store)
    with pytest.raises(StoreError, match="nothing to train on has changed since version 0001"):
        retrain(store)
    assert retrain(store, RetrainConfig(again=True)).version.name == "0002"
    label_more(store, 21)
    assert retrain(store).version.name == "0003"
    assert len(world.trained) == 3


def test_few_images_train_the_decoder_and_many_the_whole_model(store, world):
    images = store.count_images(False)
    retrain(store, RetrainConfig(whole_model_images=images + 1, steps=7, learning_rate=1e-5))
    retrain(store, RetrainConfig(whole_model_images=images, minutes=2.5, again=True))
    decoder, whole = world.trained
    assert decoder.finetune.frozen == ("image_encoder/.*", "prompt_encoder/.*")
    assert decoder.finetune.embedding_cache == str(store.directory / "embeddings" / "encoder")
    assert (decoder.stages[0].num_steps, decoder.optim.learning_rate, decoder.minutes) == (7, 1e-5, None)
    assert (whole.finetune.frozen, whole.finetune.embedding_cache, whole.minutes) == ((), None, 2.5)
    assert decoder.sam == vit_tiny()
    assert isinstance(whole, TrainConfig)
    assert [RetrainConfig().num_steps(n) for n in (1, 12, 1000)] == [40, 120, 2000]


# Of each step the function, and its how manieth call in a round it is.
STEPS = {
    "beginning": (retraining, "write_atomically", 1),
    "writing the sets": (retraining, "write_sets", 1),
    "naming the sets": (os, "rename", 1),
    "training": (retraining, "train", 1),
    "comparing": (retraining, "compare_models", 1),
    "writing the verdict": (retraining, "write_atomically", 2),
    "naming the model": (os, "rename", 2),
    "telling the store": (Store, "add_candidate", 1),
    "promoting": (Store, "promote", 1),
    "tidying up": (shutil, "rmtree", 2),
}


def kill_in(monkeypatch, work, owner, name, call=1, after=False):
    """Runs `work` and kills it in a call of a function, before or after the function's own work."""
    function, calls = getattr(owner, name), []

    def killing(*args, **options):
        calls.append(name)
        last = len(calls) == call
        done = function(*args, **options) if after or not last else None
        if last:
            raise Killed
        return done

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killing)
        with pytest.raises(Killed):
            work()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_round_that_is_killed_goes_on(store, world, monkeypatch, step, after):
    kill_in(monkeypatch, lambda: retrain(store), *STEPS[step], after)
    assert store.present().state == PROMOTED  # there is a model, whatever happens
    calls = len(world.trained)
    if step == "tidying up" and after:
        with pytest.raises(StoreError, match="nothing to train on has changed"):
            retrain(store)
    else:
        outcome = retrain(store)
        assert (outcome.version.name, outcome.version.state) == ("0001", PROMOTED)
    assert states(store) == {"vit_tiny": RETIRED, "0001": PROMOTED}
    assert leftovers(store) == [".retrain.lock"]
    if step in ("telling the store", "promoting", "tidying up"):
        assert len(world.trained) == calls  # the model is there


def test_a_round_with_other_settings_or_another_model_starts_over(store, world, monkeypatch):
    for change in (lambda: RetrainConfig(seed=1), lambda: roll_back(store) and RetrainConfig(again=True)):
        kill_in(monkeypatch, lambda: retrain(store, RetrainConfig(again=True)), retraining, "compare_models")
        config = change()
        outcome = retrain(store, config)
        assert world.trained[-1].seed == config.seed
        assert outcome.version.state == PROMOTED
        assert leftovers(store) == [".retrain.lock"]


def test_a_model_that_was_trained_from_one_that_is_no_longer_present_is_not_promoted(store, world, monkeypatch):
    retrain(store)
    label_more(store, 21)
    kill_in(monkeypatch, lambda: retrain(store), Store, "add_candidate")
    roll_back(store)
    outcome = retrain(store)
    assert outcome.version.state == REJECTED
    assert "0001 is no longer the present model" in outcome.reason
    assert store.present().name == "vit_tiny"


def test_one_process_trains_at_a_time(store, world):
    with retraining._alone(store.directory / "models"), pytest.raises(StoreError, match="another process is training"):
        retrain(store)
    assert retrain(store).version.state == PROMOTED


def test_rolling_back(store, world):
    for row in (21, 23, 25):
        label_more(store, row)
        retrain(store)
    assert [one.name for one in roll_back(store)] == ["0002", "0003"]
    assert [one.name for one in roll_back(store, "3")] == ["0003", "0002"]
    assert roll_back(store, "0001")[0].name == "0001"
    assert roll_back(store, "0")[0].name == "vit_tiny"
    assert states(store) == {"vit_tiny": PROMOTED, "0001": RETIRED, "0002": RETIRED, "0003": RETIRED}
    with pytest.raises(StoreError, match="vit_tiny is the first one"):
        roll_back(store)
    with pytest.raises(StoreError, match="there is no model version '9'; there are vit_tiny, 0001"):
        roll_back(store, "9")
    shutil.rmtree(store.directory / "models" / "0002")
    with pytest.raises(StoreError, match="0002, is gone"):
        roll_back(store, "2")


def test_what_a_round_records_can_be_read_by_a_person(store, world):
    version = retrain(store).version
    assert json.loads(json.dumps(version.metrics)) == version.metrics
    assert version.metrics["reason"] == "the mean of the figures changes by +0.0500"
