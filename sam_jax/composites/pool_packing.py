"""A pool as one small tar, to be carried to the machine that trains: images as WebP, regions without their images."""

from __future__ import annotations

import concurrent.futures
import functools
import io
import json
import pathlib
import tarfile
from typing import Any

from PIL import Image
from tqdm import tqdm

from sam_jax.composites.pool_files import LISTING, PoolFiles, parts_path
from sam_jax.rgb import to_rgb

PACKED_SIDE = 512  # shorter side of a photograph in pixels, at most: what the largest examples need
_QUALITY = {"RGB": 80, "RGBA": 82}


def pack_pool(root: str | pathlib.Path, out: str | pathlib.Path, val: bool = False) -> dict[str, int]:
    """Writes the pool at `root` to the tar `out`, which `load_pool` reads, and returns bytes by kind.

    What is held out (the split "val") is left behind unless `val` says otherwise.

    Cut-outs and photographs are encoded anew, with a little loss. Labelled images are taken as they are. Of a region,
    its RLEs alone: its image is that of the photograph that it was found in. The tar appears when it is complete.

    Raises FileNotFoundError if there is no pool at `root`.
    """
    pool, target = PoolFiles(root), pathlib.Path(out)
    chosen = [entry for entry in pool.entries if val or entry["split"] == "train"]
    backgrounds = {pathlib.Path(e["path"]).stem: _packed_path(e) for e in chosen if e["kind"] == "background"}
    unfinished = target.parent / f".{target.name}.unfinished"
    entries, sizes = [], dict[str, int]()
    try:
        with tarfile.open(unfinished, "w") as archive, concurrent.futures.ThreadPoolExecutor() as workers:
            packed = workers.map(functools.partial(_pack, pool), chosen)
            for entry, files in zip(chosen, tqdm(packed, "packing", len(chosen)), strict=True):
                for path, content in files.items():
                    _add(archive, path, content)
                    sizes[entry["kind"]] = sizes.get(entry["kind"], 0) + len(content)
                found_in = {"background": backgrounds[pathlib.Path(entry["path"]).stem]} if _is_region(entry) else {}
                entries.append({**entry, "path": _packed_path(entry), **found_in})
            _add(archive, LISTING, json.dumps({"files": entries}).encode())
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return sizes


def _is_region(entry: dict[str, Any]) -> bool:
    return entry["kind"] == "region"


def _packed_path(entry: dict[str, Any]) -> str:
    path = pathlib.PurePosixPath(entry["path"])
    if entry["kind"] == "labelled":
        return str(path)
    return str(path.with_suffix(".json" if _is_region(entry) else ".webp"))


def _pack(pool: PoolFiles, entry: dict[str, Any]) -> dict[str, bytes]:
    """The files that an entry becomes, by path."""
    path, name = entry["path"], _packed_path(entry)
    annotations = str(pathlib.PurePosixPath(path).with_suffix(".json"))
    if _is_region(entry):
        return {name: pool.read(annotations)}
    if entry["kind"] == "labelled":
        return {name: pool.read(path), annotations: pool.read(annotations)}
    if path == name:  # packed before
        return {name: pool.read(path), **_parts(pool, entry)}
    with Image.open(io.BytesIO(pool.read(path))) as file:
        image = to_rgb(file) if entry["kind"] == "background" else file.convert("RGBA")
        image.load()
    scale = PACKED_SIDE / min(image.size)
    if image.mode == "RGB" and scale < 1:
        image = image.resize([round(side * scale) for side in image.size], Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=_QUALITY[image.mode], alpha_quality=90, method=4)
    return {name: buffer.getvalue(), **_parts(pool, entry)}


def _parts(pool: PoolFiles, entry: dict[str, Any]) -> dict[str, bytes]:
    """What a rendered model has beside its image."""
    if entry["kind"] != "model":
        return {}
    return {parts_path(_packed_path(entry)): pool.read(parts_path(entry["path"]))}


def _add(archive: tarfile.TarFile, path: str, content: bytes) -> None:
    member = tarfile.TarInfo(path)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))
