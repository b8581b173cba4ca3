"""Meshes and placements, and that a training run does not depend on them."""

import collections
import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax.experimental.layout import Format
from jax.sharding import PartitionSpec

from sam_jax import sharding
from sam_jax.checkpoint import load_model, save_model
from sam_jax.config import InteractionConfig, MeshConfig, OptimConfig, TrainConfig
from sam_jax.models.sam import Sam
from sam_jax.training.optimizer import make_optimizer
from sam_jax.training.placement import abstract_state, initial_state
from sam_jax.training.step import train_step
from tests.tiny import SMALLEST, random_variables

CONFIG = TrainConfig(
    sam=SMALLEST,
    interaction=InteractionConfig(num_points=1, num_mask_only_steps=1),
    # Low, since thresholds and Adam's first steps enlarge rounding errors; high enough to see wrong updates.
    optim=OptimConfig(learning_rate=3e-5, warmup_steps=2, milestones=()),
)
STEPS = 20


def batches():
    rng, side = np.random.default_rng(0), SMALLEST.image_size
    y, x = np.mgrid[:20, :20]
    for _ in range(STEPS):
        centre = rng.uniform(4, 16, (8, 2, 2, 1, 1))
        masks = np.hypot(y - centre[:, :, 0], x - centre[:, :, 1]) < 4
        yield {
            "image": rng.integers(0, 255, (8, side, side, 3), np.uint8),
            "input_size": np.full((8, 2), side, np.int32),
            "masks": masks,
            "mask_valid": np.tile([True, False], (8, 1)) | (rng.random((8, 2)) < 0.5),
        }


def curve(data, fsdp, devices, **changes):
    """Losses of 20 steps on a mesh."""
    config = dataclasses.replace(CONFIG, mesh=MeshConfig(data, fsdp), **changes)
    mesh = sharding.make_mesh(data, fsdp, jax.devices()[:devices])
    model, optimizer = Sam(SMALLEST), make_optimizer(config.optim, SMALLEST, STEPS)
    state = initial_state(config, model, optimizer, mesh)
    split = [x for x in jax.tree.leaves(state) if not x.sharding.is_fully_replicated]
    assert bool(split) == (fsdp > 1)
    placed = jax.tree.map(lambda x: x.sharding, state), sharding.replicated(mesh)
    step = jax.jit(functools.partial(train_step, model, config, optimizer), donate_argnums=0, out_shardings=placed)
    losses = []
    for batch in batches():
        state, metrics = step(state, sharding.to_global(mesh, batch), jax.random.key(9))
        losses.append(float(metrics["loss"]))
    return np.array(losses)


@pytest.fixture(scope="module")
def one_device():
    return curve(1, 1, 1)


@pytest.fixture(scope="module")
def untrained():
    return curve(1, 1, 1, optim=dataclasses.replace(CONFIG.optim, learning_rate=0.0))


MESHES = [
    pytest.param(8, 1, marks=pytest.mark.slow),
    pytest.param(1, 8, marks=pytest.mark.slow),
    pytest.param(-1, 4, marks=pytest.mark.long),
]


@pytest.mark.parametrize(("data", "fsdp"), MESHES)
def test_any_mesh_gives_the_curve_of_one_device(data, fsdp, one_device, untrained, monkeypatch):
    monkeypatch.setattr(sharding, "MIN_SPLIT_ELEMENTS", 64)
    assert np.abs(one_device - untrained)[5:].min() > 1e-3  # what wrong updates could do
    # Of the draws tried, one under which no logit that decides a mask's IoU lies within rounding of 0.
    np.testing.assert_allclose(curve(data, fsdp, 8), one_device, atol=1e-5)


@pytest.mark.slow
def test_muon_gives_one_curve_too(one_device, untrained, monkeypatch):
    muon = {"optim": dataclasses.replace(CONFIG.optim, optimizer="muon")}
    monkeypatch.setattr(sharding, "MIN_SPLIT_ELEMENTS", 64)
    alone = curve(1, 1, 1, **muon)
    assert np.abs(alone - untrained)[5:].min() > 1e-3
    assert np.abs(alone - one_device)[5:].max() > 1e-3
    np.testing.assert_allclose(curve(2, 4, 8, **muon), alone, atol=1e-4)


@pytest.mark.long
def test_accumulated_pieces_learn_the_same(one_device):
    """Prompts are drawn anew for each piece, so that the curves differ a little."""
    pieces = curve(1, 1, 1, accumulate=4)
    assert abs(pieces.mean() - one_device.mean()) < 0.1 * one_device.mean()


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A model directory, and its variables."""
    path, variables = tmp_path_factory.mktemp("models") / "small", random_variables(SMALLEST)
    save_model(path, SMALLEST, variables)
    return path, variables


@pytest.fixture
def given(monkeypatch):
    """How many numbers orbax has given to each device."""
    device_put, given = jax.device_put, collections.Counter()

    def watched(x, where=None, **options):
        if isinstance(where, Format):  # as orbax has it
            for device in where.sharding.device_set:
                given[device] += x.size
        return device_put(x, where, **options)

    monkeypatch.setattr(jax, "device_put", watched)
    return given


def test_a_model_is_read_straight_into_its_shardings(stored, given, monkeypatch):
    """No device is ever given more than its share: all of the small leaves, a quarter of the others."""
    path, variables = stored
    monkeypatch.setattr(sharding, "MIN_SPLIT_ELEMENTS", 64)
    mesh = sharding.make_mesh(2, 4)
    _, loaded = load_model(path, shardings=functools.partial(sharding.tree_shardings, mesh))
    shardings, share = jax.tree.leaves(sharding.tree_shardings(mesh, variables)), 0
    for x, where, value in zip(jax.tree.leaves(loaded), shardings, jax.tree.leaves(variables), strict=True):
        assert x.sharding == where
        np.testing.assert_array_equal(x, value)
        share += x.size if where.is_fully_replicated else x.size // 4
    assert share < sum(x.size for x in jax.tree.leaves(variables)) / 3
    assert given == dict.fromkeys(jax.devices(), share)


def test_a_run_starts_from_a_model_in_pieces(stored, given, monkeypatch):
    """The state that `init_from` gives is split as a fresh one is, and no device was given all of a large leaf."""
    path, variables = stored
    monkeypatch.setattr(sharding, "MIN_SPLIT_ELEMENTS", 64)
    config, mesh = dataclasses.replace(CONFIG, init_from=str(path)), sharding.make_mesh(2, 4)
    model, optimizer = Sam(SMALLEST), make_optimizer(CONFIG.optim, SMALLEST, STEPS)
    state = initial_state(config, model, optimizer, mesh)
    shapes = abstract_state(config, model, optimizer, mesh)
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(lambda x: x.sharding, shapes)
    jax.tree.map(np.testing.assert_array_equal, state.params, variables["params"])
    assert set(given) == set(jax.devices())
    assert max(given.values()) < sum(x.size for x in jax.tree.leaves(variables)) / 3


def test_make_mesh_names_what_does_not_divide():
    assert dict(sharding.make_mesh().shape) == {"data": 8, "fsdp": 1}
    assert dict(sharding.make_mesh(2, 4).shape) == {"data": 2, "fsdp": 4}
    for data, fsdp in ((3, 1), (-1, 3), (2, 2)):
        with pytest.raises(ValueError, match="8 devices cannot form a mesh"):
            sharding.make_mesh(data, fsdp)


def test_rules_come_first_then_the_largest_axis_that_divides():
    mesh = sharding.make_mesh(2, 4)
    tree = {"a": {"kernel": np.zeros((128, 512))}, "table": np.zeros((401, 128)), "bias": np.zeros(512)}
    found = sharding.tree_shardings(mesh, tree, rules=[("table", PartitionSpec())])
    assert found["a"]["kernel"].spec == PartitionSpec(None, "fsdp")
    assert found["table"].spec == PartitionSpec()
    assert found["bias"].spec == PartitionSpec()  # too small to be worth it
    assert sharding.tree_shardings(mesh, tree)["table"].spec == PartitionSpec(None, "fsdp")
    with pytest.raises(ValueError, match="nothing"):
        sharding.tree_shardings(mesh, tree, rules=[("nothing", PartitionSpec())])


def test_check_batch():
    mesh = sharding.make_mesh(2, 4)
    sharding.check_batch(mesh, 16, 2)
    with pytest.raises(ValueError, match="multiple of 16"):
        sharding.check_batch(mesh, 8, 2)
