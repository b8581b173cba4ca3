"""Edge refinement: a conditional random field (CRF) moves masks' outlines to the edges and colours of the image.

A small model's masks are coarse and unsure near their rim, where the image itself says much. Nothing here is learned.
The energy is GrabCut's (Rother et al. 2004), with a model's logits in place of a user's strokes: a pixel belongs to the
mask if the logits say so, if its colour is more frequent inside than outside, and if neighbours of its colour belong to
it. Mean field (Kraehenbuehl and Koltun 2011) minimises it: a few rounds of products and shifts for all masks at once,
where a graph cut takes one after the other.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sam_jax.ops.masks import bilinear_matrix
from sam_jax.ops.products import einsum
from sam_jax.structs import Prompts

# Chosen on tests/devset_mini, with a look at the model card's larger sets, from a plateau: half or double of the two
# weights, the least logit, the contrast or the palette's width changes the figures there by less than .01.
COLOUR_WEIGHT, EDGE_WEIGHT = 0.5, 2.0
LEAST_LOGIT = -2.0  # a model is surest of what lies far outside, and often wrongly so
CONTRAST = 2.0  # how fast neighbours part with their colours' distance, in units of the usual one
PALETTE_SIDE = 4  # a palette has 4 x 4 colours
PALETTE_WIDTH = 0.2  # of each of them, in standard deviations of normalised images
PALETTE_ROUNDS = 4
LEAST_SHARE = 1e-3  # of a colour in a mask: none is impossible
ROUNDS = 5  # of mean field

CELL = 8  # pixels of the field on a side of an embedding cell: twice those of the decoder
SURE = 20.0  # logit of what is known
_REACHES = (1, 2)
_HALF = ((0, 1), (1, 0), (1, 1), (1, -1))  # of the nearest neighbours; the other half lies opposite
NEIGHBOURS = tuple((sign * d * dy, sign * d * dx) for d in _REACHES for dy, dx in _HALF for sign in (1, -1))


class CrfPixels(NamedTuple):
    """What all masks of an image share. L is its side in pixels of the field.

    Attributes:
      colours: (..., K, L, L) float32, how much of each pixel is of each of the palette's K colours; none in padding.
      weights: (..., 16, L, L) float32, how much a pixel goes with each of NEIGHBOURS; not at all with padding.
      inside: (..., L, L) bool, False in padding.
    """

    colours: jax.Array
    weights: jax.Array
    inside: jax.Array


def crf_pixels(image: jax.Array, input_size: jax.Array, patch_size: int) -> CrfPixels:
    """Prepares one image for all of its masks.

    Args:
      image: (H, W, 3) float32, normalised, then zero-padded to a square.
      input_size: (2,) height and width of the image inside, pixels.
      patch_size: of the model, pixels; a multiple of CELL.
    """
    step = patch_size // CELL
    side = len(image) // step
    # A product, and channels first: TPUs would pad three channels to 128 lanes.
    pool = jnp.repeat(jnp.eye(side), step, axis=1) / step
    pooled = einsum("yh,hwc,xw->cyx", pool, image, pool)
    place = jnp.arange(side) * step
    inside = (place < input_size[0])[:, None] & (place < input_size[1])
    return CrfPixels(_palette_shares(pooled, input_size // step, inside), _weights(pooled, inside), inside)


def refine_masks(
    logits: jax.Array, pixels: CrfPixels, boxes: jax.Array | None = None, patch_size: int = 16
) -> jax.Array:
    """Masks of one image, refined at its edges.

    Args:
      logits: (N, M, l, l) float32, positive inside; L is 2 l.
      pixels: the image's, from `crf_pixels`.
      boxes: (N, 4) float32 xyxy in pixels of the input frame: masks end there at the latest. None: no boxes.
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
    """Where masks may reach: (..., N, 4) xyxy, a prompt's box with its foreground points; everywhere without a box."""
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
    """(N, L, L): pixels to the box's nearest edge, negative outside. Read as logits, the outline lies on that edge."""
    centres = jnp.arange(side) + 0.5
    x0, y0, x1, y1 = jnp.moveaxis(boxes, -1, 0)[..., None]
    across, down = jnp.minimum(centres - x0, x1 - centres), jnp.minimum(centres - y0, y1 - centres)
    return jnp.minimum(across[:, None, :], down[:, :, None])


def _palette_shares(pooled: jax.Array, size: jax.Array, inside: jax.Array) -> jax.Array:
    """`CrfPixels.colours`: soft k-means, begun with the colours at a grid of points of an image `size` large."""
    side = pooled.shape[-1]
    places = (jnp.arange(PALETTE_SIDE) + 0.5) / PALETTE_SIDE
    rows, columns = (places * size[0]).astype(int), (places * size[1]).astype(int)
    means = pooled[:, rows[:, None], columns].reshape(3, -1)

    def shares(colours: jax.Array, known: jax.Array, means: jax.Array) -> jax.Array:
        # Squared distances but for the pixel's own square, which softmax does not see.
        near = einsum("ck,cyx->kyx", means, colours) - (means**2).sum(axis=0)[:, None, None] / 2
        return jax.nn.softmax(near / PALETTE_WIDTH**2, axis=0) * known

    step = max(1, side // 64)  # a few thousand pixels tell which colours there are
    sample, known = pooled[:, ::step, ::step], inside[::step, ::step]
    for _ in range(PALETTE_ROUNDS):
        parts = shares(sample, known, means)
        found = einsum("kyx,cyx->ck", parts, sample)
        means = found / jnp.maximum(parts.sum(axis=(1, 2)), 1e-6)
    return shares(pooled, inside, means)


def _colour_odds(share: jax.Array, colours: jax.Array) -> jax.Array:
    """(N, M, L, L): logarithm of how much more frequent a pixel's colour is inside a mask than outside."""
    odds: jax.Array = jax.lax.platform_dependent(share, colours, cpu=_odds_at_once, default=_odds)
    return odds


def _odds(share: jax.Array, colours: jax.Array) -> jax.Array:
    def frequency(share: jax.Array) -> jax.Array:
        found = einsum("nmyx,kyx->nmk", share, colours)
        found = found / jnp.maximum(found.sum(axis=-1, keepdims=True), 1e-6) + LEAST_SHARE
        return einsum("nmk,kyx->nmyx", found, colours) + 1e-6

    return jnp.log(frequency(share)) - jnp.log(frequency(1 - share))


def _odds_at_once(share: jax.Array, colours: jax.Array) -> jax.Array:
    """`_odds` with pixels on one axis: for two, XLA's CPU backend copies all colours to other places in every round."""
    flat = colours.reshape(len(colours), -1)
    shares = jnp.stack([share, 1 - share]).reshape(-1, flat.shape[1])
    found = einsum("np,kp->nk", shares, flat)
    found = found / jnp.maximum(found.sum(axis=-1, keepdims=True), 1e-6) + LEAST_SHARE
    frequency = einsum("nk,kp->np", found, flat) + 1e-6
    inside, outside = jnp.log(frequency).reshape(2, *share.shape)
    return inside - outside


def _agreement(share: jax.Array, weights: jax.Array) -> jax.Array:
    """(N, M, L, L): what neighbours say, weighted: 1 each that surely belongs to the mask, -1 that does not."""
    # Shares as they are go to neighbours: where a jnp.pad follows arithmetic, jaxlib 0.10 for AVX-512 reads beyond what
    # it pads, now and then off the memory. What lies beyond the frame has no weight.
    near = _neighbours(share)
    return jnp.stack([weight * (2 * one - 1) for weight, one in zip(weights, near, strict=True)]).sum(axis=0)


def _weights(pooled: jax.Array, inside: jax.Array) -> jax.Array:
    """`CrfPixels.weights`: nearer neighbours, and those of a like colour, count more."""
    squares = jnp.stack([((near - pooled) ** 2).sum(axis=0) for near in _neighbours(pooled)])
    known = jnp.stack([near & inside for near in _neighbours(inside)])
    nearest = 2 * len(_HALF)
    usual = (squares * known)[:nearest].sum() / jnp.maximum(known[:nearest].sum(), 1)
    distance = jnp.array([(dy * dy + dx * dx) ** 0.5 for dy, dx in NEIGHBOURS])[:, None, None]
    alike = jnp.exp(-CONTRAST * squares / (2 * usual + 1e-6))
    return jnp.where(known, alike, 0) / (distance * len(_REACHES))


def _neighbours(x: jax.Array) -> list[jax.Array]:
    """What lies beside each pixel of (..., L, L), for each of NEIGHBOURS; zero beyond the frame."""
    reach, side = max(_REACHES), x.shape[-1]
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(reach, reach)] * 2)
    return [padded[..., reach + dy : reach + dy + side, reach + dx : reach + dx + side] for dy, dx in NEIGHBOURS]
