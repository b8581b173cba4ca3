"""Adds many images to a store."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from tqdm import tqdm

from sam_jax.batch.image_list import find_images
from sam_jax.engine.store import Store
from sam_jax.inference.images import ImageError


@dataclasses.dataclass(frozen=True)
class Added:
    """What became of them.

    Attributes:
      new: images that were added. known: those that the store had. problems: a line for each that cannot be used.
    """

    new: int
    known: int
    problems: list[str]


def add_images(store: Store, inputs: Sequence[str], link: bool = False) -> Added:
    """Adds images; bad ones are left out. Adding the same once more changes nothing, so that a stopped run goes on.

    Args:
      inputs: files, directories, patterns or @lists, as `find_images` takes them; local or gs://.
      link: link to the files rather than copy them.

    Raises:
      ValueError: an input does not exist, or there is no image at all.
    """
    new, known, problems = 0, 0, list[str]()
    for file in tqdm(find_images(inputs, exclude=store.directory), unit="image", desc="add", disable=None):
        try:
            _, is_new = store.add_image(file.path, link)
            new, known = new + is_new, known + (not is_new)
        except (ImageError, FileNotFoundError, IsADirectoryError, PermissionError) as error:
            problems.append(str(error) if isinstance(error, ImageError) else f"{file.path} cannot be read ({error})")
    return Added(new, known, problems)
