"""J&F of masks carried through videos, beside two simple rules and true boxes, and the time that they take.

    python benchmarks/video.py --clips 8                                # moving cut-outs of tests/devset_mini
    python benchmarks/video.py --davis data/davis2016_dev --checkpoint checkpoints/sam_vit_b

Every object is prompted by the box of its first true mask. The rules: "first mask kept" takes the first frame's masks
for all frames; "last box" prompts the model on each frame with the box of the last frame's mask. "true box" prompts it
with the box of each frame's true mask, more than any rule knows that prompts by boxes. Scores are those of DAVIS,
without the first and the last frame. Time is the process's CPU time, without compilation.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from tyro.conf import arg

sys.path.insert(0, str(Path(__file__).parents[1]))
from sam_jax import SamPredictor, load_model
from sam_jax.config import VideoConfig
from sam_jax.ops.masks import mask_to_box
from sam_jax.runtime import use_compilation_cache
from sam_jax.video.davis import VOID, score_frames
from sam_jax.video.frames import Frames, open_frames
from sam_jax.video.label_images import read_labels
from sam_jax.video.prompts import FramePrompt
from sam_jax.video.propagation import VideoPropagator
from tests.video.moving_cutouts import ClipFrames, make_clip

ROOT = Path(__file__).parents[1]
Labels = Iterator[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line."""

    davis: Annotated[Path | None, arg(help="directory with NAME/images and NAME/masks for each video")] = None
    clips: Annotated[int, arg(help="number of clips of moving cut-outs, if no directory is given")] = 8
    frames: Annotated[int, arg(help="frames of each clip")] = 16
    images: Annotated[Path, arg(help="images in SA-1B's format of which clips are made")] = ROOT / "tests/devset_mini"
    checkpoint: Annotated[Path | None, arg(help="model directory; None is the bundled vit_tiny")] = None
    settings: Annotated[VideoConfig, arg(help="how masks are carried")] = dataclasses.field(default_factory=VideoConfig)
    json: Annotated[Path | None, arg(help="also write the figures there")] = None


def main() -> None:
    """Prints a line per video and method, as Markdown."""
    options = tyro.cli(Options, description=__doc__)
    use_compilation_cache()
    model, variables = load_model(options.checkpoint, crf=False)
    predictor, rows = SamPredictor(model, variables), []
    print("| video | method | J | F | CPU s per frame |", "|---|---|---|---|---|", sep="\n")
    for name, frames, truth in _videos(options):
        objects = [1] if set(np.unique(truth[0])) <= {0, VOID} else [k for k in np.unique(truth[0]) if 0 < k < VOID]
        masks = [truth[0] == (VOID if VOID in truth[0] and len(objects) == 1 else k) for k in objects]
        boxes = np.array([mask_to_box(mask) for mask in masks], np.float64)
        prompts = [FramePrompt(0, int(k), box=tuple(box)) for k, box in zip(objects, boxes, strict=True)]
        methods: dict[str, Callable[[], Labels]] = {
            "carried": lambda: carried(VideoPropagator(model, variables, frames, prompts, options.settings)),  # noqa: B023
            "first mask kept": lambda: kept(predictor, frames, objects, boxes),  # noqa: B023
            "last box": lambda: last_box(predictor, frames, objects, boxes),  # noqa: B023
            "true box": lambda: true_box(predictor, frames, objects, truth),  # noqa: B023
        }
        for method, work in methods.items():
            rows.append({"video": name, "method": method} | measure(work(), truth))
            print("| {video} | {method} | {J:.3f} | {F:.3f} | {cpu_seconds:.2f} |".format(**rows[-1]), flush=True)
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        j, f = (np.mean([row[name] for row in mine]) for name in ("J", "F"))
        print(f"| mean | {method} | {j:.3f} | {f:.3f} | |")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def _videos(options: Options) -> Iterator[tuple[str, Frames, list[np.ndarray]]]:
    if options.davis is None:
        for seed in range(options.clips):
            clip = make_clip(options.images, seed, options.frames)
            yield f"clip {seed}", ClipFrames(clip), list(clip.labels)
        return
    for folder in sorted(path for path in options.davis.iterdir() if (path / "images").is_dir()):
        yield folder.name, open_frames(folder / "images"), [read_labels(p) for p in sorted(folder.glob("masks/*.png"))]


def measure(labels: Labels, truth: list[np.ndarray]) -> dict[str, float]:
    """J and F, the means of all objects, and CPU seconds per frame from the third on: the first two compile."""
    found, times = [], []
    for one in labels:
        found.append(one)
        times.append(time.process_time())
    scores = score_frames(zip(found, truth, strict=True)).values()
    return {
        "J": float(np.mean([one.region.mean() for one in scores])),
        "F": float(np.mean([one.contour.mean() for one in scores])),
        "cpu_seconds": (times[-1] - times[1]) / (len(times) - 2),
    }


def carried(propagator: VideoPropagator) -> Labels:
    """Labels (H, W) uint8 of each frame, prompted on the first."""
    for found in propagator.run():
        yield _to_labels(found.masks, found.objects)


def kept(predictor: SamPredictor, frames: Frames, objects: list[int], boxes: np.ndarray) -> Labels:
    """The first frame's labels for every frame."""
    predictor.set_image(frames.read(0))
    first = _to_labels(predictor.predict_many(boxes=boxes, multimask_output=False).masks[:, 0], objects)
    yield from (first for _ in frames.names)


def last_box(predictor: SamPredictor, frames: Frames, objects: list[int], boxes: np.ndarray) -> Labels:
    """Labels of the masks that the box of the last frame's mask gives."""
    boxes = boxes.copy()
    for index in range(len(frames.names)):
        predictor.set_image(frames.read(index))
        masks = predictor.predict_many(boxes=boxes, multimask_output=False).masks[:, 0]
        for number, mask in enumerate(masks):
            if (box := mask_to_box(mask))[2:].min() > 0 and (box[2:] > box[:2]).all():
                boxes[number] = box
        yield _to_labels(masks, objects)


def true_box(predictor: SamPredictor, frames: Frames, objects: list[int], truth: list[np.ndarray]) -> Labels:
    """Labels of the masks that the boxes of the true masks give; nothing where an object is not seen."""
    for index, labels in enumerate(truth):
        seen = [(k, labels == (VOID if len(objects) == 1 and k not in labels else k)) for k in objects]
        seen = [(k, mask) for k, mask in seen if mask.any()]
        predictor.set_image(frames.read(index))
        boxes = np.array([mask_to_box(mask) for _, mask in seen], np.float64).reshape(-1, 4)
        yield _to_labels(predictor.predict_many(boxes=boxes, multimask_output=False).masks[:, 0], [k for k, _ in seen])


def _to_labels(masks: np.ndarray, objects: list[int] | np.ndarray) -> np.ndarray:
    labels = np.zeros(masks.shape[1:], np.uint8)
    for number, mask in zip(objects, masks, strict=True):
        labels[mask] = number
    return labels


if __name__ == "__main__":
    main()
