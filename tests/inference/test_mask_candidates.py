"""What everything mode asks of the decoder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sam_jax.inference.point_decoding import decode_points
from sam_jax.models import mask_decoder
from sam_jax.models.sam import Sam
from sam_jax.structs import Prompts
from tests.tiny import TINY, random_variables

GRID = TINY.image_encoder.grid_size
POINTS = np.random.default_rng(0).uniform(0, 80, (12, 2)).astype(np.float32)
EVERY = np.float32(-np.inf)

pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu", reason="other platforms decode a whole batch at once")


@pytest.fixture(scope="module")
def known():
    variables = random_variables(TINY)
    embedding = jax.random.normal(jax.random.key(1), (1, GRID, GRID, TINY.prompt_embed_dim))
    return Sam(TINY), variables, embedding


@pytest.mark.slow
def test_points_in_groups_have_the_masks_of_all_at_once(known):
    model, variables, embedding = known
    labels = jnp.ones((1, len(POINTS), 1), jnp.int32)
    prompts = Prompts(point_coords=POINTS[None, :, None], point_labels=labels)
    expected = model.apply(variables, embedding, prompts, masks=slice(1, None), method="predict_planes")
    for count in (12, 5, 1):
        planes, iou = decode_points(*known, POINTS[:count], EVERY)
        np.testing.assert_allclose(planes, expected[0][0].reshape(36, 16, -1)[: 3 * count], atol=1e-4)
        np.testing.assert_allclose(iou, expected[1][0].ravel()[: 3 * count], atol=1e-5)


@pytest.mark.slow
def test_pixels_are_upscaled_for_those_points_alone_that_a_filter_can_pass(known, monkeypatch):
    upscale, upscaled = mask_decoder.upscale, []

    def counted(upscaling, hypernetworks, *rest):
        jax.debug.callback(lambda: upscaled.append(len(hypernetworks)))
        return upscale(upscaling, hypernetworks, *rest)

    monkeypatch.setattr(mask_decoder, "upscale", counted)
    jax.clear_caches()
    everything, iou = decode_points(*known, POINTS, EVERY)
    jax.effects_barrier()
    assert len(upscaled) == len(POINTS)
    best = np.asarray(iou).reshape(-1, 3).max(axis=1)
    least = np.float32(np.sort(best)[8])  # three are better
    upscaled.clear()
    planes, _ = decode_points(*known, POINTS, least)
    jax.effects_barrier()
    jax.clear_caches()
    assert len(upscaled) == 3
    planes, everything = (np.asarray(x).reshape(12, 3, 16, -1) for x in (planes, everything))
    np.testing.assert_array_equal(planes[best > least], everything[best > least])
    assert not planes[best <= least].any()
