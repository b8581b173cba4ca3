"""Layouts of published data sets: functions that list images with their labels below a directory.

Each `..._in` takes the specifics of a data set and returns a function from its root to its files, for the table in
`paper_sets`. If a data set is commonly unpacked in several ways, the patterns are tried in turn.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
from etils import epath

from sam_jax.data.records import DataError
from sam_jax.data.segmentations import Rle, Size, to_rles
from sam_jax.evaluation.sets.annotation_files import (
    LabelledFile,
    coco_files,
    via_files,
    visor_files,
    woodscape_segmentations,
    youtube_vis_files,
)
from sam_jax.evaluation.sets.image_sets import read_objects
from sam_jax.evaluation.sets.label_maps import read_label_map, split_label_map
from sam_jax.ops.rle import encode_mask

Finder = Callable[[epath.Path], list[LabelledFile]]
MasksOf = Callable[[Any, Size], list[Rle]]
VOID = 255  # "not labelled" in semantic labels


def matching(root: epath.Path, *patterns: str) -> list[epath.Path]:
    """The sorted files of the first pattern that matches any; `**` is any depth of directories. Raises DataError if
    none matches."""
    for pattern in patterns:
        if found := sorted(_below(root, pattern.split("/"))):
            return found
    raise DataError(f"{root} has no {' nor '.join(patterns)}")


def _below(folder: epath.Path, parts: list[str]) -> Iterator[epath.Path]:
    """Paths that match a pattern's parts. epath's own glob has no `**`, and misreads brackets in the root's name."""
    head, rest = parts[0], parts[1:]
    if head == "**":
        yield from _below(folder, rest)
        for entry in folder.iterdir() if folder.is_dir() else ():
            if entry.is_dir():
                yield from _below(entry, parts)
        return
    entries: Iterable[epath.Path] = ()
    if "*" not in head:
        entries = [folder / head] if (folder / head).exists() else []
    elif folder.is_dir():
        entries = (entry for entry in folder.iterdir() if fnmatchcase(entry.name, head))
    for entry in entries:
        if rest:
            yield from _below(entry, rest)
        else:
            yield entry


def pairs_in(*patterns: str, swap: Sequence[tuple[str, str]], only: Sequence[str] = (), skip: bool = False) -> Finder:
    """Images by pattern; the path of the labels is that of the image with some text replaced.

    Args:
      patterns: of images, below the root.
      swap: (text, replacement) pairs, applied in turn to the path below the root.
      only: file names must start with one of these, ignoring case.
      skip: leave out images without labels; otherwise they fail when they are read.
    """

    def find(root: epath.Path) -> list[LabelledFile]:
        files = []
        for image in matching(root, *patterns):
            label = image.relative_to(root).as_posix()
            if only and not image.name.lower().startswith(tuple(only)):
                continue
            for old, new in swap:
                label = label.replace(old, new)
            if not skip or (root / label).exists():
                files.append(LabelledFile(image, root / label))
        return files

    return find


def coco_in(*patterns: str, images: str) -> Finder:
    """COCO files by pattern; `images` is the directory of the images, relative to each file's directory."""

    def find(root: epath.Path) -> list[LabelledFile]:
        return [f for path in matching(root, *patterns) for f in coco_files(path, [path.parent / images])]

    return find


def lvis_in(*patterns: str) -> Finder:
    """The first LVIS file found; images in train2017/ and val2017/ of the root, its parent, or coco/ in either."""

    def find(root: epath.Path) -> list[LabelledFile]:
        return coco_files(matching(root, *patterns)[0], [root, root / "coco", root.parent, root.parent / "coco"])

    return find


def via_in(*places: tuple[str, str]) -> Finder:
    """All of some VIA files: (file, directory of images) pairs, below the root."""

    def find(root: epath.Path) -> list[LabelledFile]:
        return [file for path, images in places for file in via_files(root / path, root / images)]

    return find


def youtube_vis_in(path: str, frames: str) -> Finder:
    """One YouTube-VIS file."""
    return lambda root: youtube_vis_files(root / path, root / frames)


def visor_in(split: str) -> Finder:
    """One split of VISOR; the root is GroundTruth-SparseAnnotations/ or its parent."""

    def find(root: epath.Path) -> list[LabelledFile]:
        inner = root / "GroundTruth-SparseAnnotations"
        root = inner if inner.is_dir() else root
        return visor_files(matching(root, f"annotations/{split}/*.json"), root / "rgb_frames" / split)

    return find


def nonzero(path: epath.Path, size: Size) -> list[Rle]:
    """One object: every pixel of the label image that is not 0."""
    mask = read_label_map(path, size) != 0
    return [encode_mask(mask)] if mask.any() else []


def classes(path: epath.Path, size: Size) -> list[Rle]:
    """A semantic label image: one mask per class except 0 (background) and 255 (not labelled)."""
    return split_label_map(read_label_map(path, size), lambda values: (values != 0) & (values != VOID))


def mask_files(path: epath.Path, size: Size) -> list[Rle]:
    """All .png files in the directory of `path`, one per object; `path` itself need not exist."""
    folder = path.parent
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error}); expected an image per object there") from None
    return [rle for file in files if file.suffix.lower() == ".png" for rle in nonzero(file, size)]


# Label ids of cityscapesScripts' helpers/labels.py that are evaluated: stuff, and things with instances.
_STUFF = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23)
_THINGS = (24, 25, 26, 27, 28, 31, 32, 33)


def cityscapes_segments(path: epath.Path, size: Size) -> list[Rle]:
    """Panoptic segments of a Cityscapes instanceIds image.

    A value below 1000 is a class; larger values are class x 1000 + instance. Each stuff class is one segment. Things
    without an instance number are groups and left out, as are classes that Cityscapes does not evaluate.
    """

    def keep(values: np.ndarray) -> np.ndarray:
        return np.isin(values, _STUFF) | ((values >= 1000) & np.isin(values // 1000, _THINGS))

    return split_label_map(read_label_map(path, size), keep)


def ade20k_objects(path: epath.Path, size: Size) -> list[Rle]:
    """Objects of ..._seg.png and parts of ..._parts_1.png, _parts_2.png, ...: one mask per colour except black.

    Red and green encode the class, blue the instance.
    """
    found = read_objects(path, size)
    level = 1
    while (parts := path.parent / path.name.replace("_seg.png", f"_parts_{level}.png")).exists():
        found += read_objects(parts, size)
        level += 1
    return found


def hypersim_instances(path: epath.Path, size: Size) -> list[Rle]:
    """`dataset` (H, W) of a semantic_instance.hdf5: one mask per id above 0; -1 means no instance."""
    try:
        import h5py
    except ImportError:
        raise DataError("Hypersim's labels are HDF5 files; install h5py (pip install h5py)") from None
    try:
        with h5py.File(io.BytesIO(path.read_bytes()), "r") as file:
            ids = np.asarray(file["dataset"]).astype(np.int64)
    except (OSError, KeyError) as error:
        raise DataError(f"{path} cannot be read ({error}); expected HDF5 with a 'dataset'") from None
    if ids.shape != tuple(size):
        raise DataError(f"{path} has shape {ids.shape}, its image {tuple(size)}")
    return split_label_map(ids, lambda values: values > 0)


def woodscape_objects(path: epath.Path, size: Size) -> list[Rle]:
    """All polygons of one WoodScape file."""
    return to_rles(woodscape_segmentations(path), size)
