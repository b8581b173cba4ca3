"""Masks packed to bits, against the logits of their full size."""

import functools

import jax
import numpy as np
import pytest

from sam_jax.ops import mask_bits
from sam_jax.ops.masks import axis_matrix

LEVELS = np.float32([0.1, 0.7, -0.5])


@pytest.mark.parametrize(("looks", "width"), [(1, 250), (3, 250), (1, 580)])
def test_what_is_seen_are_logits_above_the_levels(looks, width):
    """With 580 columns the TPU's kernel takes two steps, the second not full."""
    masks = np.array(jax.random.normal(jax.random.key(0), (2, looks, 48, 48))) - 4 * (np.arange(48) < 20)
    masks[:, -1] = masks[:, min(1, looks - 1)]
    height, width = size = np.int32([100, width])
    rows, columns = (np.pad(axis_matrix(48, 192, 150, side), ((0, -side % 64), (0, 0))) for side in (height, width))
    logits = np.einsum("yh,mnhw,xw->mnxy", *(x.astype(np.float64) for x in (rows, masks, columns)))
    above = np.broadcast_to(logits > LEVELS[:, None, None], (2, 3, *logits.shape[2:])).copy()
    above[:, :, width:], above[..., height:] = False, False
    first = above[:, 0]
    packed = np.packbits(first, axis=-1), np.packbits(first.any(axis=1), axis=-1)
    expected = mask_bits.Seen(packed[0], above.sum(axis=(2, 3)), first.any(axis=2), packed[1])
    enlarge = mask_bits.enlarging(rows, columns, 64)
    inside = mask_bits.bits_inside(enlarge, size)
    one_by_one = [jax.jit(mask_bits.see)(mask, LEVELS, enlarge, inside) for mask in masks]
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda *x: np.stack(x), *one_by_one), expected)
    for many in (mask_bits.see_stacked, functools.partial(mask_bits.see_many, interpret=True)):
        jax.tree.map(np.testing.assert_array_equal, jax.jit(many)(masks, LEVELS, enlarge, size), expected)
