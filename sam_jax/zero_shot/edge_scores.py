"""Scoring edge maps of many images: several processes, counts kept on disk, so that a run that was cut off goes on."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
from etils import epath
from PIL import Image
from tqdm import tqdm

from sam_jax.batch.image_list import ImageFile
from sam_jax.files import write_atomically
from sam_jax.inference.images import ImageError, read_image
from sam_jax.zero_shot.boundary_benchmark import (
    BoundaryScores,
    GroundTruthError,
    count_matches,
    cuts,
    read_boundaries,
    score,
)
from sam_jax.zero_shot.edge_floors import draw_floor

# Where boundaries lie below what --bsds names: the .mat files themselves, one folder per split, or the whole data set.
_PLACES = ("*.mat", "*/*.mat", "data/groundTruth/*/*.mat", "BSDS500/data/groundTruth/*/*.mat")
# Of this program's way to count: old counts are not taken for new ones.
_COUNTING = "1"


@dataclass(frozen=True)
class EdgeMap:
    """An image's edges and what they are compared with.

    Attributes:
      name: of the image, for messages.
      source: the file that holds the edges, or the image of which `floor` makes some.
      boundaries: a .mat file of BSDS500.
      counts: where the counts are kept.
      floor: which of `edge_floors`; None means that `source` holds edges.
    """

    name: str
    source: str
    boundaries: str
    counts: str
    floor: str | None = None


def find_boundaries(images: Sequence[ImageFile], directory: epath.PathLike) -> dict[str, str]:
    """The .mat file of each image that has one, by the image's path: both have the same name but for the suffix.

    Raises:
      GroundTruthError: there are none below the directory, or none of these images.
    """
    folder = epath.Path(directory)
    found = {path.stem: os.fspath(path) for place in _PLACES for path in folder.glob(place)}
    if not found:
        raise GroundTruthError(f"{directory} has no .mat files; expected BSDS500 or its groundTruth folder")
    stems = {image.path: epath.Path(image.path).stem for image in images}
    matching = {path: found[stem] for path, stem in stems.items() if stem in found}
    if not matching:
        known, given = next(iter(found)), next(iter(stems.values()))
        raise GroundTruthError(
            f"{directory} has boundaries of none of the images: it knows {known!r}, and there is {given!r}"
        )
    return matching


def score_maps(
    maps: Sequence[EdgeMap], thresholds: int, processes: int, name: str
) -> tuple[BoundaryScores | None, list[str]]:
    """The scores of a set of edge maps, and a line on each that could not be compared.

    Args:
      thresholds: how many.
      processes: that count; each takes an image at a time.
      name: for the progress bar.
    """
    counts, failures = [], []
    for found in tqdm(_counted(maps, thresholds, processes), total=len(maps), desc=name, unit="image", disable=None):
        if isinstance(found, str):
            failures.append(found)
        else:
            counts.append(found)
    return (score(np.array(counts), cuts(thresholds)) if counts else None), failures


def _counted(maps: Sequence[EdgeMap], thresholds: int, processes: int) -> Iterator[np.ndarray | str]:
    if processes == 1 or len(maps) < 2:
        for one in maps:
            yield count_map(one, thresholds)
        return
    # Fresh processes, not copies of this one, whose threads would be missing.
    with ProcessPoolExecutor(min(processes, len(maps)), multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(count_map, maps, [thresholds] * len(maps))


def count_map(edge_map: EdgeMap, thresholds: int) -> np.ndarray | str:
    """Counts (thresholds, 4) of one map, from disk where they are there; or what is wrong with it."""
    try:
        source, truth = (epath.Path(path).read_bytes() for path in (edge_map.source, edge_map.boundaries))
        made_of = hashlib.sha256(b"\0".join([source, truth, f"{edge_map.floor} {thresholds} {_COUNTING}".encode()]))
        kept = epath.Path(edge_map.counts)
        if kept.exists():
            earlier = json.loads(kept.read_text())
            if earlier.get("made_of") == made_of.hexdigest():
                return np.array(earlier["counts"], np.int64)
        counts = count_matches(_edges(edge_map, source), read_boundaries(edge_map.boundaries), cuts(thresholds))
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, json.dumps({"made_of": made_of.hexdigest(), "counts": counts.tolist()}).encode())
    except (GroundTruthError, ImageError, OSError, ValueError) as error:
        return f"{edge_map.name}: {error}"
    return counts


def _edges(edge_map: EdgeMap, content: bytes) -> np.ndarray:
    """(H, W) uint8."""
    if edge_map.floor is not None:
        return draw_floor(edge_map.floor, read_image(edge_map.source))
    with Image.open(io.BytesIO(content)) as image:
        if image.mode not in ("L", "1"):
            raise ImageError(
                f"{edge_map.source} has the mode {image.mode}; expected grey edges of 8 bits, 255 for certain"
            )
        return np.asarray(image.convert("L"))
