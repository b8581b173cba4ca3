"""The losses of SAM: focal and dice on masks, squared error on the predicted IoU (SAM paper, appendix A).

The losses of masks reduce over pixels and keep the leading axes.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from sam_jax.config import LossConfig
from sam_jax.ops.masks import bilinear_matrix
from sam_jax.ops.products import einsum


class MaskLosses(NamedTuple):
    """Per mask, all of shape (...): the weighted focal, dice and IoU losses, and the true IoU."""

    focal: jax.Array
    dice: jax.Array
    iou: jax.Array
    true_iou: jax.Array

    @property
    def mask(self) -> jax.Array:
        """The loss by which the best of several masks is chosen."""
        return self.focal + self.dice


def focal_loss(logits: jax.Array, targets: jax.Array, alpha: float = 0.25, gamma: float = 2.0) -> jax.Array:
    """Mean over pixels of the sigmoid focal loss (Lin et al. 2017). (..., H, W) logits and 0/1 targets -> (...)."""
    signs = 2 * targets - 1
    log_p = jax.nn.log_sigmoid(signs * logits)  # log-probability of the true class
    weight = targets * alpha + (1 - targets) * (1 - alpha)
    return -(weight * (1 - jnp.exp(log_p)) ** gamma * log_p).mean(axis=(-2, -1))


def dice_loss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """1 - (2 |p t| + 1) / (|p| + |t| + 1) with soft predictions p (Milletari et al. 2016). (..., H, W) -> (...)."""
    p = jax.nn.sigmoid(logits)
    overlap = (p * targets).sum(axis=(-2, -1))
    return 1 - (2 * overlap + 1) / (p.sum(axis=(-2, -1)) + targets.sum(axis=(-2, -1)) + 1)


def mask_iou(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """IoU of the thresholded masks with 0/1 targets; 1 where both are empty. (..., H, W) -> (...)."""
    predicted = logits > 0
    target = targets > 0.5
    union = (predicted | target).sum(axis=(-2, -1))
    return jnp.where(union > 0, (predicted & target).sum(axis=(-2, -1)) / jnp.maximum(union, 1), 1.0)


def enlarge(logits: jax.Array, size: tuple[int, ...]) -> jax.Array:
    """Bilinear upsampling as in torch, (..., h, w) -> (..., H, W) for `size` = (H, W). No-op if that is the size."""
    if logits.shape[-2:] == size:
        return logits
    rows, cols = (
        jnp.asarray(bilinear_matrix(*sides), logits.dtype) for sides in zip(size, logits.shape[-2:], strict=True)
    )
    return einsum("yh,...hw,xw->...yx", rows, logits, cols)


def mask_losses(config: LossConfig, logits: jax.Array, iou_predictions: jax.Array, targets: jax.Array) -> MaskLosses:
    """Losses of every mask of every prompt.

    Args:
      logits: (B, N, M, h, w); iou_predictions: (B, N, M); targets: (B, N, h, w) 0/1. The order of pixels within the
        last two axes does not matter: logits and targets may both be planes (..., 16, S), see ops/planes.py.

    Returns:
      (B, N, M) float32 each.
    """
    logits, targets = logits.astype(jnp.float32), targets.astype(jnp.float32)[:, :, None]
    focal = config.focal_weight * focal_loss(logits, targets, config.focal_alpha, config.focal_gamma)
    dice = config.dice_weight * dice_loss(logits, targets)
    true_iou = jax.lax.stop_gradient(mask_iou(logits, targets))
    return MaskLosses(focal, dice, config.iou_weight * (iou_predictions - true_iou) ** 2, true_iou)


def prompt_loss(config: LossConfig, losses: MaskLosses, multimask: jax.Array) -> jax.Array:
    """The loss of each prompt, (B, N), from its masks (B, N, 1 + 3), or (B, N, 1) where no prompt is ambiguous.

    An ambiguous prompt (`multimask` (B, N) True) takes the lowest-loss mask of the three, any other prompt the single
    mask; `LossConfig.supervise_all_iou` and `supervise_all_outputs` change that.
    """
    single = losses.mask[..., 0] + losses.iou[..., 0]
    if losses.mask.shape[-1] == 1:
        return single
    best = losses.mask[..., 1:].argmin(axis=-1, keepdims=True)
    ambiguous_mask = jnp.take_along_axis(losses.mask[..., 1:], best, axis=-1)[..., 0]
    if config.supervise_all_iou:
        ambiguous_iou = losses.iou[..., 1:].mean(axis=-1)
    else:
        ambiguous_iou = jnp.take_along_axis(losses.iou[..., 1:], best, axis=-1)[..., 0]
    ambiguous = ambiguous_mask + ambiguous_iou
    if config.supervise_all_outputs:
        return (ambiguous + single) / 2
    return jnp.where(multimask, ambiguous, single)


def affinity_loss(embeddings: jax.Array, targets: jax.Array, mask_valid: jax.Array, key: jax.Array) -> jax.Array:
    """Trains cells of the image embedding that belong to the same mask to be alike.

    One cell is drawn from each mask; its dot product with every cell predicts the share of that cell that the mask
    fills. As no prompt or decoder is involved, only the encoder can lower this loss.

    Args:
      embeddings: (B, h, w, C), normalised by the neck's last LayerNorm.
      targets: (B, N, H, W) bool, with H and W multiples of h and w; mask_valid: (B, N) bool.

    Returns:
      Scalar, with equal weight for cells inside and outside; masks that fill no cell by more than 40 % are left out.
    """
    b, h, w, c = embeddings.shape
    factor = targets.shape[2] // h
    share = rearrange(targets.astype(jnp.float32), "b n (h i) (w j) -> b n (h w) i j", i=factor, j=factor).mean((3, 4))
    cell = jax.random.categorical(key, jnp.log(share**2 + 1e-6))  # mostly cells well inside
    flat = embeddings.astype(jnp.float32).reshape(b, h * w, c)
    logits = 12 * einsum("bnc,bpc->bnp", jnp.take_along_axis(flat, cell[..., None], axis=1), flat) / c - 6
    inside = (share * jax.nn.softplus(-logits)).sum(-1) / jnp.maximum(share.sum(-1), 1)
    outside = ((1 - share) * jax.nn.softplus(logits)).sum(-1) / jnp.maximum((1 - share).sum(-1), 1)
    # Soft targets leave -s log p - (1 - s) log(1 - p) = s softplus(-x) + (1 - s) softplus(x).
    weight = mask_valid & (share.max(-1) > 0.4)
    return ((inside + outside) / 2 * weight).sum() / jnp.maximum(weight.sum(), 1)
