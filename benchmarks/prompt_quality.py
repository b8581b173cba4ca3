"""How good are the masks? Box and one-click quality on a labelled set, without any learning on it.

    python benchmarks/prompt_quality.py DIR [DIR ...] [--checkpoint MODEL_DIR] [--json OUT.json]

Each DIR holds SA-1B-format pairs: name.jpg and name.json with compressed RLE masks. For every mask:
  box         its tight box as prompt, single-mask output
  click       its most interior point (maximum of the distance transform), three masks: the one with the highest
              predicted IoU
  best of 3   the same click, the best of the three masks
Printed: mean IoU over masks, with a 95 % bootstrap interval over images.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from scipy import ndimage
from tqdm import tqdm

import sam_jax
from sam_jax.ops.masks import mask_to_box
from sam_jax.ops.rle import decode_mask

COLUMNS = ("box", "click", "best of 3")


def interior_point(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool -> (2,) x, y of the pixel farthest from the mask's border; the photo's border counts as one."""
    distance = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(distance.argmax(), mask.shape)
    return np.array([x, y], float)


def iou(predicted: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(..., H, W) bool against (H, W) bool -> (...)."""
    union = (predicted | target).sum(axis=(-2, -1))
    return (predicted & target).sum(axis=(-2, -1)) / np.maximum(union, 1)


def score_photo(predictor: sam_jax.SamPredictor, image: np.ndarray, targets: list[np.ndarray]) -> np.ndarray:
    """(masks, 3) IoU in the order of COLUMNS."""
    predictor.set_image(image)
    boxes = np.array([mask_to_box(mask) + np.array([0, 0, 1, 1]) for mask in targets], float)  # outer pixel edges
    points = np.array([interior_point(mask) for mask in targets])
    boxed = predictor.predict_many(boxes=boxes, multimask_output=False)
    clicked = predictor.predict_many(points[:, None], np.ones((len(points), 1)), multimask_output=True)
    rows = []
    for i, target in enumerate(targets):
        three = iou(clicked.masks[i], target)
        rows.append((iou(boxed.masks[i, 0], target), three[clicked.iou_predictions[i].argmax()], three.max()))
    return np.array(rows)


def bootstrap_interval(per_photo: list[np.ndarray], rounds: int = 1000) -> np.ndarray:
    """(2, 3) 2.5 % and 97.5 % quantiles of the mean over masks when photos are drawn with replacement."""
    rng = np.random.default_rng(0)
    sums, counts = np.array([rows.sum(axis=0) for rows in per_photo]), np.array([len(rows) for rows in per_photo])
    draws = rng.integers(len(per_photo), size=(rounds, len(per_photo)))
    return np.quantile(sums[draws].sum(axis=1) / counts[draws].sum(axis=1)[:, None], (0.025, 0.975), axis=0)


def score_folder(predictor: sam_jax.SamPredictor, folder: Path) -> dict[str, object]:
    """Scores every photo of a folder and prints one line."""
    per_photo = []
    for file in tqdm(sorted(folder.glob("*.json")), desc=folder.name, leave=False):
        targets = [decode_mask(a["segmentation"]) for a in json.loads(file.read_text())["annotations"]]
        targets = [mask for mask in targets if mask.any()]
        if targets:
            per_photo.append(score_photo(predictor, sam_jax.read_image(file.with_suffix(".jpg")), targets))
    if not per_photo:
        raise ValueError(f"{folder} holds no name.jpg + name.json pairs with masks")
    mean, (low, high) = np.concatenate(per_photo).mean(axis=0), bootstrap_interval(per_photo)
    masks = sum(map(len, per_photo))
    cells = [f"{name} {m:.3f} [{a:.3f}, {b:.3f}]" for name, m, a, b in zip(COLUMNS, mean, low, high, strict=True)]
    print(f"{folder.name}: {len(per_photo)} photos, {masks} masks: " + ", ".join(cells))
    return {"photos": len(per_photo), "masks": masks, **dict(zip(COLUMNS, mean.tolist(), strict=True))}


def main() -> int:
    """Parses the command line and scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--checkpoint", help="model directory; default: the bundled vit_tiny")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    try:
        predictor = sam_jax.SamPredictor(*sam_jax.load_model(args.checkpoint))
        results = {folder.name: score_folder(predictor, folder) for folder in args.folders}
    except ValueError as error:
        print(f"prompt_quality.py: {error}", file=sys.stderr)
        return 2
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
