"""Adds images of 3-D models to a pool: `sam-jax data pool-render DIR`."""

from __future__ import annotations

import concurrent.futures
import pathlib
import tempfile
import warnings
import zlib
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from sam_jax.composites.pool import split_of
from sam_jax.composites.pool_files import open_directory, parts_path, write_listing
from sam_jax.composites.pool_packages import MODELS, FoundModel, check_inputs, find_models
from sam_jax.composites.rendered_models import ModelError, check_renderer, render_model


def render_pool(root: str | pathlib.Path, packages: str | pathlib.Path | None = None) -> int:
    """Adds an image of each 3-D model of the package of furniture to the pool at `root`, replacing those of an earlier
    call. Returns their number. Takes about half a second per model.

    Models that cannot be drawn are left out, with a warning. A model is held out if its icon is.

    Args:
        root: the pool's directory.
        packages: directory with the .deb file; None downloads it.

    Raises FileNotFoundError if there is no pool at `root` or the package is missing, ValueError if the pool is packed,
    ImportError without a renderer.
    """
    check_renderer()
    check_inputs(packages, (), (MODELS,))
    root = pathlib.Path(root)
    entries = [entry for entry in open_directory(root).entries if entry["kind"] != "model"]
    (root / "models").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as work, concurrent.futures.ThreadPoolExecutor() as workers:
        models = list(find_models(packages, pathlib.Path(work)))
        drawn = workers.map(lambda numbered: _draw(root, *numbered), enumerate(models))
        found = list(tqdm(drawn, "rendering", len(models)))
    for one in found:
        if isinstance(one, ModelError):
            warnings.warn(f"left out: {one}", stacklevel=2)
    added = [one for one in found if not isinstance(one, ModelError)]
    write_listing(root, entries + added)
    return len(added)


def _draw(root: pathlib.Path, number: int, model: FoundModel) -> dict[str, Any] | ModelError:
    """Writes the image of a model and its parts into the pool; returns its entry, or why it cannot be drawn."""
    rng = np.random.default_rng(zlib.crc32(model.found.key.encode()))
    rotation = None if model.rotation is None else np.reshape(model.rotation, (3, 3))
    try:
        rendering = render_model(model.found.file, rng, rotation)
    except ModelError as error:
        return error
    path = f"models/{number:05d}.png"
    Image.fromarray(rendering.rgba).save(root / path)
    Image.fromarray(rendering.parts).save(root / parts_path(path))
    return {"path": path, **model.found.provenance(), "split": split_of(model.icon_key)}
