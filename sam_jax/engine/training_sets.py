"""What a round of training learns from and is judged by: copies of a store's masks as they stood when it began.

SET/train, SET/held_out    sa_<image id>.jpg and .json each, in SA-1B's format: what training and evaluation read
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from sam_jax.engine.exports import sa1b_record
from sam_jax.engine.rows import ASSISTED, AUTOMATIC, SEMI_AUTOMATIC, ImageRow, MaskRow
from sam_jax.engine.schema import StoreError
from sam_jax.engine.store import Store
from sam_jax.inference.exports import to_sa1b
from sam_jax.inference.images import read_image

TRAIN, HELD_OUT = "train", "held_out"
_BY_PEOPLE = (ASSISTED, SEMI_AUTOMATIC)
_ORIENTATION = 0x0112  # EXIF's tag; 1 is upright


@dataclasses.dataclass(frozen=True)
class Counts:
    """What a round has: images with masks, and these, to train on and to be judged by.

    Attributes:
      digest: of the masks to train on; the same if none was added, changed or deleted.
    """

    images: int
    masks: int
    held_out_images: int
    held_out_masks: int
    digest: str


def labelled(store: Store, held_out: bool, automatic: bool) -> Iterator[tuple[ImageRow, list[MaskRow]]]:
    """Images with the accepted masks that a round takes of them.

    Held-out images give those that people have made or accepted, whatever `automatic` is: a model's own answers say
    nothing about how good it is.
    """
    stages = _BY_PEOPLE if held_out or not automatic else (*_BY_PEOPLE, AUTOMATIC)
    for image, masks in store.labelled_images(held_out=held_out):
        if wanted := [mask for mask in masks if mask.stage in stages or (mask.from_model and mask.version > 1)]:
            yield image, wanted


def count_masks(store: Store, automatic: bool) -> Counts:
    """What there is to train on and to be judged by."""
    digest = hashlib.sha256()
    images, masks = [0, 0], [0, 0]
    with store.snapshot():
        for held_out in (False, True):
            for _, found in labelled(store, held_out, automatic):
                images[held_out] += 1
                masks[held_out] += len(found)
                for mask in () if held_out else found:
                    digest.update(f"{mask.key} {mask.version}\n".encode())
    return Counts(images[0], masks[0], images[1], masks[1], digest.hexdigest()[:16])


def check_counts(counts: Counts, hold_out: float) -> None:
    """Raises StoreError if there is too little to train on or to be judged by."""
    if not counts.images:
        raise StoreError(
            "no image that may be trained on has an accepted mask; label some first (sam-jax engine serve), or have "
            "the masks of stage 3 count, too (--automatic)"
        )
    if not counts.held_out_images:
        raise StoreError(
            "no held-out image has a mask that people made or accepted, so that nobody could say whether a new model "
            f"is better; label some of them: {hold_out:.0%} of all images are held out"
        )


def write_sets(store: Store, directory: Path, automatic: bool) -> None:
    """Writes both sets. The directory appears under its name only when it is complete."""
    unfinished = directory.with_name(f".{directory.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    with store.snapshot():
        for name, held_out in ((TRAIN, False), (HELD_OUT, True)):
            folder = unfinished / name
            folder.mkdir(parents=True)
            for image, masks in tqdm(labelled(store, held_out, automatic), desc=name, unit="image", disable=None):
                _write_pair(store, folder, image, masks)
    os.rename(unfinished, directory)


def _write_pair(store: Store, folder: Path, image: ImageRow, masks: list[MaskRow]) -> None:
    stem = f"sa_{image.id}"
    _place_image(store.image_path(image), folder / f"{stem}.jpg")
    content = to_sa1b(map(sa1b_record, masks), image.size, f"{stem}.jpg", image.id)
    (folder / f"{stem}.json").write_text(json.dumps(content))


def _place_image(source: Path, target: Path) -> None:
    """Links to an image, so that its bytes, by which embeddings are kept, stay the same; turns those upright that a
    camera held sideways, since masks are of the upright image and training reads pixels as stored."""
    with Image.open(source) as opened:
        upright = opened.getexif().get(_ORIENTATION, 1) == 1
    if upright:
        target.symlink_to(os.path.relpath(source, target.parent))
        return
    buffer = io.BytesIO()
    Image.fromarray(read_image(source)).save(buffer, "PNG")  # PIL goes by the content, whatever the name
    target.write_bytes(buffer.getvalue())
