"""A pool of cut-outs, photographs and labelled images, collected from public packages.

`sam-jax data pool DIR` writes the pool, `sam-jax data pool-label DIR` adds regions that GrabCut finds in its
photographs, and `sam-jax data pool-render DIR` 3-D models (`pool_models.py`); `load_pool(DIR, split)` reads it.
"""

import concurrent.futures
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from sam_jax.composites import pool_packages
from sam_jax.composites.grabcut_regions import find_grabcut_regions, outlines_an_edge
from sam_jax.composites.pool_files import PoolFiles, open_directory, parts_path, write_listing
from sam_jax.composites.pool_packages import Found
from sam_jax.composites.rendered_models import Rendering
from sam_jax.rgb import to_rgb

CUTOUT_SIDE = 384  # largest longer side in pixels
RENDERED_SIDE = 224  # emoji are many and smooth: fewer pixels save memory
BACKGROUND_SIDE = 640  # largest shorter side in pixels
REGION_SIDE = 448  # largest longer side in pixels
REGION_TRIES = 30  # random boxes per photograph
VAL_ONE_IN = 10
# How often an image of each package is drawn among images of the same use, for any number of files.
CUTOUT_SHARE = {
    "tuxpaint-stamps-default": 0.60,
    "sweethome3d-furniture": 0.23,
    "@lobehub/fluent-emoji-3d": 0.12,
    "endless-sky-data": 0.05,
}
BACKGROUND_SHARE = {
    "endless-sky-data": 0.35,
    "lomiri-wallpapers-16.04": 0.06,
    "mate-backgrounds": 0.06,
    "plasma-workspace-wallpapers": 0.05,
    "gnome-backgrounds": 0.01,
}
OTHER_SHARE = 0.47  # for each folder of the user


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledImage:
    """An image with real masks.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        segmentations: compressed COCO RLEs of size (H, W), one per mask.
    """

    image: np.ndarray
    segmentations: tuple[dict, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class CutoutPool:
    """One split of a pool, decoded in memory. Pickled by its path: workers read the pool again.

    Attributes:
        root: the pool's directory, or its tar.
        split: "train" or "val".
        cutouts: (h, w, 4) uint8 RGBA each, cropped to their alpha.
        cutout_cdf: (len(cutouts),) float64, cumulative probabilities by CUTOUT_SHARE.
        backgrounds: (h, w, 3) uint8 RGB each.
        background_cdf: (len(backgrounds),) float64, cumulative probabilities by BACKGROUND_SHARE.
        labelled: images with real masks; may be empty.
        regions: backgrounds with regions from `label_pool`; may be empty.
        models: rendered models with their parts from `render_pool`; may be empty.
    """

    root: str
    split: str
    cutouts: tuple[np.ndarray, ...]
    cutout_cdf: np.ndarray
    backgrounds: tuple[np.ndarray, ...]
    background_cdf: np.ndarray
    labelled: tuple[LabelledImage, ...]
    regions: tuple[LabelledImage, ...] = ()
    models: tuple[Rendering, ...] = ()

    def random_cutout(self, rng: np.random.Generator) -> np.ndarray:
        """(h, w, 4) uint8."""
        return _pick(rng, self.cutouts, self.cutout_cdf)

    def random_background(self, rng: np.random.Generator) -> np.ndarray:
        """(h, w, 3) uint8."""
        return _pick(rng, self.backgrounds, self.background_cdf)

    def __reduce__(self) -> tuple:
        return load_pool, (self.root, self.split)


def split_of(source: str) -> str:
    """ "val" for one in ten sources, by a hash of the path; else "train"."""
    digest = hashlib.sha1(source.encode(), usedforsecurity=False).digest()
    return "val" if digest[0] * 256 + digest[1] < 65536 // VAL_ONE_IN else "train"


def _read_image(pool: PoolFiles, path: str, mode: str) -> Image.Image:
    with Image.open(io.BytesIO(pool.read(path))) as file:
        image = to_rgb(file) if mode == "RGB" else file.convert(mode)
        image.load()  # what is RGB already would be read when it is first looked at
        return image


def _read_labelled(pool: PoolFiles, entry: dict) -> LabelledImage:
    annotations = json.loads(pool.read(str(pathlib.PurePosixPath(entry["path"]).with_suffix(".json"))))["annotations"]
    segmentations = tuple(annotation["segmentation"] for annotation in annotations)
    image = _read_image(pool, entry.get("background", entry["path"]), "RGB")
    if "background" in entry:  # a region of a packed pool
        h, w = segmentations[0]["size"]
        image = image.resize((w, h), Image.Resampling.BICUBIC)
    return LabelledImage(np.asarray(image), segmentations)


def _read_model(pool: PoolFiles, entry: dict) -> Rendering:
    parts = _read_image(pool, parts_path(entry["path"]), "L")
    return Rendering(np.asarray(_read_image(pool, entry["path"], "RGBA")), np.asarray(parts))


def _pick(rng: np.random.Generator, items: tuple[np.ndarray, ...], cdf: np.ndarray) -> np.ndarray:
    index = int(np.searchsorted(cdf, rng.random(), side="right"))
    return items[min(index, len(items) - 1)]  # cdf[-1] can round to just below one


def _cdf(entries: list[dict], shares: dict[str, float]) -> np.ndarray:
    packages = [entry["package"] for entry in entries]
    weights = np.array([shares.get(name, OTHER_SHARE) / packages.count(name) for name in packages])
    return np.cumsum(weights) / weights.sum()


def load_pool(root: str | pathlib.Path, split: str) -> CutoutPool:
    """Reads one split ("train" or "val") of the pool at `root`, a directory or a packed tar, into memory.

    Raises FileNotFoundError if there is no pool at `root`, ValueError if the split is unknown or has
    no cut-outs or no backgrounds.
    """
    if split not in ("train", "val"):
        raise ValueError(f"split must be 'train' or 'val', not {split!r}")
    pool = PoolFiles(root)
    entries = [entry for entry in pool.entries if entry["split"] == split]
    cutouts = [entry for entry in entries if entry["kind"].endswith("cutout")]
    backgrounds = [entry for entry in entries if entry["kind"] == "background"]
    labelled = [entry for entry in entries if entry["kind"] == "labelled"]
    regions = [entry for entry in entries if entry["kind"] == "region"]
    models = [entry for entry in entries if entry["kind"] == "model"]
    if not cutouts or not backgrounds:
        way_out = "; or set eval_every and overlay_every to 0" if split == "val" else ""
        raise ValueError(
            f"split {split!r} of {root}: {len(cutouts)} cut-outs, {len(backgrounds)} backgrounds; build the pool from "
            f"more files{way_out}"
        )

    def read(chosen: list[dict], mode: str) -> tuple:
        return tuple(workers.map(lambda entry: np.asarray(_read_image(pool, entry["path"], mode)), chosen))

    def read_labelled(chosen: list[dict]) -> tuple:
        return tuple(workers.map(lambda entry: _read_labelled(pool, entry), chosen))

    with concurrent.futures.ThreadPoolExecutor(max(4, os.cpu_count() or 1)) as workers:
        return CutoutPool(
            root=str(root),
            split=split,
            cutouts=read(cutouts, "RGBA"),
            cutout_cdf=_cdf(cutouts, CUTOUT_SHARE),
            backgrounds=read(backgrounds, "RGB"),
            background_cdf=_cdf(backgrounds, BACKGROUND_SHARE),
            labelled=read_labelled(labelled),
            regions=read_labelled(regions),
            models=tuple(workers.map(lambda entry: _read_model(pool, entry), models)),
        )


def _shrink(image: Image.Image, scale: float) -> Image.Image:
    if scale >= 1:
        return image
    return image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)


def _write_cutout(image: Image.Image, path: pathlib.Path, longest: int) -> bool:
    """Writes an RGBA cut-out, cropped to its alpha; returns False if it is of no use."""
    image = image.convert("RGBA")
    alpha = np.asarray(image)[..., 3]
    if alpha.min() > 127 or (alpha > 127).sum() < 200:  # opaque, or too small
        return False
    image = image.crop(image.getchannel("A").point(lambda value: 255 * (value > 16)).getbbox())
    _shrink(image, longest / max(image.size)).save(path)
    return True


def _write_background(image: Image.Image, path: pathlib.Path) -> bool:
    image = to_rgb(image)
    if min(image.size) < 128:
        return False
    _shrink(image, BACKGROUND_SIDE / min(image.size)).save(path, quality=92)
    return True


def _write_labelled(found: Found, path: pathlib.Path) -> bool:
    annotations = found.file.with_suffix(".json")
    if not annotations.is_file():
        return False
    shutil.copyfile(found.file, path)
    shutil.copyfile(annotations, path.with_suffix(".json"))
    return True


def _write(found: Found, out: pathlib.Path, number: int) -> str | None:
    """Writes an image into the pool; returns its path there, or None if it is of no use."""
    if found.kind == "labelled":
        name = f"labelled/{number:05d}.jpg"
        return name if _write_labelled(found, out / name) else None
    with Image.open(found.file) as image:
        if found.kind == "background":
            name = f"backgrounds/{number:05d}.jpg"
            return name if _write_background(image, out / name) else None
        name = f"cutouts/{number:05d}.png"
        longest = RENDERED_SIDE if found.kind == "rendered_cutout" else CUTOUT_SIDE
        return name if _write_cutout(image, out / name, longest) else None


def _find_all(
    packages: str | pathlib.Path | None, photos: tuple[str, ...], labelled: tuple[str, ...], work: pathlib.Path
) -> Iterator[Found]:
    for spec in photos:
        yield from pool_packages.find_in_folder(spec, "background")
    for spec in labelled:
        yield from pool_packages.find_in_folder(spec, "labelled")
    yield from pool_packages.find_in_packages(packages, work)


def build_pool(
    out: str | pathlib.Path,
    packages: str | pathlib.Path | None = None,
    photos: tuple[str, ...] = (),
    labelled: tuple[str, ...] = (),
) -> dict[str, int]:
    """Writes a pool to `out` and returns the number of files of each kind.

    Args:
        out: directory to write.
        packages: directory with the .deb and .tgz files; None downloads them.
        photos: folders of photographs, each as DIR or DIR=LICENCE.
        labelled: folders of SA-1B-style jpg + json pairs, each as DIR or DIR=LICENCE.

    Raises FileNotFoundError that names everything missing, before anything is written.
    """
    out = pathlib.Path(out)
    pool_packages.check_inputs(packages, (*photos, *labelled))
    for folder in ("cutouts", "backgrounds", "labelled"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    files = []
    with tempfile.TemporaryDirectory() as work:
        for number, found in enumerate(_find_all(packages, photos, labelled, pathlib.Path(work))):
            path = _write(found, out, number)
            if path:
                files.append({"path": path, **found.provenance(), "split": split_of(found.key)})
    write_listing(out, files)
    kinds = [entry["kind"] for entry in files]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


Finder = Callable[[np.random.Generator, np.ndarray], np.ndarray]


def _by_grabcut(rng: np.random.Generator, photo: np.ndarray) -> np.ndarray:
    return find_grabcut_regions(rng, photo, REGION_TRIES)


def _label(root: pathlib.Path, find: Finder, entry: dict) -> dict | None:
    """Writes a background with its regions into the pool; returns its entry, or None if there is no region in it."""
    with Image.open(root / entry["path"]) as photo:
        small = to_rgb(photo).copy()
    small.thumbnail((REGION_SIDE, REGION_SIDE))
    rng = np.random.default_rng(zlib.crc32(entry["path"].encode()))
    image = np.asarray(small)
    regions = [region for region in find(rng, image) if outlines_an_edge(image, region)]
    if not regions:
        return None
    path = f"regions/{pathlib.Path(entry['path']).stem}.jpg"
    small.save(root / path, quality=95)
    codes = [coco_mask.encode(np.asfortranarray(region.astype(np.uint8))) for region in regions]
    annotations = [{"segmentation": {**code, "counts": code["counts"].decode()}} for code in codes]
    (root / path).with_suffix(".json").write_text(json.dumps({"annotations": annotations}))
    return {**entry, "path": path, "kind": "region"}


def label_pool(root: str | pathlib.Path, find: Finder = _by_grabcut, threads: int | None = None) -> int:
    """Adds regions found in a pool's photographs, replacing those of an earlier call. Those whose outline is no edge of
    the photograph are left out. Returns the number of photographs with regions.

    Args:
        root: the pool's directory.
        find: (random generator, (h, w, 3) uint8) -> (n, h, w) bool; GrabCut unless given, which takes about a quarter
            of a second per photograph.
        threads: that call `find`; None means as many as suit this machine.

    Raises FileNotFoundError if there is no pool at `root`, ValueError if it is packed, ImportError without OpenCV for
    GrabCut.
    """
    root = pathlib.Path(root)
    entries = [entry for entry in open_directory(root).entries if entry["kind"] != "region"]
    (root / "regions").mkdir(exist_ok=True)
    backgrounds = [entry for entry in entries if entry["kind"] == "background"]
    with concurrent.futures.ThreadPoolExecutor(threads) as workers:
        found = list(tqdm(workers.map(lambda e: _label(root, find, e), backgrounds), "labelling", len(backgrounds)))
    added = [entry for entry in found if entry]
    write_listing(root, entries + added)
    return len(added)
