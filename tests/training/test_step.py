"""The training step: which masks are scored, chosen and fed back, and that it learns."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.config import InteractionConfig, LossConfig, OptimConfig, TrainConfig
from sam_jax.models.sam import Sam
from sam_jax.structs import MaskPredictions
from sam_jax.training.losses import enlarge, mask_losses
from sam_jax.training.optimizer import make_optimizer
from sam_jax.training.step import create_state, forward_with_loss, interact, train_step
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


@pytest.fixture(scope="module")
def fixed():
    """Targets, and predictions that differ in quality: a decoder of constants."""
    rng = np.random.default_rng(0)
    targets = rng.random((2, 3, 8, 8)) < 0.4
    quality = rng.permuted(np.tile([0.5, 1.0, 2.0, 4.0], (2, 3, 1)), axis=-1)
    logits = (2 * targets - 1)[:, :, None] * quality[..., None, None] + rng.standard_normal((2, 3, 4, 8, 8))
    ious = rng.random((2, 3, 4))
    return jnp.asarray(targets), MaskPredictions(*(jnp.asarray(x, jnp.float32) for x in (logits, ious)))


def test_an_ambiguous_prompt_learns_from_its_best_mask(fixed):
    targets, predictions = fixed
    loss, iou, *_ = interact(with_interaction(), lambda _: predictions, targets, KEY)
    parts = mask_losses(LossConfig(), predictions.low_res_masks, predictions.iou_predictions, targets)
    best = 1 + np.argmin(parts.mask[..., 1:], axis=-1)[..., None]
    expected = np.take_along_axis(np.asarray(parts.mask + parts.iou), best, axis=-1)[..., 0]
    assert loss.shape == iou.shape == (1, 2, 3)
    np.testing.assert_allclose(loss[0], expected, rtol=1e-6)
    # What is fed back, and reported, is the mask that the model itself holds for the best.
    chosen = 1 + np.argmax(predictions.iou_predictions[..., 1:], axis=-1)[..., None]
    np.testing.assert_allclose(iou[0], np.take_along_axis(np.asarray(parts.true_iou), chosen, axis=-1)[..., 0])
    assert (chosen != best).any()


@pytest.mark.parametrize("ambiguous", [False, True])
def test_a_box_is_one_prompt_or_ambiguous_as_configured(fixed, ambiguous):
    targets, predictions = fixed
    config = with_interaction(box_probability=1.0, box_multimask=ambiguous)
    loss, *_ = interact(config, lambda _: predictions, targets, KEY)
    points, *_ = interact(with_interaction(), lambda _: predictions, targets, KEY)
    parts = mask_losses(LossConfig(), predictions.low_res_masks, predictions.iou_predictions, targets)
    single = (parts.mask + parts.iou)[..., 0]
    np.testing.assert_allclose(loss[0], points[0] if ambiguous else single, rtol=1e-6)


def test_later_steps_get_the_best_mask_and_use_the_single_output(fixed):
    targets, predictions = fixed
    config = with_interaction(num_points=2, num_mask_only_steps=1)

    def decode(prompts):
        """Echoes the mask that it is fed, with a point's label on top to see that a point has come."""
        if prompts.mask_inputs is None:
            return predictions
        count = (prompts.point_labels >= 0).sum(axis=-1)[..., None, None, None]
        echo = prompts.mask_inputs[:, :, None] + jnp.zeros((4, 1, 1)) + 0.0 * count
        return MaskPredictions(echo, count[..., 0, 0] + jnp.zeros(4))

    loss, iou, *_ = interact(config, decode, targets, KEY)
    chosen = 1 + np.argmax(predictions.iou_predictions[..., 1:], axis=-1)[..., None, None, None]
    echoed = np.take_along_axis(np.asarray(predictions.low_res_masks), chosen, axis=2)
    assert loss.shape == (4, 2, 3)
    for step in range(1, 4):
        counts = {2: np.full((2, 3, 1), 2.0), 3: np.full((2, 3, 1), 3.0)}
        expected = [mask_losses(LossConfig(), echoed, count, targets) for count in counts.values()]
        assert any(np.allclose(loss[step], (parts.mask + parts.iou)[..., 0], rtol=1e-5) for parts in expected)
        np.testing.assert_allclose(iou[step], expected[0].true_iou[..., 0])
    np.testing.assert_allclose(loss[3], (expected[1].mask + expected[1].iou)[..., 0], rtol=1e-5)  # all points are there


def test_finer_targets_are_compared_with_enlarged_logits(fixed):
    _, predictions = fixed
    fine = jnp.asarray(np.random.default_rng(1).random((2, 3, 16, 16)) < 0.5)
    fed_back = []

    def decode(prompts):
        fed_back.append(prompts.mask_inputs)
        return predictions

    loss, *_ = interact(with_interaction(num_mask_only_steps=1), decode, fine, KEY, factor=2)
    enlarged = enlarge(predictions.low_res_masks, (16, 16))
    parts = mask_losses(LossConfig(), enlarged, predictions.iou_predictions, fine)
    np.testing.assert_allclose(loss[1], (parts.mask + parts.iou)[..., 0], rtol=1e-6)
    assert fed_back[1].shape == (2, 3, 8, 8)  # the decoder's own grid


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
    targets, predictions = fixed

    def later_loss(scale):
        def decode(prompts):
            if prompts.mask_inputs is None:
                return predictions.replace(low_res_masks=predictions.low_res_masks * scale)
            logits = jnp.broadcast_to(prompts.mask_inputs[:, :, None], predictions.low_res_masks.shape)
            return predictions.replace(low_res_masks=logits)

        return interact(with_interaction(num_mask_only_steps=1), decode, targets, KEY)[0][1].sum()

    value, slope = jax.value_and_grad(later_loss)(1.0)
    assert value > 0
    assert slope == 0


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


def test_rematerialised_interactions_have_the_same_gradients(fixed):
    targets, predictions = fixed

    def gradient(remat):
        config = dataclasses.replace(with_interaction(num_points=2, num_mask_only_steps=1), remat_interactions=remat)

        def loss(scale):
            def decode(prompts):
                masks = predictions.low_res_masks * scale
                return predictions.replace(
                    low_res_masks=masks if prompts.mask_inputs is None else masks + prompts.mask_inputs[:, :, None]
                )

            return interact(config, decode, targets, KEY)[0].sum()

        return jax.jit(jax.grad(loss))(1.5)

    assert gradient(True) != 0
    np.testing.assert_allclose(gradient(True), gradient(False), rtol=1e-5)


def test_a_tiny_model_learns_one_batch():
    """The prompts differ from step to step, the pictures do not; the loss is halved within 60 steps."""
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
