"""What the decoder does beyond SAM's: predicted IoUs times stability scores."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.models.mask_decoder import stability
from sam_jax.models.sam import Sam
from sam_jax.ops.planes import split_subpixels
from sam_jax.structs import Prompts
from tests.tiny import TINY, random_variables

STABLE = dataclasses.replace(TINY, mask_decoder=dataclasses.replace(TINY.mask_decoder, iou_times_stability=True))
PROMPTS = Prompts(
    point_coords=jnp.array([[[[30.0, 40.0]], [[50.0, 8.0]]]]), point_labels=jnp.ones((1, 2, 1), jnp.int32)
)


@pytest.mark.long
def test_predicted_ious_are_the_heads_times_the_stability_of_the_masks():
    variables = random_variables(TINY)
    embeddings = jax.random.normal(jax.random.key(0), (1, 4, 4, TINY.prompt_embed_dim))
    plain, stable = (
        Sam(config).apply(variables, embeddings, PROMPTS, method="predict_masks") for config in (TINY, STABLE)
    )
    masks = np.asarray(plain.low_res_masks)
    expected = (masks > 0.5).sum((-1, -2)) / np.maximum((masks > -0.5).sum((-1, -2)), 1)
    assert 0 <= expected.min() < expected.max() < 1
    np.testing.assert_array_equal(stable.low_res_masks, plain.low_res_masks)
    np.testing.assert_allclose(stable.iou_predictions, plain.iou_predictions * expected, rtol=1e-6)


def test_an_empty_mask_has_no_stability():
    assert stability(split_subpixels(jnp.full((1, 8, 8), -1.0))).tolist() == [0]
