"""Edge refinement: a conditional random field (CRF) aligns mask outlines with the edges and colours of the image.

A small model's masks are coarse and uncertain near their outlines, where the image itself says much. Nothing here is
learned. The energy is GrabCut's (Rother et al. 2004), with the model's logits in place of a user's strokes: a pixel
belongs to the mask if the logits say so, if its colour is more frequent inside than outside, and if neighbours of
similar colour belong to it. Mean field (Kraehenbuehl and Koltun 2011) minimises it in a few rounds of products and
shifts for all masks at once; a graph cut would take one mask after the other.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sam_jax.ops.masks import bilinear_matrix
from sam_jax.ops.products import einsum
from sam_jax.structs import Prompts

# Chosen on tests/devset_mini, with a look at the model card's larger sets. The values lie on a plateau: halving or
# doubling the two weights, LEAST_LOGIT, CONTRAST or PALETTE_WIDTH changes the figures there by less than .01.
COLOUR_WEIGHT, EDGE_WEIGHT = 0.5, 2.0
LEAST_LOGIT = -2.0  # logits are clipped from below: models are often confident, and wrong, far outside the mask
CONTRAST = 2.0  # how fast coupling falls with the colour distance of neighbours, in units of its mean square
PALETTE_SIDE = 4  # a palette has 4 x 4 colours
PALETTE_WIDTH = 0.2  # softness of the assignment of pixels to colours, in the units of normalised images
PALETTE_ROUNDS = 4
LEAST_SHARE = 1e-3  # smallest frequency of a colour: no colour is impossible
ROUNDS = 5  # of mean field

CELL = 8  # pixels of the field per side of an embedding cell: twice those of the decoder
SURE = 20.0  # logit of a pixel whose label is certain
_REACHES = (1, 2)  # distances of neighbours, pixels of the field
_HALF = ((0, 1), (1, 0), (1, 1), (1, -1))  # half of the 8 directions; the others are their opposites
NEIGHBOURS = tuple((sign * d * dy, sign * d * dx) for d in _REACHES for dy, dx in _HALF for sign in (1, -1))


class CrfPixels(NamedTuple):
    """What all masks of an image share. L is the side of the field in pixels.

    Attributes:
      colours: (..., K, L, L) float32, soft assignment of each pixel to the palette's K colours; 0 in padding.
      weights: (..., 16, L, L) float32, coupling of each pixel with each of NEIGHBOURS; 0 with padding.
      inside: (..., L, L) bool, False in padding.
    """

    colours: jax.Array
    weights: jax.Array
    inside: jax.Array


def crf_pixels(image: jax.Array, input_size: jax.Array, patch_size: int) -> CrfPixels:
    """Computes the colours and couplings of one image, for all of its masks.

    Args:
      image: (H, H, 3) float32, normalised, then zero-padded to a square.
      input_size: (2,) height and width of the image without padding, pixels of the input frame.
      patch_size: of the model, pixels; a multiple of CELL.
    """
    step = patch_size // CELL
    side = len(image) // step
    # A matrix product with channels first: with channels last, TPUs would pad the three to 128 lanes.
    pool = jnp.repeat(jnp.eye(side), step, axis=1) / step
    pooled = einsum("yh,hwc,xw->cyx", pool, image, pool)
    place = jnp.arange(side) * step
    inside = (place < input_size[0])[:, None] & (place < input_size[1])
    return CrfPixels(_palette_shares(pooled, input_size // step, inside), _weights(pooled, inside), inside)


def refine_masks(
    logits: jax.Array, pixels: CrfPixels, boxes: jax.Array | None = None, patch_size: int = 16
) -> jax.Array:
    """Refines the masks of one image.

    Args:
      logits: (N, M, l, l) float32, positive inside the mask; L is 2 l.
      pixels: the image's, from `crf_pixels`.
      boxes: (N, 4) float32 xyxy in pixels of the input frame: no mask extends beyond its box. None: no limits.
      patch_size: of the model, pixels.

    Returns:
      (N, M, L, L) float32 logits.
    """
    side = pixels.inside.shape[-1]
    enlarge = jnp.asarray(bilinear_matrix(side, logits.shape[-1]), jnp.float32)
    model = einsum("yh,nmhw,xw->nmyx", enlarge, logits, enlarge)
    depth = jnp.where(pixels.inside, SURE, -SURE)[None]
    if boxes is not None:
        depth = jnp.minimum(depth, _depth_in_box(boxes * (CELL / patch_size), side))
    depth = depth[:, None]
    prior, limit = jnp.maximum(model, LEAST_LOGIT), jnp.where(depth > -0.5, SURE, -SURE)

    def round_of_mean_field(_: int, field: jax.Array) -> jax.Array:
        share = jax.nn.sigmoid(field)
        odds, agreement = _colour_odds(share, pixels.colours), _agreement(share, pixels.weights)
        return jnp.minimum(prior + COLOUR_WEIGHT * odds + EDGE_WEIGHT * agreement, limit)

    return jnp.minimum(jax.lax.fori_loop(0, ROUNDS, round_of_mean_field, jnp.minimum(prior, limit)), depth)


def box_limits(prompts: Prompts) -> jax.Array:
    """Limits of each prompt's masks: (..., N, 4) xyxy in the frame of the prompts, which must have boxes.

    The limit is the prompt's box, extended to its foreground points; prompts without a valid box have none.
    """
    assert prompts.boxes is not None
    low, high = prompts.boxes[..., :2], prompts.boxes[..., 2:]
    if prompts.point_coords is not None and prompts.point_labels is not None and prompts.point_coords.shape[-2]:
        on = (prompts.point_labels == 1)[..., None]
        low = jnp.minimum(low, jnp.where(on, prompts.point_coords, jnp.inf).min(axis=-2))
        high = jnp.maximum(high, jnp.where(on, prompts.point_coords, -jnp.inf).max(axis=-2))
    has_box = jnp.ones(low.shape[:-1], bool) if prompts.box_valid is None else prompts.box_valid
    everywhere = jnp.array([-1.0, -1.0, 1.0, 1.0]) * 1e6
    return jnp.where(has_box[..., None], jnp.concatenate([low, high], axis=-1), everywhere)


def _depth_in_box(boxes: jax.Array, side: int) -> jax.Array:
    """(N, L, L): signed distance in pixels to the nearest edge of the box, negative outside; used as logits."""
    centres = jnp.arange(side) + 0.5
    x0, y0, x1, y1 = jnp.moveaxis(boxes, -1, 0)[..., None]
    across, down = jnp.minimum(centres - x0, x1 - centres), jnp.minimum(centres - y0, y1 - centres)
    return jnp.minimum(across[:, None, :], down[:, :, None])


def _palette_shares(pooled: jax.Array, size: jax.Array, inside: jax.Array) -> jax.Array:
    """`CrfPixels.colours`: soft k-means, initialised with the colours at a grid of points in an image of `size`."""
    side = pooled.shape[-1]
    places = (jnp.arange(PALETTE_SIDE) + 0.5) / PALETTE_SIDE
    rows, columns = (places * size[0]).astype(int), (places * size[1]).astype(int)
    means = pooled[:, rows[:, None], columns].reshape(3, -1)

    def shares(colours: jax.Array, known: jax.Array, means: jax.Array) -> jax.Array:
        # Negative half squared distances, without the term of the pixel alone, which cancels in the softmax.
        near = einsum("ck,cyx->kyx", means, colours) - (means**2).sum(axis=0)[:, None, None] / 2
        return jax.nn.softmax(near / PALETTE_WIDTH**2, axis=0) * known

    step = max(1, side // 64)  # a few thousand pixels are enough to find the palette
    sample, known = pooled[:, ::step, ::step], inside[::step, ::step]
    for _ in range(PALETTE_ROUNDS):
        parts = shares(sample, known, means)
        found = einsum("kyx,cyx->ck", parts, sample)
        means = found / jnp.maximum(parts.sum(axis=(1, 2)), 1e-6)
    return shares(pooled, inside, means)


def _colour_odds(share: jax.Array, colours: jax.Array) -> jax.Array:
    """(N, M, L, L): log ratio of the frequencies of a pixel's colour inside and outside the mask."""
    odds: jax.Array = jax.lax.platform_dependent(share, colours, cpu=_odds_at_once, default=_odds)
    return odds


def _odds(share: jax.Array, colours: jax.Array) -> jax.Array:
    def frequency(share: jax.Array) -> jax.Array:
        found = einsum("nmyx,kyx->nmk", share, colours)
        found = found / jnp.maximum(found.sum(axis=-1, keepdims=True), 1e-6) + LEAST_SHARE
        return einsum("nmk,kyx->nmyx", found, colours) + 1e-6

    return jnp.log(frequency(share)) - jnp.log(frequency(1 - share))


def _odds_at_once(share: jax.Array, colours: jax.Array) -> jax.Array:
    """`_odds` with pixels flattened to one axis: with two, XLA's CPU backend transposes all colours in every round."""
    flat = colours.reshape(len(colours), -1)
    shares = jnp.stack([share, 1 - share]).reshape(-1, flat.shape[1])
    found = einsum("np,kp->nk", shares, flat)
    found = found / jnp.maximum(found.sum(axis=-1, keepdims=True), 1e-6) + LEAST_SHARE
    frequency = einsum("nk,kp->np", found, flat) + 1e-6
    inside, outside = jnp.log(frequency).reshape(2, *share.shape)
    return inside - outside


def _agreement(share: jax.Array, weights: jax.Array) -> jax.Array:
    """(N, M, L, L): weighted sum over neighbours: 1 for one that is surely in the mask, -1 for one surely outside."""
    # Pad the shares before the arithmetic: where jnp.pad follows arithmetic, jaxlib 0.10 for AVX-512 reads out of
    # bounds and sometimes crashes. Pixels beyond the frame have weight 0.
    near = _neighbours(share)
    return jnp.stack([weight * (2 * one - 1) for weight, one in zip(weights, near, strict=True)]).sum(axis=0)


def _weights(pooled: jax.Array, inside: jax.Array) -> jax.Array:
    """`CrfPixels.weights`: nearer neighbours, and those of similar colour, count more."""
    squares = jnp.stack([((near - pooled) ** 2).sum(axis=0) for near in _neighbours(pooled)])
    known = jnp.stack([near & inside for near in _neighbours(inside)])
    nearest = 2 * len(_HALF)
    usual = (squares * known)[:nearest].sum() / jnp.maximum(known[:nearest].sum(), 1)
    distance = jnp.array([(dy * dy + dx * dx) ** 0.5 for dy, dx in NEIGHBOURS])[:, None, None]
    alike = jnp.exp(-CONTRAST * squares / (2 * usual + 1e-6))
    return jnp.where(known, alike, 0) / (distance * len(_REACHES))


def _neighbours(x: jax.Array) -> list[jax.Array]:
    """(..., L, L) shifted to each of NEIGHBOURS, zero beyond the frame."""
    reach, side = max(_REACHES), x.shape[-1]
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(reach, reach)] * 2)
    return [padded[..., reach + dy : reach + dy + side, reach + dx : reach + dx + side] for dy, dx in NEIGHBOURS]
