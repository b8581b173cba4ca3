"""Annotators who know the answer, and stores that they have labelled."""

from types import SimpleNamespace

from sam_jax.config import vit_tiny
from sam_jax.engine.finding import LoadedVersion
from sam_jax.ops.rle import encode_mask
from tests.engine.stores import draft, make_store, rectangle

LARGE, SMALL = rectangle(2, 2, 20, 30), rectangle(21, 30, 28, 38)


def present(store):
    """The store's present version with the bundled model's config, for what stands in for its masks."""
    return LoadedVersion(store.present(), SimpleNamespace(config=vit_tiny()), None)


def label(store, image, masks, annotator="ada", **fields):
    """Labels an image from the first mask to "done"."""
    task = store.claim_next(annotator, image_id=image.id)
    for mask in masks:
        store.save_mask(task.id, annotator, draft(mask, **fields), version=0)
    return store.finish(task.id, annotator, seconds=10.0)


def labelled_store(tmp_path, count=6, hold_out=0.5, masks=2):
    """A store whose images all have masks by people; about half of the images are held out, at least one is not."""
    store = make_store(tmp_path, count, hold_out=hold_out)
    for image in store.images():
        label(store, image, [rectangle(2, 3 + 2 * number, 20, 30, image.size) for number in range(masks)])
    assert 0 < store.count_images(held_out=True) < count
    return store


class Rectangles:
    """Stands in for `EverythingSegmenter`: the same rectangles in every image. `before` is called for each image."""

    def __init__(self, masks, before=lambda image: None):
        self.masks, self.before, self.images = masks, before, 0

    def __call__(self, model, variables, **options):
        self.options = options
        return self

    def find(self, image, objects):
        self.before(self.images)
        self.images += 1
        return self.masks

    def records(self, found, size):
        return [
            {
                "segmentation": encode_mask(mask),
                "area": int(mask.sum()),
                "bbox": [0, 0, 1, 1],
                "predicted_iou": 0.9,
                "point_coords": [[3.0, 4.0]],
                "stability_score": 0.97,
                "crop_box": [0, 0, size[1], size[0]],
            }
            for mask in found
        ]

    def on_device(self, device):
        return self
