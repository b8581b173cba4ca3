"""Masks packed to bits, against the logits of their full size."""

import jax
import numpy as np
import pytest

from sam_jax.ops import mask_bits
from sam_jax.ops.masks import axis_matrix

LEVELS = np.float32([0.1, 0.7, -0.5])


@pytest.mark.parametrize("looks", [1, 3])
def test_bits_are_those_of_logits_above_the_levels(looks):
    masks = np.array(jax.random.normal(jax.random.key(0), (looks, 48, 48)))
    masks[-1] = masks[min(1, looks - 1)]
    rows, columns = (
        np.pad(axis_matrix(48, 192, 150, original), ((0, -original % 64), (0, 0))) for original in (100, 250)
    )
    logits = np.einsum("yh,nhw,xw->nxy", *(x.astype(np.float64) for x in (rows, masks, columns)))
    expected = np.packbits(logits > LEVELS[:, None, None], axis=-1)
    enlarge = mask_bits.enlarging(rows, columns, 64)
    for form in (mask_bits.bits_above, mask_bits._stacked, mask_bits._side_by_side):
        np.testing.assert_array_equal(jax.jit(form)(masks, LEVELS, enlarge), expected)
