"""Loss and gradients of a whole training step against PyTorch: `pytest -m oracle`.

The loss is stated once more in torch, from the SAM paper, appendix A, on top of the official modules. Only what chance
decides comes from the JAX side: the prompts, which hold the fed-back logits as well, are recorded interaction by
interaction as the compiled step decodes them.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from sam_jax.config import MaskDecoderConfig, PromptEncoderConfig, TrainConfig
from sam_jax.convert.rules import official_key
from sam_jax.convert.torch_to_flax import to_variables
from sam_jax.models.sam import Sam
from sam_jax.ops.planes import join_subpixels
from sam_jax.training import step
from tests.tiny import SMALLEST, TINY

pytestmark = pytest.mark.oracle

# A mask prompt's first LayerNorm has a quarter of these channels; over two of them it is nearly a sign, whose gradient
# is rounding.
PROMPT_ENCODER = PromptEncoderConfig(mask_in_chans=16)
NARROW = dataclasses.replace(TINY, prompt_encoder=PROMPT_ENCODER)
# Wide enough that the decoder folds projections of pixels into its 17 tokens, which the narrow one does not.
WIDE = dataclasses.replace(
    SMALLEST,
    prompt_encoder=PROMPT_ENCODER,
    mask_decoder=MaskDecoderConfig(num_heads=2, mlp_dim=48, iou_head_hidden_dim=24),
    prompt_embed_dim=80,
)
CASES = {"narrow": TrainConfig(sam=NARROW), "wide": TrainConfig(sam=WIDE)}
# Of the weights: each of the three masks then fits some point's object best, so that all have gradients.
SEEDS = {"narrow": 30, "wide": 14}
# Objects in two images that leave a part of the frame free; the masks after the last object are padding.
INPUT_SIZES = np.array([[80, 63], [50, 80]], np.int32)
MASK_VALID = np.arange(7) < np.array([[6], [5]])


class Interaction(NamedTuple):
    """What the decoder got and gave: prompts (B, N, ...) and the logits (B, N, M, h, w), M = 1 after the first pass."""

    prompts: Any
    logits: np.ndarray


class Step(NamedTuple):
    """One step from both sides. Gradients by official key, in torch's layout."""

    loss: float
    gradients: dict[str, np.ndarray]
    interactions: list[Interaction]
    official: Any


def make_batch(seed=1):
    """Images of noise with objects of all sizes."""
    rng, size = np.random.default_rng(seed), TINY.image_size
    masks = np.zeros((*MASK_VALID.shape, size // 4, size // 4), bool)
    batch = {"image": np.zeros((2, size, size, 3), np.uint8), "masks": masks}
    for b, (h, w) in enumerate(INPUT_SIZES):
        batch["image"][b, :h, :w] = rng.integers(0, 256, (h, w, 3))
        for n in range(MASK_VALID[b].sum()):
            (y0, y1), (x0, x1) = (np.sort(rng.permutation(side // 4 + 1)[:2]) for side in (h, w))
            masks[b, n, y0:y1, x0:x1] = rng.random((y1 - y0, x1 - x0)) < 0.8
    return batch | {"input_size": INPUT_SIZES, "mask_valid": MASK_VALID}


@functools.cache
def jax_step(name):
    """Runs `forward_with_loss` and its gradient as training does, and listens to the decoder."""
    from tests.oracle import build_official

    config = CASES[name]
    official = build_official(config.sam, SEEDS[name])
    variables = to_variables(config.sam, dict(official.state_dict()))
    recorded = []

    def record(prompts, logits):
        recorded.append(Interaction(jax.tree.map(np.asarray, prompts), np.asarray(logits)))

    def interact(config, decode, learned, targets, *rest):
        grid = (targets.shape[2] // 4, targets.shape[3] // 4)

        def listened_to(learned, prompts, fed, num_masks):
            planes, ious = decode(learned, prompts, fed, num_masks)
            masks = None if fed is None else join_subpixels(fed, grid)
            jax.debug.callback(record, prompts.replace(mask_inputs=masks), join_subpixels(planes, grid), ordered=True)
            return planes, ious

        return original(config, listened_to, learned, targets, *rest)

    original, step.interact = step.interact, interact
    try:
        loss_fn = functools.partial(step.forward_with_loss, Sam(config.sam), config)
        both = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
        (loss, _), gradients = both(variables["params"], variables["constants"], make_batch(), jax.random.key(1))
        jax.effects_barrier()
    finally:
        step.interact = original
    named = {}
    for path, gradient in flatten_dict(gradients, sep="/").items():
        key, axes = official_key(path)
        named[key] = np.asarray(gradient if axes is None else gradient.transpose(np.argsort(axes)))
    return Step(float(loss), named, recorded, official)


def official_masks(official, embedding, prompts, chosen, has_box):
    """All four masks (n, 4, h, w) and predicted IoUs (n, 4) of the chosen prompts of one image.

    Args:
      embedding: (1, C, h, w).
      prompts: of that image, without the batch axis.
      chosen: indices of prompts that begin alike: all with a box, or all without.
    """
    import torch

    def tensor(array):
        return torch.from_numpy(array[chosen].copy())

    labels = tensor(prompts.point_labels)
    given = labels[0] >= 0
    assert ((labels >= 0) == given).all(), "prompts that begin alike have as many points"
    points = (tensor(prompts.point_coords)[:, given], labels[:, given]) if given.any() else None
    boxes = tensor(prompts.boxes) if has_box else None  # the official code pads points only where boxes is None
    masks = tensor(prompts.mask_inputs)[:, None] if prompts.mask_inputs is not None else None
    sparse, dense = official.prompt_encoder(points, boxes, masks)
    return official.mask_decoder.predict_masks(embedding, official.prompt_encoder.get_dense_pe(), sparse, dense)


def torch_losses(logits, ious, recorded_logits, targets):
    """20 focal + dice of each mask (n, 4), and the squared error of its predicted IoU (n, 4)."""
    import torch

    p, t = torch.sigmoid(logits), targets.float()[:, None].expand_as(logits)
    true_p = torch.where(t == 1, p, 1 - p)
    alpha = torch.where(t == 1, 0.25, 0.75)
    focal = (-alpha * (1 - true_p) ** 2 * torch.log(true_p)).mean(dim=(2, 3))
    dice = 1 - (2 * (p * t).sum(dim=(2, 3)) + 1) / (p.sum(dim=(2, 3)) + t.sum(dim=(2, 3)) + 1)
    # Thresholded on JAX's side, so that a logit within rounding of 0 cannot fall on two sides.
    predicted, target = recorded_logits > 0, t == 1
    true_iou = (predicted & target).sum(dim=(2, 3)) / (predicted | target).sum(dim=(2, 3))
    return 20 * focal + dice, (ious - true_iou) ** 2


def torch_loss(official, interactions, batch):
    """The mean over interactions and real objects of each prompt's loss; every prompt on its own side of the rules."""
    import torch

    total = 0.0
    planes = [
        torch.from_numpy(image[:h, :w].copy()).permute(2, 0, 1)
        for image, (h, w) in zip(batch["image"], batch["input_size"], strict=True)
    ]
    embeddings = official.image_encoder(torch.stack([official.preprocess(plane) for plane in planes]))
    for index, (prompts, logits) in enumerate(interactions):
        for b, has_box in np.ndindex(2, 2):
            chosen = np.flatnonzero(batch["mask_valid"][b] & (prompts.box_valid[b] == has_box))
            if not len(chosen):
                continue
            own = jax.tree.map(lambda x, b=b: x[b], prompts)
            recorded = torch.from_numpy(logits[b][chosen])
            masks, ious = (
                x[:, : recorded.shape[1]] for x in official_masks(official, embeddings[b : b + 1], own, chosen, has_box)
            )
            torch.testing.assert_close(masks, recorded, rtol=0, atol=1e-4)
            mask_loss, iou_loss = torch_losses(masks, ious, recorded, torch.from_numpy(batch["masks"][b][chosen]))
            # One point is ambiguous: the best of three masks learns. More prompts, or a box, are not: the single mask.
            best = 1 + mask_loss[:, 1:].argmin(dim=1) if index == 0 and not has_box else torch.zeros(len(chosen)).long()
            rows = torch.arange(len(chosen))
            total = total + (mask_loss + iou_loss)[rows, best].sum()
    return total / (len(interactions) * batch["mask_valid"].sum())


@pytest.fixture(scope="module", params=CASES)
def result(request):
    """The step on JAX's side, with the torch model's gradients in place, and the torch loss."""
    ours = jax_step(request.param)
    loss = torch_loss(ours.official, ours.interactions, make_batch())
    loss.backward()
    return ours, loss.item()


def test_the_step_is_the_papers(result):
    """Eleven passes, begun by points and by boxes, with masks fed back: what is compared below is not trivial."""
    interactions = result[0].interactions
    assert len(interactions) == 11
    starts = interactions[0].prompts.box_valid[MASK_VALID]
    assert starts.any()
    assert not starts.all()
    assert [x.prompts.mask_inputs is None for x in interactions] == [True] + [False] * 10
    counts = [(x.prompts.point_labels >= 0).sum(axis=2) for x in interactions]
    np.testing.assert_array_equal(counts[0], ~interactions[0].prompts.box_valid)
    np.testing.assert_array_equal(counts[-1] - counts[0], 8)
    np.testing.assert_array_equal(counts[-1], counts[-2])
    labels = interactions[-1].prompts.point_labels[MASK_VALID]
    assert {0, 1} <= set(labels.ravel().tolist())


def test_loss(result):
    ours, loss = result
    np.testing.assert_allclose(ours.loss, loss, rtol=1e-5)


def test_gradients_of_every_parameter(result):
    ours, _ = result
    theirs = {key: parameter.grad.numpy() for key, parameter in ours.official.named_parameters()}
    assert ours.gradients.keys() == theirs.keys()
    for key, gradient in theirs.items():
        scale = np.abs(gradient).max()
        # A key's bias adds the same to all logits of a query, which softmax does not see: torch's gradient is rounding.
        assert key.endswith("k_proj.bias") == (scale < 1e-6), f"{key} has gradients up to {scale}"
        np.testing.assert_allclose(ours.gradients[key], gradient, rtol=0, atol=1e-4 * scale + 1e-6, err_msg=key)
