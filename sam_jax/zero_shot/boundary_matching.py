"""Boundary pixels of an edge map against those of a person, as the benchmark of BSDS500 compares them.

Source: `bwmorph(..., 'thin', Inf)` of MATLAB (Guo and Hall 1989), and `correspondPixels` of the benchmark (Martin,
Fowlkes and Malik 2004), whose assignment is approximate; here it is exact.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

MAX_DISTANCE = 0.0075  # of the image's diagonal
# Neighbours of a pixel as (dy, dx), from the right one on, anticlockwise.
_AROUND = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))


def _deletable() -> np.ndarray:
    """(2, 256) bool: whether a pixel with such neighbours, a bit each, goes in the first and the second half-step."""
    x = (np.arange(256)[:, None] >> np.arange(8)) & 1 == 1
    after = np.roll(x, -1, axis=1)
    crossings = (~x[:, ::2] & (after[:, ::2] | after[:, 1::2])).sum(axis=1)
    pairs = (x[:, ::2] | after[:, ::2]).sum(axis=1), (x[:, 1::2] | after[:, 1::2]).sum(axis=1)
    fewest = np.minimum(*pairs)
    inner = (crossings == 1) & (fewest >= 2) & (fewest <= 3)
    first = (x[:, 1] | x[:, 2] | ~x[:, 7]) & x[:, 0]
    second = (x[:, 5] | x[:, 6] | ~x[:, 3]) & x[:, 4]
    return np.stack([inner & ~first, inner & ~second])


_DELETABLE = _deletable()


def thin(edges: np.ndarray) -> np.ndarray:
    """(H, W) bool -> (H, W) bool: lines one pixel wide, connected as before."""
    padded = np.pad(edges.astype(np.uint8), 1)
    flat, width = padded.ravel(), padded.shape[1]
    steps = np.array([dy * width + dx for dy, dx in _AROUND])
    weights = 1 << np.arange(8)
    places = np.flatnonzero(flat)
    changing = True
    while changing:
        before = len(places)
        for deletable in _DELETABLE:
            gone = deletable[flat[places[:, None] + steps] @ weights]
            flat[places[gone]] = 0
            places = places[~gone]
        changing = len(places) < before
    return padded[1:-1, 1:-1].astype(bool)


class Boundary:
    """A person's boundary, ready to be compared with many edge maps.

    Args:
      pixels: (H, W) bool.
      max_distance: of pixels that may correspond, as a share of the image's diagonal.
    """

    def __init__(self, pixels: np.ndarray, max_distance: float = MAX_DISTANCE) -> None:
        self.shape = pixels.shape
        reach = max_distance * math.hypot(*pixels.shape)
        side = math.ceil(reach)
        dy, dx = np.mgrid[-side : side + 1, -side : side + 1].reshape(2, -1)
        distance = np.hypot(dy, dx)
        near = np.argsort(distance, kind="stable")
        near = near[distance[near] <= reach]
        # Whole numbers: sums of others are never quite equal, for which the solver may go on and on.
        self._cost = 1 + np.round(100 * distance[near])
        self._margin = side
        ys, xs = np.nonzero(pixels)
        self.count = len(ys)
        width = pixels.shape[1] + 2 * side
        self._near = ((ys + side) * width + xs + side)[:, None] + (dy * width + dx)[near]

    def match(self, edges: np.ndarray) -> tuple[int, np.ndarray]:
        """As many pairs as there can be, one to one, of this boundary's pixels and an edge map's within reach.

        Args:
          edges: (H, W) bool.

        Returns:
          How many pairs, and (H, W) bool, the edge map's pixels in them.
        """
        ys, xs = np.nonzero(edges)
        numbers = np.full((edges.shape[0] + 2 * self._margin, edges.shape[1] + 2 * self._margin), -1, np.int32)
        numbers[self._margin + ys, self._margin + xs] = np.arange(len(ys))
        matched = np.zeros(edges.shape, bool)
        near = numbers.ravel()[self._near]
        there = near >= 0
        wanted, columns = np.unique(near[there], return_inverse=True)
        if not len(wanted):
            return 0, matched
        costs = np.broadcast_to(self._cost, near.shape)[there]
        pairs = wanted[_cheapest_pairs(columns, costs, there.sum(axis=1), len(wanted))]
        matched[ys[pairs], xs[pairs]] = True
        return len(pairs), matched


def _cheapest_pairs(columns: np.ndarray, costs: np.ndarray, degrees: np.ndarray, width: int) -> np.ndarray:
    """The columns of as many pairs of rows and columns as there can be, and of all such choices the cheapest.

    Args:
      columns, costs: (e,) of each possible pair, row after row.
      degrees: (n,) how many of them each row has.
      width: how many columns there are.
    """
    degrees = degrees[degrees > 0]
    starts = np.concatenate([[0], np.cumsum(degrees)])
    pairs = sparse.csr_array((costs, columns, starts), shape=(len(degrees), width))
    # Whoever finds no partner takes a stand-in, dearer than any detour; stand-ins of a pair take each other.
    dear = 100 * (costs.max() + 1)
    alone = [sparse.diags_array(np.full(count, dear)) for count in pairs.shape]
    idle = sparse.csr_array((np.ones(len(columns)), columns, starts), shape=pairs.shape).T
    whole = sparse.block_array([[pairs, alone[0]], [alone[1], idle]], format="csr")
    rows, found = min_weight_full_bipartite_matching(whole)
    chosen: np.ndarray = found[(rows < len(degrees)) & (found < width)]
    return chosen
