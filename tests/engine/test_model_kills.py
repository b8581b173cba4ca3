"""Workers and trainers that are killed at any moment: the store opens, no accepted mask is lost and none is twice."""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sam_jax.checkpoint import load_model, save_model
from sam_jax.config import EngineConfig
from sam_jax.engine.rows import AUTOMATIC, PROMOTED
from sam_jax.engine.store import Store, init_store
from tests.engine.labelling import label
from tests.engine.stores import rectangle, write_images
from tests.tiny import SMALLEST, random_variables

ROOT = Path(__file__).parents[2]
SIZE = (60, 80)
IMAGES, LABELLED = 60, 8
KILLS = 10  # of each
AUTO = "auto", "--points-per-side", "8", "--crop-layers", "1"
RETRAIN = "retrain", "--steps", "12", "--batch-size", "2", "--masks-per-image", "2", "--margin", "0", "--max-loss", "1"


def start(command, directory):
    """A process of a command of `sam-jax engine`."""
    line = [sys.executable, "-m", "sam_jax", "engine", command[0], str(directory), *command[1:]]
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(line, cwd=ROOT, env=environment, stderr=subprocess.PIPE)


def run(command, directory):
    """Runs a command to its end; its exit code and what it said on stderr."""
    process = start(command, directory)
    _, said = process.communicate(timeout=500)
    return process.returncode, said.decode()


def kill_sometime(command, directory, seconds, is_begun=lambda: True):
    """Kills a command so many `seconds` after its work has begun; whether it was still alive."""
    process = start(command, directory)
    try:
        while process.poll() is None and not is_begun():
            time.sleep(0.01)
        time.sleep(seconds)
        alive = process.poll() is None
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    return alive


@pytest.fixture
def directory(tmp_path):
    """A store of a tiny model, which finds masks in everything, and 60 images, of which people have labelled eight."""
    sam = dataclasses.replace(SMALLEST, pred_iou_thresh=0.0, stability_score_thresh=0.0)
    save_model(tmp_path / "model", sam, random_variables(sam))
    directory = tmp_path / "store"
    with init_store(directory, EngineConfig(hold_out=0.4), str(tmp_path / "model")) as store:
        for path in write_images(tmp_path / "images", IMAGES, SIZE):
            store.add_image(path)
        for image in list(store.images())[:LABELLED]:
            label(store, image, [rectangle(4, 4, 30, 40, SIZE), rectangle(32, 8, 56, 70, SIZE)])
    return directory


def by_people(store):
    return {mask.key: (mask.state, mask.segmentation["counts"]) for mask in store.stream_masks() if not mask.from_model}


def check(store, expected):
    """What holds after every kill."""
    assert by_people(store) == expected
    assert store.select_one("PRAGMA integrity_check")[0] == "ok"
    for image in store.images():
        (fills,) = store.select_one("SELECT count(*) FROM fills WHERE image_id = ?", image.id)
        masks = store.masks(image.id, stage=AUTOMATIC)
        assert len({mask.segmentation["counts"] for mask in masks}) == len(masks)
        if not fills:
            assert masks == []
    load_model(store.model_path(store.present()))


@pytest.mark.slow
def test_stage_3_killed_at_any_moment(directory, tmp_path):
    rng, killed, seen = random.Random(0), 0, []
    with Store(directory) as store:
        expected = by_people(store)

        def filled():
            return store.select_one("SELECT count(*) FROM fills")[0]

        for _ in range(KILLS):
            begin = filled()
            killed += kill_sometime(AUTO, directory, rng.uniform(0, 0.3), lambda begin=begin: filled() > begin)
            check(store, expected)
            seen.append(filled())
        code, said = run(AUTO, directory)
        assert code == 0, said
        check(store, expected)
        assert filled() == IMAGES - LABELLED
        assert len(list((directory / "automatic").glob("*.json"))) == IMAGES - LABELLED
        for image in list(store.images())[LABELLED:]:
            (count,) = store.select_one("SELECT masks FROM fills WHERE image_id = ?", image.id)
            assert len(store.masks(image.id, stage=AUTOMATIC)) == count
        assert len(list(store.stream_masks(stage=AUTOMATIC))) >= IMAGES - LABELLED
    print(f"\nkilled {killed} of {KILLS} times while at work; images done after each: {seen}")
    assert killed >= 3


@pytest.mark.slow
def test_a_round_of_training_killed_at_any_moment(directory):
    rng, killed, seen = random.Random(1), 0, []
    assert run(RETRAIN, directory)[0] == 0  # compiles what the others find in the cache
    began = time.monotonic()
    assert run((*RETRAIN, "--again"), directory)[0] == 0
    whole = time.monotonic() - began
    with Store(directory) as store:
        models = directory / "models"
        for number in range(KILLS):
            if not list(models.glob(".0*")):  # the round before came to its end
                label(store, next(store.images(held_out=False)), [rectangle(2, 2 + number, 30, 60, SIZE)])
            expected = by_people(store)
            killed += kill_sometime(RETRAIN, directory, whole * rng.uniform(0.3, 1.0))
            check(store, expected)
            seen.append(" ".join(sorted(path.name for path in models.iterdir() if path.is_dir())))
        code, said = run(RETRAIN, directory)
        assert code == 0 or "nothing to train on has changed" in said, said
        check(store, expected)
        names = [version.name for version in store.model_versions()]
        assert len(set(names)) == len(names)
        assert sorted(path.name for path in models.iterdir() if path.is_dir()) == names[1:]
        assert sum(version.state == PROMOTED for version in store.model_versions()) == 1
        for version in store.model_versions():
            load_model(store.model_path(version))
    print(f"\nkilled {killed} of {KILLS} times while at work; directories after each: {seen}")
    assert killed >= 3
