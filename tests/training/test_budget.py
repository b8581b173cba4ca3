"""Training by the clock: schedules, stages, marks and continuations follow from the share of the time that is used."""

import dataclasses
import functools
import itertools
import json

import jax
import numpy as np
import pytest

from sam_jax import sharding
from sam_jax.checkpoint import load_config
from sam_jax.config import (
    CompositeDataConfig,
    InteractionConfig,
    OptimConfig,
    StageConfig,
    TrainConfig,
)
from sam_jax.training import budget, loop
from sam_jax.training.interruption import Interrupted, Interruption
from sam_jax.training.optimizer import learning_rate_by_clock, make_optimizer
from sam_jax.training.programs import StepPrograms
from tests.tiny import SMALLEST, TINY
from tests.tiny_pool import write_pool

CONFIG = TrainConfig(
    sam=SMALLEST,
    stages=(StageConfig(48, 2, 2, num_steps=30), StageConfig(64, 2, 2, num_steps=10)),
    interaction=InteractionConfig(num_points=0, num_mask_only_steps=0),
    optim=OptimConfig(learning_rate=1e-3, warmup_steps=2, cosine=True),
    minutes=10.0,
    log_every=1,
)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands at `now[0]` seconds."""
    now = [1000.0]
    monkeypatch.setattr(budget, "_now", lambda: now[0])
    return now


def test_the_share_begins_after_compiling_and_ends_with_time_to_write(clock):
    found = budget.open_budget(CONFIG)
    clock[0] += 100  # compiling
    assert found.share() == 0
    found.start()
    clock[0] += 244  # of 488 that are left for training: 600 - 100 - 2 % of 600
    np.testing.assert_allclose(found.share(), 0.5, atol=1e-6)
    assert found.is_left(0, 30)
    assert found.passed_mark() == 0.5
    assert found.passed_mark() is None
    clock[0] += 123
    assert not found.is_left(0, 30)
    assert found.is_left(0, 40)
    assert found.passed_mark() == 0.7
    clock[0] += 121.1
    assert found.share() == 1
    assert not found.is_left(10**9, 40)


def test_a_continuation_has_what_is_left(clock):
    found = budget.open_budget(CONFIG)
    state = TrainStateLike((None, ClockLike(np.float32(0.75))))
    found.restore(state)
    assert found.passed_mark() is None  # it was written before
    found.start()
    clock[0] += 69  # half of 150 - 12
    np.testing.assert_allclose(found.share(), 0.875, atol=1e-6)
    assert found.passed_mark() == 0.85


@dataclasses.dataclass
class TrainStateLike:
    opt_state: tuple


@dataclasses.dataclass
class ClockLike:
    share: np.float32


def test_the_rate_warms_up_by_steps_and_decays_by_the_clock():
    rate = learning_rate_by_clock(OptimConfig(learning_rate=2.0, warmup_steps=4, cosine=True))
    np.testing.assert_allclose([rate(step, 0.0) for step in (0, 1, 3, 9)], [0.5, 1, 2, 2])
    np.testing.assert_allclose([rate(9, share) for share in (0.25, 0.5, 1.0)], [1 + 0.5**0.5, 1, 0], atol=1e-6)
    steps = learning_rate_by_clock(OptimConfig(learning_rate=1.0, warmup_steps=0, milestones=(0.5, 0.9)))
    np.testing.assert_allclose([steps(0, share) for share in (0.4, 0.5, 0.95)], [1, 0.1, 0.01], rtol=1e-5)


def test_an_optimizer_by_the_clock_moves_by_the_rate_of_the_share():
    params = {"mask_decoder": {"lin": {"bias": np.ones(3, np.float32)}}}
    config = OptimConfig(learning_rate=1.0, warmup_steps=1, cosine=True, layer_decay=1.0)
    optimizer = make_optimizer(config, TINY, None)
    state = optimizer.init(params)
    updates, state = optimizer.update(params, state, params, share=np.float32(0.5))
    np.testing.assert_allclose(updates["mask_decoder"]["lin"]["bias"], -0.5, rtol=1e-4)
    assert (int(state[-1].step), float(state[-1].share)) == (1, 0.5)


def rows_of(workdir):
    rows = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


@pytest.fixture
def config(tmp_path, monkeypatch):
    one_chip = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", one_chip)
    (tmp_path / "pool").mkdir()
    data = CompositeDataConfig(str(write_pool(tmp_path / "pool")), num_workers=1, reuse=50)
    return dataclasses.replace(CONFIG, data=data, minutes=1.0, workdir=str(tmp_path / "run"))


@pytest.mark.slow
def test_a_run_by_the_clock_stops_goes_on_and_ends_in_time(config, tmp_path, monkeypatch):
    """Two stages of two sizes, of examples that a process makes and that are used again; stopped in the first."""
    seconds = itertools.count(0, 0.2)  # between two looks at the clock, however busy this machine is
    monkeypatch.setattr(budget, "_now", lambda: next(seconds))
    monkeypatch.setattr(StepPrograms, "is_ready", lambda *_: True)  # then `of` waits, and the clock stands still
    monkeypatch.setattr(Interruption, "requested", lambda _, step: step == 5)
    with pytest.raises(Interrupted, match=r"stopped at step 5 at \d+\.\d% of 1 minutes; run the same command"):
        loop.train(config)
    assert not (tmp_path / "run" / "model").exists()
    monkeypatch.setattr(Interruption, "requested", lambda *_: False)
    before = next(seconds)
    model = loop.train(config)
    assert next(seconds) - before < 60
    assert load_config(model) == SMALLEST
    rows = rows_of(tmp_path / "run")
    assert len(rows) > 15
    rates = [row["learning_rate"] for row in rows[5:]]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.02 * max(rates)
    said = (tmp_path / "run" / "logs" / "host_0.log").read_text()
    assert "the step at 64 px was compiled meanwhile" in said
    assert "examples are new ones" in said
    assert f"trained for {rows[-1]['step']} steps, at 100.0% of 1 minutes" in said
    snapshots = sorted(path.name for path in (tmp_path / "run").glob("snapshot_*"))
    assert snapshots == ["snapshot_50", "snapshot_70", "snapshot_85"]
    assert load_config(tmp_path / "run" / "snapshot_85") == SMALLEST


def test_minutes_are_for_one_host(config, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match=r"minutes 1\.0 is for one host"):
        loop.train(config)
