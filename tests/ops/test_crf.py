"""Masks at an image's edges: the mean field against a plain statement, and what it must do to simple images."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from sam_jax.ops import crf
from sam_jax.ops.masks import bilinear_matrix
from sam_jax.structs import Prompts

SIDE, PATCH = 128, 16  # of the input frame and its patches, pixels
FIELD = SIDE * crf.CELL // PATCH
WHOLE = np.array([SIDE, SIDE])
prepare = jax.jit(crf.crf_pixels, static_argnames="patch_size")
refine = jax.jit(crf.refine_masks)


def pixels_of(image, size=WHOLE):
    return prepare(jnp.asarray(image, jnp.float32), jnp.asarray(size), patch_size=PATCH)


def blob(y, x, radius, side=FIELD // 2):
    """Logits of a disc in pixels of the decoder's grid: positive within it, as soft as a small model's."""
    rows, cols = np.mgrid[:side, :side] + 0.5
    return ((radius - np.hypot(rows - y, cols - x)) / 4).astype(np.float32)


def two_colours(edge, left=-1.0, right=1.0):
    """A frame whose left `edge` columns are of one colour and the rest of another."""
    image = np.full((SIDE, SIDE, 3), right)
    image[:, :edge] = left
    return image


def slow_refinement(logits, pixels, boxes):
    """Pixel by pixel what the module's head says, in float64: one mask (l, l) and its box (4,) in the field."""
    colours, weights, inside = (np.asarray(part, np.float64) for part in pixels)
    matrix = bilinear_matrix(FIELD, len(logits))
    prior = np.maximum(matrix @ logits @ matrix.T, crf.LEAST_LOGIT)
    depth = np.empty((FIELD, FIELD))
    for y, x in np.ndindex(depth.shape):
        refine_edges = x + 0.5 - boxes[0], y + 0.5 - boxes[1], boxes[2] - x - 0.5, boxes[3] - y - 0.5
        depth[y, x] = min(crf.SURE if inside[y, x] else -crf.SURE, *refine_edges)
    limit = np.where(depth > -0.5, crf.SURE, -crf.SURE)
    field = np.minimum(prior, limit)
    for _ in range(crf.ROUNDS):
        share = expit(field)
        frequencies = []
        for part in (share, 1 - share):
            counts = (colours * part).sum(axis=(1, 2))
            frequencies.append(np.tensordot(counts / counts.sum() + crf.LEAST_SHARE, colours, 1) + 1e-6)
        said = np.zeros_like(field)
        for weight, (dy, dx) in zip(weights, crf.NEIGHBOURS, strict=True):
            for y, x in np.ndindex(field.shape):
                if 0 <= y + dy < FIELD and 0 <= x + dx < FIELD:
                    said[y, x] += weight[y, x] * (2 * share[y + dy, x + dx] - 1)
        odds = np.log(frequencies[0] / frequencies[1])
        field = np.minimum(prior + crf.COLOUR_WEIGHT * odds + crf.EDGE_WEIGHT * said, limit)
    return np.minimum(field, depth)


def test_agrees_with_a_slow_statement():
    rng = np.random.default_rng(0)
    pixels = pixels_of(rng.normal(size=(SIDE, SIDE, 3)), (100, SIDE))
    logits = rng.normal(size=(2, 2, FIELD // 2, FIELD // 2)).astype(np.float32) * 2
    boxes = np.array([[10.0, 20, 90, 70.5], [-5, -5, 300, 300]], np.float32)
    found = np.asarray(refine(logits, pixels, boxes))
    for n, m in np.ndindex(2, 2):
        expected = slow_refinement(logits[n, m], pixels, boxes[n] * crf.CELL / PATCH)
        np.testing.assert_allclose(found[n, m], expected, atol=2e-4)


def test_rounds_pad_what_is_in_memory():
    """What jaxlib 0.10 makes of a padded product for AVX-512 reads beyond its operand: one run in ten crashed."""
    arguments = np.zeros((3, 1, 16, 16), np.float32), pixels_of(two_colours(40)), np.zeros((3, 4))
    as_users_do = {"xla_cpu_use_fusion_emitters": True} if jax.__version_info__ < (0, 11) else {}
    compiled = refine.lower(*arguments).compile(as_users_do)
    padded = re.findall(r" pad\(%([a-z]+)", compiled.as_text())
    assert padded
    assert set(padded) == {"param"}


def test_weights_are_those_of_like_neighbours():
    rng = np.random.default_rng(1)
    image = rng.normal(size=(SIDE, SIDE, 3))
    pixels = pixels_of(image, (SIDE, 100))
    small = image.reshape(FIELD, 2, FIELD, 2, 3).mean(axis=(1, 3))
    inside = np.arange(FIELD) < 50
    nearest = [
        ((small[y, x] - small[y + dy, x + dx]) ** 2).sum()
        for dy, dx in crf.NEIGHBOURS[:8]
        for y, x in np.ndindex(FIELD, 50)
        if 0 <= y + dy < FIELD and 0 <= x + dx < 50
    ]
    for number, (dy, dx) in enumerate(crf.NEIGHBOURS):
        for y, x in ((0, 0), (30, 49), (5, 7), (63, 20), (10, 60)):
            there = 0 <= y + dy < FIELD and 0 <= x + dx < FIELD and inside[x] and inside[x + dx]
            square = ((small[y, x] - small[y + dy, x + dx]) ** 2).sum() if there else np.inf
            expected = np.exp(-crf.CONTRAST * square / (2 * np.mean(nearest))) / (2 * np.hypot(dy, dx))
            assert pixels.weights[number, y, x] == pytest.approx(expected, abs=1e-5)


def test_a_palette_parts_colours():
    image = two_colours(40)
    image[100:] = 0.0
    pixels = pixels_of(image)
    colours = np.asarray(pixels.colours)
    np.testing.assert_allclose(colours.sum(axis=0), 1, atol=1e-5)
    regions = [colours[:, 5, 5], colours[:, 5, 60], colours[:, 60, 5]]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert np.minimum(regions[i], regions[j]).sum() < 0.01


@pytest.mark.parametrize(("column", "radius"), [(8, 8), (8, 12), (12, 6), (12, 12)])
def test_a_mask_that_spills_over_an_edge_is_taken_back_to_it(column, radius):
    """A disc that ends 4 pixels of the field beyond the edge of its colour."""
    logits = blob(16, column, radius)
    edge = 2 * int((logits[16] > 0).nonzero()[0].max()) + 2 - 4
    mask = np.asarray(refine(logits[None, None], pixels_of(two_colours(2 * edge))))[0, 0] > 0
    ends = FIELD - mask[FIELD // 2 - 3 : FIELD // 2 + 3, ::-1].argmax(axis=1)
    assert np.abs(ends - edge).max() <= 2


def test_masks_end_at_their_box_and_at_the_padding():
    pixels = pixels_of(np.full((SIDE, SIDE, 3), 0.3), (SIDE, 96))
    sure = np.full((1, 1, FIELD // 2, FIELD // 2), 10.0, np.float32)
    boxes = np.array([[16.0, 8.0, 80.0, 41.0]], np.float32)
    mask = np.asarray(refine(sure, pixels, boxes))[0, 0]
    expected = np.zeros((FIELD, FIELD), bool)
    expected[4:20, 8:40] = True
    assert (expected == (mask > 0)).mean() > 0.99
    assert not (mask > 0)[:4].any()
    assert not (mask > 0)[21:].any()  # row 20 is half within
    assert mask[20, 20] == pytest.approx(0, abs=1e-5)  # the outline lies in its middle
    whole = np.asarray(refine(sure, pixels))[0, 0] > 0
    assert whole[:, :48].all()
    assert not whole[:, 48:].any()


def test_padding_does_not_matter():
    rng = np.random.default_rng(2)
    image = rng.normal(size=(SIDE, SIDE, 3))
    other = image.copy()
    other[96:] = 7.0
    logits = rng.normal(size=(1, 2, FIELD // 2, FIELD // 2)).astype(np.float32)
    found = [np.asarray(refine(logits, pixels_of(one, (96, SIDE)))) for one in (image, other)]
    np.testing.assert_allclose(found[0][:, :, :46], found[1][:, :, :46], atol=1e-5)


@pytest.mark.parametrize("level", [-30.0, 30.0])
def test_empty_and_full_masks_of_a_plain_image_stay_so(level):
    pixels = pixels_of(np.zeros((SIDE, SIDE, 3)))
    found = np.asarray(refine(np.full((1, 1, FIELD // 2, FIELD // 2), level, np.float32), pixels))
    assert np.isfinite(found).all()
    assert ((found > 0) == (level > 0)).all()


def test_each_mask_is_refined_as_if_alone():
    rng = np.random.default_rng(3)
    pixels = pixels_of(rng.normal(size=(SIDE, SIDE, 3)))
    logits = rng.normal(size=(3, 2, FIELD // 2, FIELD // 2)).astype(np.float32)
    boxes = np.array([[0.0, 0, 50, 50], [20, 20, 120, 90], [5, 60, 70, 128]], np.float32)
    together = np.asarray(refine(logits, pixels, boxes))
    for n, m in np.ndindex(3, 2):
        alone = np.asarray(refine(logits[n, m][None, None], pixels, boxes[n, None]))[0, 0]
        np.testing.assert_allclose(together[n, m], alone, atol=1e-5)


def test_limits_are_boxes_with_their_foreground_points():
    prompts = Prompts(
        point_coords=np.array([[[5.0, 50.0], [90.0, 10.0]], [[1.0, 1.0], [0.0, 0.0]], [[3.0, 3.0], [0.0, 0.0]]]),
        point_labels=np.array([[1, 0], [-1, -1], [1, -1]]),
        boxes=np.array([[10.0, 20, 30, 40]] * 3),
        box_valid=np.array([True, True, False]),
    )
    limits = np.asarray(crf.box_limits(prompts))
    np.testing.assert_array_equal(limits[:2], [[5, 20, 30, 50], [10, 20, 30, 40]])
    assert (limits[2, :2] < -1e5).all()
    assert (limits[2, 2:] > 1e5).all()


def test_platforms_weigh_colours_alike():
    keys = jax.random.split(jax.random.key(0))
    share = jax.random.uniform(keys[0], (2, 3, 16, 16))
    colours = jax.nn.softmax(3 * jax.random.normal(keys[1], (16, 16, 16)), axis=0)
    np.testing.assert_allclose(crf._odds_at_once(share, colours), crf._odds(share, colours), atol=1e-5)
