"""The boundary benchmark on cases that can be counted by hand."""

import itertools
import math

import numpy as np
import pytest

from sam_jax.zero_shot.boundary_benchmark import (
    GroundTruthError,
    count_matches,
    cuts,
    read_boundaries,
    score,
)
from sam_jax.zero_shot.boundary_matching import Boundary, thin
from tests.zero_shot.bsds import square, write_boundaries

SIZE = 60, 80  # a diagonal of 100 pixels


def pixels(*places, size=SIZE):
    drawn = np.zeros(size, bool)
    for y, x in places:
        drawn[y, x] = True
    return drawn


def matched(found, truth, reach):
    """How many pairs, and the (y, x) of the found pixels among them."""
    pairs, right = Boundary(truth, reach / math.hypot(*found.shape)).match(found)
    assert pairs == right.sum()
    return pairs, set(zip(*map(list, np.nonzero(right)), strict=True))


def test_a_bar_becomes_a_line():
    bar = np.zeros(SIZE, bool)
    bar[20:25, 10:60] = True
    line = thin(bar)
    assert (line.sum(axis=0)[12:58] == 1).all()
    assert (line <= bar).all()


def test_thin_lines_stay_and_so_do_holes():
    outline = square(SIZE, 10, 20, 30)
    np.testing.assert_array_equal(thin(outline) | pixels((10, 20), (10, 49), (39, 20), (39, 49)), outline)
    assert not thin(np.zeros(SIZE, bool)).any()
    ring = square(SIZE, 10, 20, 30) | square(SIZE, 11, 21, 28) | square(SIZE, 12, 22, 26)
    inside = np.zeros(SIZE, bool)
    inside[15:30, 30:40] = True
    thinned = thin(ring)
    assert thinned.sum() < 130
    assert not thinned[inside].any()
    assert thinned[25, :40].sum() == 1


@pytest.mark.oracle
def test_thinning_is_that_of_matlab_as_scikit_image_has_it():
    from scipy import ndimage
    from skimage import morphology

    for seed in range(5):
        noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((91, 120)), 1 + seed)
        np.testing.assert_array_equal(thin(noise > 0), morphology.thin(noise > 0))


def test_pixels_correspond_within_reach():
    truth = pixels(*((10, x) for x in range(5, 15)))
    shifted = pixels(*((12, x) for x in range(5, 15)))
    assert matched(shifted, truth, 2.0)[0] == 10
    assert matched(shifted, truth, 1.9) == (0, set())
    assert matched(pixels(), truth, 2.0) == (0, set())
    assert matched(truth, pixels(), 2.0) == (0, set())


def test_one_to_one_and_the_nearer_one():
    assert matched(pixels((10, 12), (11, 10)), pixels((10, 10)), 3) == (1, {(11, 10)})


def test_as_many_pairs_as_there_can_be():
    """The pixel between both boundary pixels is nearer to the one that the other found pixel needs."""
    assert matched(pixels((10, 14), (10, 10)), pixels((10, 13), (10, 16)), 3)[0] == 2


@pytest.mark.parametrize("seed", range(3))
def test_the_cheapest_of_the_largest_matchings(seed):
    rng = np.random.default_rng(seed)
    truth, found = (rng.random((6, 7)) < 0.13 for _ in range(2))
    ours, theirs = np.argwhere(found), np.argwhere(truth)
    distance = np.hypot(*(ours[:, None] - theirs[None]).transpose(2, 0, 1))
    reach, best = 2.3, (0, 0.0, set())
    for count in range(1, min(len(ours), len(theirs)) + 1):
        for chosen in itertools.combinations(range(len(ours)), count):
            for partners in itertools.permutations(range(len(theirs)), count):
                lengths = distance[list(chosen), list(partners)]
                if (lengths <= reach).all() and (-count, lengths.sum()) < (-best[0], best[1]):
                    best = count, lengths.sum(), {tuple(map(int, ours[i])) for i in chosen}
    pairs, right = matched(found, truth, reach)
    assert pairs == best[0] > 0
    assert {tuple(map(int, place)) for place in right} == best[2]


def test_counts_of_two_people():
    """Reach is .75 pixels. Both draw one line, the second person another; the map has the first, surely, and dirt."""
    line, other, dirt = (pixels(*((y, x) for x in range(10, 30))) for y in (10, 30, 50))
    edges = (line * 200 + dirt * 100).astype(np.uint8)
    counts = count_matches(edges, [line, line | other], np.array([0.2, 0.6, 0.9]))
    assert counts.tolist() == [[40, 60, 20, 40], [40, 60, 20, 20], [0, 60, 0, 0]]


def test_scores_of_counts():
    """Two thresholds, two images that are best at different ones."""
    first = [[8, 10, 8, 16], [2, 10, 2, 2]]  # R .8 P .5, then R .2 P 1: F .615, .333
    second = [[6, 10, 6, 24], [6, 10, 6, 8]]  # R .6 P .25, then R .6 P .75: F .353, .667
    found = score(np.array([first, second]), np.array([0.25, 0.75]))
    # Together: R .7 P .35, then R .4 P .8. The best F lies .62 of the way from one to the other: R .514, P .629.
    assert found.ods == pytest.approx(2 * 0.514 * 0.629 / (0.514 + 0.629), abs=1e-4)
    assert found.threshold == pytest.approx(0.25 + 0.62 * 0.5, abs=0.01)
    assert (found.recall, found.precision) == (pytest.approx(0.514, abs=0.01), pytest.approx(0.629, abs=0.01))
    assert (found.ois_recall, found.ois_precision) == (14 / 20, 14 / 24)
    assert found.ois == pytest.approx(2 * 14 / (20 + 24))
    # Precision falls from .8 at recall .4 to .35 at .7, and is 0 elsewhere: 31 recalls, .575 in the middle.
    assert found.ap == pytest.approx(31 * 0.575 / 100)
    assert found.r50 == pytest.approx(0.4 + 0.3 * (0.8 - 0.5) / (0.8 - 0.35))
    assert found.curve == ((0.25, 0.7, 0.35), (0.75, 0.4, 0.8))


def test_one_threshold_and_nothing_found():
    one = score(np.array([[[5, 10, 5, 5]]]), cuts(1))
    assert (one.threshold, one.recall, one.precision, one.ap) == (0.5, 0.5, 1.0, 0.0)
    assert one.ods == pytest.approx(2 / 3)
    none = score(np.array([[[0, 10, 0, 0]] * 3]), cuts(3))
    assert (none.ods, none.ois, none.ap, none.r50) == (0, 0, 0, 0)


def test_agreement_scores_high_and_noise_low():
    people = [square((120, 160), 30 + shift, 40 + shift, 60) for shift in (0, 0, 1, 1)]
    agreement = np.round(255 * np.mean(people, axis=0)).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (120, 160)).astype(np.uint8)
    thresholds = cuts(9)
    good, bad = (score(count_matches(e, people, thresholds)[None], thresholds) for e in (agreement, noise))
    assert good.ods > 0.98
    assert good.r50 > 0.97
    assert bad.ods < 0.15
    assert bad.ap < 0.05


def test_files_of_bsds(tmp_path):
    people = [square(SIZE, 10, 10, 20), square(SIZE, 12, 10, 20)]
    found = read_boundaries(write_boundaries(tmp_path / "1.mat", people))
    assert all(np.array_equal(one, person) for one, person in zip(found, people, strict=True))


def test_mistakes(tmp_path):
    (tmp_path / "text.mat").write_text("no file of MATLAB")
    with pytest.raises(GroundTruthError, match=r"text.mat has no groundTruth\{i\}.Boundaries"):
        read_boundaries(tmp_path / "text.mat")
    with pytest.raises(GroundTruthError, match="nobody's"):
        read_boundaries(write_boundaries(tmp_path / "none.mat", []))
    with pytest.raises(GroundTruthError, match="edges of 80x60 pixels and boundaries of 60x80"):
        count_matches(np.zeros(SIZE, np.uint8), [np.zeros(SIZE[::-1], bool)], cuts(3))
