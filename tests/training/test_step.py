"""The training step: which masks are scored, chosen and fed back, and that it learns."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.config import InteractionConfig, LossConfig, OptimConfig, TrainConfig
from sam_jax.models.sam import Sam
from sam_jax.ops.planes import split_subpixels
from sam_jax.training.losses import enlarge, mask_losses
from sam_jax.training.optimizer import make_optimizer
from sam_jax.training.step import _interactions, create_state, forward_with_loss, interact, train_step
from tests.tiny import SMALLEST, random_variables

POINT_ONLY = InteractionConfig(num_points=0, num_mask_only_steps=0, box_probability=0.0)
CONFIG = TrainConfig(
    sam=SMALLEST,
    interaction=InteractionConfig(num_points=1, num_mask_only_steps=1),
    optim=OptimConfig(learning_rate=3e-3, warmup_steps=5, milestones=(), layer_decay=0.9),
)
KEY = jax.random.key(0)


def with_interaction(**changes):
    return dataclasses.replace(CONFIG, interaction=dataclasses.replace(POINT_ONLY, **changes))


def batch_of(count=2, masks=3, seed=0):
    """Noise with a brighter rectangle for each mask; the last mask is padding."""
    rng, side, low = np.random.default_rng(seed), SMALLEST.image_size, SMALLEST.image_size // 4
    targets = np.zeros((count, masks, low, low), bool)
    images = rng.integers(0, 90, (count, side, side, 3), np.uint8)
    for b, n in np.ndindex(count, masks - 1):
        y, x = rng.integers(0, low - 8, 2)
        targets[b, n, y : y + 8, x : x + 6] = True
        images[b, 4 * y : 4 * y + 32, 4 * x : 4 * x + 24] += np.uint8(80 * (n + 1))
    valid = np.tile(np.arange(masks) < masks - 1, (count, 1))
    sizes = np.tile(np.array([side, side - 10], np.int32), (count, 1))
    return {"image": images, "input_size": sizes, "masks": targets, "mask_valid": valid}


class Fixed(NamedTuple):
    """Targets, and what a decoder of constants predicts for them: logits of differing quality, IoUs of chance."""

    targets: jax.Array
    logits: jax.Array
    ious: jax.Array

    @property
    def parts(self):
        return mask_losses(LossConfig(), self.logits, self.ious, self.targets)

    def decode(self, learned, prompts, fed, num_masks):
        return split_subpixels(self.logits)[:, :, :num_masks], self.ious[..., :num_masks]

    def interact(self, config, decode=None, learned=None, weight=None):
        weight = jnp.ones(self.targets.shape[:2]) if weight is None else weight
        return interact(config, decode or self.decode, learned, self.targets, weight, KEY)


@pytest.fixture(scope="module")
def fixed():
    rng = np.random.default_rng(0)
    targets = rng.random((2, 3, 8, 12)) < 0.4
    quality = rng.permuted(np.tile([0.5, 1.0, 2.0, 4.0], (2, 3, 1)), axis=-1)
    logits = (2 * targets - 1)[:, :, None] * quality[..., None, None] + rng.standard_normal((2, 3, 4, 8, 12))
    return Fixed(jnp.asarray(targets), *(jnp.asarray(x, jnp.float32) for x in (logits, rng.random((2, 3, 4)))))


def test_an_ambiguous_prompt_learns_from_its_best_mask(fixed):
    total, scores = fixed.interact(with_interaction())
    parts = fixed.parts
    best = 1 + np.argmin(parts.mask[..., 1:], axis=-1)[..., None]
    expected = np.take_along_axis(np.asarray(parts.mask + parts.iou), best, axis=-1)[..., 0]
    assert scores.loss.shape == scores.iou.shape == (1, 2, 3)
    np.testing.assert_allclose(scores.loss[0], expected, rtol=1e-6)
    np.testing.assert_allclose(total, expected.sum(), rtol=1e-6)
    # What is fed back, and reported, is the mask that the model itself holds for the best.
    chosen = 1 + np.argmax(fixed.ious[..., 1:], axis=-1)[..., None]
    np.testing.assert_allclose(scores.iou[0], np.take_along_axis(np.asarray(parts.true_iou), chosen, axis=-1)[..., 0])
    assert (chosen != best).any()


@pytest.mark.parametrize("ambiguous", [False, True])
def test_a_box_is_one_prompt_or_ambiguous_as_configured(fixed, ambiguous):
    config = with_interaction(box_probability=1.0, box_multimask=ambiguous)
    loss = fixed.interact(config)[1].loss
    points = fixed.interact(with_interaction())[1].loss
    single = (fixed.parts.mask + fixed.parts.iou)[..., 0]
    np.testing.assert_allclose(loss[0], points[0] if ambiguous else single, rtol=1e-6)


@pytest.mark.parametrize("all_outputs", [False, True])
def test_later_steps_get_the_best_mask_and_use_the_single_output(fixed, all_outputs):
    """The other masks are not even made, unless every output is supervised."""
    config = with_interaction(num_points=2, num_mask_only_steps=1)
    config = dataclasses.replace(config, loss=LossConfig(supervise_all_outputs=all_outputs))

    def decode(learned, prompts, fed, num_masks):
        """Echoes the mask that it is fed, with the number of points as its IoU to see that a point has come."""
        if fed is None:
            return fixed.decode(learned, prompts, fed, num_masks)
        assert num_masks == (None if all_outputs else 1)
        masks = num_masks or 4
        count = (prompts.point_labels >= 0).sum(axis=-1)[..., None]
        return jnp.repeat(fed[:, :, None], masks, axis=2), count + jnp.zeros(masks)

    _, scores = fixed.interact(config, decode)
    chosen = 1 + np.argmax(fixed.ious[..., 1:], axis=-1)[..., None, None, None]
    echoed = np.take_along_axis(np.asarray(fixed.logits), chosen, axis=2)
    assert scores.loss.shape == (4, 2, 3)
    two, three = (mask_losses(LossConfig(), echoed, np.full((2, 3, 1), n), fixed.targets) for n in (2.0, 3.0))
    for step in range(1, 4):
        matches = [np.allclose(scores.loss[step], (x.mask + x.iou)[..., 0], rtol=1e-5) for x in (two, three)]
        assert any(matches)
        np.testing.assert_allclose(scores.iou[step], two.true_iou[..., 0])
    assert matches == [False, True]  # all points are there


def test_finer_targets_are_compared_with_enlarged_logits(fixed):
    fine = jnp.asarray(np.random.default_rng(1).random((2, 3, 16, 24)) < 0.5)
    config = with_interaction(num_mask_only_steps=1)
    _, scores = interact(config, fixed.decode, None, fine, jnp.ones((2, 3)), KEY, factor=2)
    parts = mask_losses(LossConfig(), enlarge(fixed.logits, (16, 24)), fixed.ious, fine)
    np.testing.assert_allclose(scores.loss[1], (parts.mask + parts.iou)[..., 0], rtol=1e-5)


@pytest.mark.slow
def test_a_whole_step_with_masks_at_full_resolution():
    model, variables, batch = Sam(SMALLEST), random_variables(SMALLEST), batch_of()
    fine = batch | {"masks": batch["masks"].repeat(4, axis=2).repeat(4, axis=3)}
    step = jax.jit(functools.partial(forward_with_loss, model, CONFIG))
    (loss, metrics), (fine_loss, fine_metrics) = (
        step(variables["params"], variables["constants"], masks, KEY) for masks in (batch, fine)
    )
    # The same prompts and the same first mask; its outline is now smooth.
    assert float(fine_metrics["iou_1"]) == pytest.approx(float(metrics["iou_1"]), abs=0.05)
    assert fine_loss != loss
    assert float(fine_loss) == pytest.approx(float(loss), rel=0.1)


def test_no_gradient_flows_through_the_fed_back_mask(fixed):
    def decode(scale, prompts, fed, num_masks):
        planes, ious = fixed.decode(None, prompts, fed, num_masks)
        return (scale * planes if fed is None else fed[:, :, None] + 0 * scale), ious

    def loss(scale, steps):
        return fixed.interact(with_interaction(num_mask_only_steps=steps), decode, scale)[0] * (1 + steps)

    (one, slope), (two, same_slope) = (jax.value_and_grad(loss)(1.0, steps) for steps in (0, 1))
    assert two > one
    assert slope != 0
    np.testing.assert_allclose(same_slope, slope, rtol=1e-6)


@pytest.mark.parametrize("sums", [False, True])
def test_gradients_taken_pass_by_pass_are_those_of_the_loss(fixed, sums):
    """Autodiff through all passes at once, of the very program that gives the value where no gradient is asked for."""
    config = with_interaction(num_points=2, num_mask_only_steps=1)
    config = dataclasses.replace(config, loss=LossConfig(sum_interactions=sums))
    weight = jnp.asarray([[0.5, 0.2, 0.0], [0.1, 0.3, 0.7]])

    def decode(learned, prompts, fed, num_masks):
        planes, ious = fixed.decode(None, prompts, fed, num_masks)
        count = (prompts.point_labels >= 0).sum(axis=-1)[..., None]
        return learned["scale"] * planes + (0 if fed is None else fed[:, :, None]), ious + learned["shift"] * count

    def plain(learned):
        return 3 * _interactions(config, decode, False, learned, fixed.targets, weight, KEY)[0]

    def ours(learned):
        return 3 * fixed.interact(config, decode, learned, weight)[0]

    learned = {"scale": jnp.float32(1.5), "shift": jnp.asarray([0.1], jnp.float32)}
    expected, gradients = jax.jit(jax.value_and_grad(plain))(learned)
    value, found = jax.jit(jax.value_and_grad(ours))(learned)
    _, scores = fixed.interact(config, decode, learned, weight)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(value, 3 * (scores.loss * weight).sum() / (1 if sums else 4), rtol=1e-5)
    for name, gradient in gradients.items():
        assert np.abs(gradient).min() > 0
        np.testing.assert_allclose(found[name], gradient, rtol=1e-5)


@functools.cache
def loss_function(config):
    return jax.jit(functools.partial(forward_with_loss, Sam(config.sam), config))


def test_padding_masks_do_not_count():
    variables, batch, loss = random_variables(SMALLEST), batch_of(), loss_function(CONFIG)
    args = variables["params"], variables["constants"]
    value, metrics = loss(*args, batch, KEY)
    assert metrics.keys() >= {"loss", "focal", "dice", "iou_error", "iou_1", "iou_2", "iou_3"}
    assert np.isfinite(list(metrics.values())).all()
    changed = batch["masks"].copy()
    changed[:, -1, 5:] = True
    np.testing.assert_allclose(loss(*args, batch | {"masks": changed}, KEY)[0], value, rtol=1e-5)
    none = batch | {"mask_valid": np.zeros_like(batch["mask_valid"])}
    assert loss(*args, none, KEY)[0] == 0


@pytest.mark.long
def test_a_tiny_model_learns_one_batch():
    """The prompts differ from step to step, the images do not; the loss is halved within 60 steps."""
    variables, batch = random_variables(SMALLEST), batch_of()
    optimizer = make_optimizer(CONFIG.optim, SMALLEST, 60)
    step = jax.jit(functools.partial(train_step, Sam(SMALLEST), CONFIG, optimizer), donate_argnums=0)
    state = create_state(jax.tree.map(jnp.asarray, variables), optimizer)
    rows = []
    for _ in range(60):
        state, metrics = step(state, batch, KEY)
        rows.append({name: float(value) for name, value in metrics.items()})
    first, last = (np.mean([row["loss"] for row in part]) for part in (rows[:4], rows[-4:]))
    assert last < first / 2
    assert np.mean([row["iou_3"] for row in rows[-4:]]) > np.mean([row["iou_3"] for row in rows[:4]]) + 0.1
    assert int(state.step) == 60
    assert all(np.isfinite(row["grad_norm"]) for row in rows)
    matrices = (jax.tree.leaves(tree) for tree in (state.constants, variables["constants"]))
    np.testing.assert_array_equal(*(matrix for (matrix,) in matrices))  # never trained, never decayed
