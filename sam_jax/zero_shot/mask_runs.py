"""The work behind `sam-jax zero-shot proposals` and `instances`: results of a run put together, scored and shown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from sam_jax.batch.image_list import ImageFile, ImageList
from sam_jax.batch.prompt_files import PromptTable
from sam_jax.batch.result_files import ResultFiles
from sam_jax.evaluation.report.html import html_table, image_figure, text_table, whole_page
from sam_jax.files import write_atomically
from sam_jax.inference.images import ImageError, read_image
from sam_jax.inference.overlays import overlay_masks, side_by_side
from sam_jax.ops.rle import decode_mask
from sam_jax.zero_shot.coco_scores import Annotations

FORMAT = "sam_jax.zero_shot.v1"
SHOWN_IMAGES, SHOWN_MASKS = 6, 40
PAPER = {
    "proposals": {
        "LVIS, ViT-H": "AR@1000 .593, small .455, medium .816, large .869, frequent .591, common .639, rare .658",
        "LVIS, ViT-H, single output": "AR@1000 .549",
    },
    "instances": {
        "COCO, ViT-H, boxes of ViTDet-H": "AP .465, small .308, medium .510, large .617",
        "LVIS, ViT-H, boxes of ViTDet-H": "AP .447, small .325, medium .576, large .655",
    },
}


class ImageIds:
    """The number by which results name an image: that of the prompts or the annotations, or else its own.

    Raises:
      ValueError: there are annotations, and they have none of the images.
    """

    def __init__(self, images: ImageList, annotations: Annotations | None, prompts: PromptTable | None = None) -> None:
        self._names = {} if annotations is None else annotations.names()
        self._known = set() if annotations is None else annotations.image_ids
        self._prompts = prompts
        if annotations is not None and not any(self(image) in self._known for image in images):
            first, named = images[0].file_name, next(iter(self._names), "none")
            raise ValueError(f"{annotations.path} has none of the images: it names {named!r}, and there is {first!r}")

    def __call__(self, image: ImageFile) -> Any:
        given = None if self._prompts is None else self._prompts.of(image).image_id
        if given is not None:
            return given
        return self._names.get(epath.Path(image.file_name).name, image.image_id)


def read_results(
    files: ResultFiles, images: ImageList, ids: ImageIds, annotations: Annotations
) -> tuple[epath.Path, list]:
    """Writes one COCO results file of all images; its path, and its entries of images that the annotations have."""
    path = files.write_coco(images, ids)
    known = annotations.image_ids
    return path, [entry for entry in json.loads(path.read_text()) if entry["image_id"] in known]


def only_images(annotations: Annotations, done: set[Any]) -> Annotations:
    """The annotations of images that were done: those of others are nobody's fault."""
    document = annotations.document
    document["images"] = [image for image in document["images"] if image["id"] in done]
    document["annotations"] = [one for one in document["annotations"] if one["image_id"] in done]
    return annotations


def show_scores(
    task: str,
    scores: Mapping[str, float],
    files: ResultFiles,
    images: Sequence[ImageFile],
    about: Mapping[str, Any],
) -> None:
    """Prints scores, and writes report.json and report.html with images into the results' directory."""
    header, row = ["", *scores], [str(about["checkpoint"]), *(f"{value:.3f}" for value in scores.values())]
    print(text_table([header, row]))
    content = {"format": FORMAT, "task": task, **about, "scores": dict(scores)}
    shown = [figure for image in images[:SHOWN_IMAGES] if (figure := _figure(files, image))]
    parts = [
        html_table(header, [row]),
        html_table(["SAM paper", "zero-shot"], [list(item) for item in PAPER[task].items()]),
        *shown,
    ]
    page = files.out / "report.html"
    write_atomically(page, whole_page(task.capitalize(), f"Zero-shot {task}", parts).encode())
    write_atomically(files.out / "report.json", (json.dumps(content, indent=1) + "\n").encode())
    print(f"wrote {page}")


def _figure(files: ResultFiles, image: ImageFile) -> str | None:
    content = files.read(image)
    if content is None:
        return None
    try:
        pixels = read_image(image.path)
    except ImageError:
        return None
    masks = [decode_mask(record["segmentation"]) for record in content["annotations"][:SHOWN_MASKS]]
    caption = f"{image.file_name}: {len(masks)} of {len(content['annotations'])} masks"
    return image_figure(side_by_side([pixels, overlay_masks(pixels, masks)], 560), caption)
