"""Training from the command line to the model directory, and again after an interruption."""

import json
import re
import runpy
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from sam_jax.checkpoint import load_config, load_model
from sam_jax.training import loop
from tests.tiny import SMALLEST
from tests.tiny_pool import write_pool

ROOT = Path(__file__).parents[2]
CONFIG_FILE = """
from sam_jax.config import *
from tests.tiny import SMALLEST

def get_config():
    return TrainConfig(
        sam=SMALLEST,
        stages=(StageConfig(48, 2, 2, num_steps=3), StageConfig(48, 2, 2, num_steps=1)),
        data=CompositeDataConfig(pool={pool!r}),
        interaction=InteractionConfig(num_points=1, num_mask_only_steps=0),
        checkpoint_every=2,
        log_every=1,
        remat_interactions=False,
    )
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    root = tmp_path_factory.mktemp("training")
    file = root / "tiny_experiment.py"
    file.write_text(CONFIG_FILE.format(pool=str(write_pool(root))))
    return file


def train(monkeypatch, *args):
    """Runs train.py as the command line does; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["train.py", *map(str, args)])
    try:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    except SystemExit as stop:
        return stop.code
    raise AssertionError("train.py did not exit")


def rows_of(workdir):
    return [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]


def variables_of(workdir):
    return jax.tree.leaves(load_model(workdir / "model")[1])


def test_train_writes_a_model_and_a_killed_run_ends_the_same(config_file, tmp_path, monkeypatch, capsys):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train(monkeypatch, config_file, "--workdir", whole) == 0
    assert f"model written to {whole / 'model'}" in capsys.readouterr().out
    assert [row["step"] for row in rows_of(whole)] == [1, 2, 3, 4]
    assert np.isfinite([row["loss"] for row in rows_of(whole)]).all()
    assert load_config(whole / "model") == SMALLEST

    with monkeypatch.context() as patch:
        patch.setattr(loop, "make_batches", _ends_after(3, loop.make_batches))
        with pytest.raises(KeyboardInterrupt):
            train(patch, config_file, "--workdir", broken)
    assert not (broken / "model").exists()
    assert [row["step"] for row in rows_of(broken)] == [1, 2, 3]

    assert train(monkeypatch, config_file, "--workdir", broken) == 0
    assert [row["step"] for row in rows_of(broken)] == [1, 2, 3, 3, 4]  # from the checkpoint at step 2
    assert [row["loss"] for row in rows_of(broken)[3:]] == [row["loss"] for row in rows_of(whole)[2:]]
    for one, other in zip(variables_of(whole), variables_of(broken), strict=True):
        np.testing.assert_array_equal(one, other)

    before = rows_of(whole)
    assert train(monkeypatch, config_file, "--workdir", whole) == 0  # finished already
    assert rows_of(whole) == before


def _ends_after(steps, make_batches):
    """A make_batches that breaks the run off when it asks for one batch more than `steps`, over all stages."""
    left = iter(range(steps))

    def broken(*args):
        for batch in make_batches(*args):
            if next(left, None) is None:
                raise KeyboardInterrupt
            yield batch

    return broken


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere.py"], "config file nowhere.py does not exist"),
        (["{empty}"], "has no get_config"),
        (["{config}", "--workdir", "{tmp}/run", "--data.pool", "{tmp}/none"], "no cut-out pool at .*cutout_pool build"),
        (["{config}", "--workdir", "{tmp}/run", "--init-from", "{tmp}/none"], "{tmp}/none does not exist"),
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


def test_a_misspelt_option_is_an_error(config_file, monkeypatch, capsys):
    assert train(monkeypatch, config_file, "--optim.learning-rat", "1") == 2
    assert "learning-rate" in capsys.readouterr().err
