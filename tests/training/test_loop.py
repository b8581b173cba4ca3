"""Training from the command line to the model directory: on SA-1B tars, through evaluation, and whatever stops it."""

import functools
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from sam_jax import sharding
from sam_jax.checkpoint import load_config, load_model
from sam_jax.inference.predictor import SamPredictor
from sam_jax.training import loop
from tests.tiny import SMALLEST
from tests.tiny_pool import write_pool
from tests.tiny_sa1b import write_tar

ROOT = Path(__file__).parents[2]
CONFIG_FILE = """
from sam_jax.config import *
from tests.tiny import SMALLEST

def get_config():
    return TrainConfig(
        sam=SMALLEST,
        stages=(StageConfig(48, 8, 2, num_steps=5), StageConfig(48, 8, 2, num_steps=2, num_points=0)),
        data={data},
        interaction=InteractionConfig(num_points=1, num_mask_only_steps=1),
        optim=OptimConfig(optimizer="muon", learning_rate=1e-3, warmup_steps=2),
        checkpoint_every=2,
        eval_every=3,
        eval_images=4,
        overlay_every=4,
        log_every=1,
    )
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def config_file(root):
    """A tiny experiment on SA-1B tars."""
    write_tar(root / "sa_000000.tar", 20)
    file = root / "tiny_experiment.py"
    file.write_text(CONFIG_FILE.format(data=f"RecordDataConfig({str(root)!r}, hold_out=0.3)"))
    return file


@pytest.fixture(scope="module")
def composite_file(root):
    """The same on composites."""
    (root / "pool").mkdir()
    file = root / "composite_experiment.py"
    file.write_text(CONFIG_FILE.format(data=f"CompositeDataConfig(pool={str(write_pool(root / 'pool'))!r})"))
    return file


def train(monkeypatch, *args):
    """Runs train.py as the command line does; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, args)])
    try:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    except SystemExit as stop:
        return stop.code


def rows_of(workdir, kind="loss"):
    rows = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if kind in row]


def variables_of(workdir):
    return jax.tree.leaves(load_model(workdir / "model")[1])


def same_curve(one, other):
    def without_timings(rows):
        return [{name: row[name] for name in row.keys() - {"images_per_s", "data_wait"}} for row in rows]

    assert without_timings(one) == without_timings(other)


@pytest.fixture(scope="module")
def whole(config_file, root):
    """The workdir of an uninterrupted run."""
    with pytest.MonkeyPatch.context() as patch:
        assert train(patch, config_file, "--workdir", root / "whole") == 0
    return root / "whole"


@pytest.mark.long
def test_a_run_leaves_a_model_metrics_overlays_and_logs(whole, config_file, monkeypatch, capsys):
    rows = rows_of(whole)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    expected = {
        "loss",
        "focal",
        "dice",
        "iou_error",
        "iou_1",
        "learning_rate",
        "grad_norm",
        "images_per_s",
        "data_wait",
    }
    assert expected | {"iou_3"} <= rows[0].keys()
    assert expected | {"iou_2"} <= rows[-1].keys()
    assert rows[-1]["learning_rate"] < rows[1]["learning_rate"]
    assert [row["step"] for row in rows_of(whole, "eval_loss")] == [3, 6]
    assert {path.name for path in (whole / "overlays").iterdir()} == {"step_0000004.png"}
    assert list((whole / "tensorboard").iterdir())
    assert "held-out mIoU by interaction" in (whole / "logs" / "host_0.log").read_text()
    assert load_config(whole / "model") == SMALLEST
    assert load_config(whole / "best") == SMALLEST
    capsys.readouterr()
    assert train(monkeypatch, config_file, "--workdir", whole) == 0  # finished already
    assert rows_of(whole) == rows


@pytest.mark.slow
def test_evaluation_alone(whole, config_file, monkeypatch, capsys):
    before = len(rows_of(whole, "eval_loss"))
    assert train(monkeypatch, config_file, "--workdir", whole, "--eval-only") == 0
    assert "evaluation is in" in capsys.readouterr().out
    rows = rows_of(whole, "eval_loss")
    assert len(rows) == before + 1
    assert 0 <= rows[-1]["eval_iou_1"] <= 1


@pytest.mark.slow  # the recipe that has them is started among the long ones
def test_a_model_with_details_trains_and_finds_masks(composite_file, root, monkeypatch):
    options = "--sam.details", 4, "--loss.affinity-weight", 1.0, "--eval-every", 0, "--overlay-every", 0
    assert train(monkeypatch, composite_file, "--workdir", root / "details", *options) == 0
    rows = rows_of(root / "details")
    assert np.isfinite([[row["loss"], row["affinity"]] for row in rows]).all()
    model, variables = load_model(root / "details" / "model")
    assert model.config.details == 4
    second = variables["params"]["image_encoder"]["details_to_pixels"]["second"]["kernel"]
    assert np.abs(second).max() > 0  # zero before training
    predictor = SamPredictor(model, variables)
    predictor.set_image(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8))
    masks, ious, _ = predictor.predict(box=np.array([10, 10, 50, 40]))
    assert (masks.shape, ious.shape) == ((3, 60, 90), (3,))


@pytest.mark.slow
def test_processes_that_make_composites_change_no_step(composite_file, root, monkeypatch):
    """The curve and the weights of a run are the same bit by bit with two of them and with none."""
    one_chip = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", one_chip)
    alone, helped = root / "without_workers", root / "with_workers"
    for workdir, workers in ((alone, 0), (helped, 2)):
        options = "--data.num-workers", workers, "--eval-every", 0, "--overlay-every", 0
        assert train(monkeypatch, composite_file, "--workdir", workdir, *options) == 0
    same_curve(rows_of(alone), rows_of(helped))
    for one, other in zip(variables_of(alone), variables_of(helped), strict=True):
        np.testing.assert_array_equal(one, other)


def command(config_file, workdir, *args):
    """train.py as a process of its own."""
    env = dict(os.environ, PYTHONPATH=str(ROOT), JAX_DISABLE_MOST_OPTIMIZATIONS="1", JAX_PLATFORMS="cpu")
    arguments = [sys.executable, "train.py", str(config_file), "--workdir", str(workdir), *map(str, args)]
    return {"args": arguments, "cwd": ROOT, "env": env, "stderr": subprocess.PIPE, "text": True}


def wait_for_rows(process, workdir, count):
    while not (workdir / "log.jsonl").exists() or len(rows_of(workdir)) < count:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


@pytest.mark.long
def test_a_killed_and_a_preempted_run_end_like_one_that_was_not(whole, config_file, root):
    """SIGKILL at a random step, then SIGTERM, then to the end: the curve of a run without stops, bit for bit.

    Its optimizer is Muon, whose state has Adam's in it.
    """
    stopped = root / "stopped"
    steps = int(np.random.default_rng().integers(1, 5))
    process = subprocess.Popen(**command(config_file, stopped))
    wait_for_rows(process, stopped, steps)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (stopped / "model").exists()

    process = subprocess.Popen(**command(config_file, stopped))
    while (stopped / "logs" / "host_0.log").read_text().count("of 7 on {") < 2:  # it has started again
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    errors = process.communicate()[1]
    if process.returncode != 0:  # 0: it was done before the signal came
        assert process.returncode == 75, errors
        assert "run the same command to go on" in errors
        assert subprocess.run(**command(config_file, stopped)).returncode == 0

    same_curve(rows_of(whole), rows_of(stopped))
    same_curve(rows_of(whole, "eval_loss")[:2], rows_of(stopped, "eval_loss"))  # others may have been evaluated since
    for one, other in zip(variables_of(whole), variables_of(stopped), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_what_was_stopped_before_its_evaluation_is_evaluated_first(whole, config_file, root, monkeypatch):
    """The checkpoint is there before evaluation; a profile begins with the first step that is still to come."""

    class Killed(Exception):
        pass

    def kill(_):
        raise Killed

    def scores(workdir):
        return json.loads((workdir / "state" / "scores.json").read_text())

    workdir = root / "unevaluated"
    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_evaluate", kill)
        with pytest.raises(Killed):
            train(patch, config_file, "--workdir", workdir)
    assert [row["step"] for row in rows_of(workdir)] == [1, 2, 3]
    assert not (workdir / "state" / "scores.json").exists()
    assert train(monkeypatch, config_file, "--workdir", workdir, "--profile-steps", 2, 5) == 0
    same_curve(rows_of(workdir), rows_of(whole))
    same_curve(rows_of(workdir, "eval_loss"), rows_of(whole, "eval_loss")[:2])  # others may have been evaluated since
    assert scores(workdir) == scores(whole)
    assert "profile of steps 3 to 5 is in" in (workdir / "logs" / "host_0.log").read_text()
    assert list((workdir / "profile").rglob("*.xplane.pb"))


@pytest.mark.slow
def test_a_broken_loss_stops_the_run(config_file, root, monkeypatch, capsys):
    make_batches = loop.make_batches

    def poisoned(*args):
        for step, batch in enumerate(make_batches(*args)):
            if step == 4:
                batch["input_size"] = batch["input_size"] + np.int32(1 << 30)
                batch["masks"] = batch["masks"].astype(np.float32) * np.float32(np.nan)
            yield batch

    monkeypatch.setattr(loop, "make_batches", poisoned)
    assert train(monkeypatch, config_file, "--workdir", root / "broken", "--log-every", 100) == 3
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(r"loss nan.* at step 5; the last good checkpoint is step 4", message)
    assert "image ids of this host's batch: [" in (root / "broken" / "logs" / "host_0.log").read_text()
    assert not (root / "broken" / "model").exists()


@pytest.mark.long
def test_another_config_is_an_error_that_shows_the_difference(whole, config_file, root, monkeypatch, capsys):
    (root / "copy" / "state" / "2").mkdir(parents=True)
    (root / "copy" / "config.json").write_bytes((whole / "config.json").read_bytes())
    assert train(monkeypatch, config_file, "--workdir", root / "copy", "--optim.learning-rate", "0.5") == 2
    assert "optim.learning_rate: 0.001 -> 0.5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere.py"], "config file nowhere.py does not exist"),
        (["{empty}"], "has no get_config"),
        (["{config}", "--workdir", "{tmp}/run", "--data.path", "{tmp}/none"], "{tmp}/none"),
        (["{config}", "--workdir", "{tmp}/run", "--init-from", "{tmp}/none"], "{tmp}/none does not exist"),
        (["{config}", "--workdir", "{tmp}/run", "--mesh.fsdp", "3"], "8 devices cannot form a mesh"),
        (
            ["{config}", "--workdir", "{tmp}/run", "--accumulate", "8"],
            "batch_size 8 does not divide over 8 devices x 8",
        ),
        (
            ["{config}", "--workdir", "{tmp}/run", "--profile-steps", "5", "9"],
            "profile_steps 5 9 end after the run's last step, 7",
        ),
        (["{config}", "--workdir", "{tmp}/run", "--data.hold-out", "0"], "leaves no held-out image .* eval_every"),
        (["{config}", "--workdir", "{tmp}/run", "--finetune.frozen", "encoder"], "'encoder' matches no parameter"),
        (["{config}", "--workdir", "{tmp}/run", "--finetune.embedding-cache", "x"], "needs a frozen image encoder"),
    ],
)
def test_a_wrong_command_line_is_one_line(config_file, tmp_path, monkeypatch, capsys, args, message):
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1\n")
    names = {"config": config_file, "tmp": tmp_path, "empty": empty}
    assert train(monkeypatch, *(arg.format(**names) for arg in args)) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("train.py: ")
    assert re.search(message.format(**names), error)


def test_a_missing_pool_says_how_to_make_one(composite_file, tmp_path, monkeypatch, capsys):
    args = [composite_file, "--workdir", tmp_path / "run", "--data.pool", tmp_path / "none"]
    assert train(monkeypatch, *args) == 2
    assert re.search("no cut-out pool at .*sam-jax data pool", capsys.readouterr().err)


def test_a_misspelt_option_is_an_error(config_file, monkeypatch, capsys):
    assert train(monkeypatch, config_file, "--optim.learning-rat", "1") == 2
    assert "learning-rate" in capsys.readouterr().err


def test_a_second_start_does_not_compile_again(config_file, tmp_path, monkeypatch):
    kept = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    try:
        assert train(monkeypatch, config_file, "--workdir", tmp_path / "run", "--mesh.fsdp", 3) == 2
        assert jax.config.jax_compilation_cache_dir == str(tmp_path / "cache" / "sam_jax" / "jit")
    finally:
        jax.config.update("jax_compilation_cache_dir", kept[0])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", kept[1])
