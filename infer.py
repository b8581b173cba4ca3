"""Segment a photo with prompts.

    python infer.py PHOTO --point 500,375               one point: three masks, from part to whole
    python infer.py PHOTO --point 500,375 --point 520,300,0    a second point that is off the object
    python infer.py PHOTO --box 425,600,700,875 --box 75,275,1725,850    one object per box
    python infer.py PHOTO --point 500,375 --mask-input logits.npy        refine an earlier mask

Coordinates are pixels of the photo. Results go to --out: PHOTO.masks.json (COCO RLE), a PNG per mask, an overlay.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import NoReturn

import numpy as np

import sam_jax
from sam_jax.inference.prompted import PhotoPrompts, segment_photo, write_results
from sam_jax.runtime import use_compilation_cache


def numbers(text: str, counts: tuple[int, ...], form: str) -> list[float]:
    """Parses comma-separated numbers. Raises ValueError that shows the expected form."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) not in counts:
        raise ValueError(f"{text!r} is not of the form {form}")
    return values


def parse_prompts(args: argparse.Namespace) -> PhotoPrompts:
    """The prompts of the command line."""
    points = [numbers(text, (2, 3), "X,Y or X,Y,LABEL") for text in args.point]
    boxes = [numbers(text, (4,), "X0,Y0,X1,Y1") for text in args.box]
    return PhotoPrompts(
        points=np.array([p[:2] for p in points]) if points else None,
        labels=np.array([p[2] if len(p) == 3 else 1 for p in points]) if points else None,
        boxes=np.array(boxes) if boxes else None,
        mask_input=sam_jax.read_mask_input(args.mask_input) if args.mask_input else None,
    )


class OneLineParser(argparse.ArgumentParser):
    """A parser whose complaints are one line, as all others of this script."""

    def error(self, message: str) -> NoReturn:
        """Exits with code 2."""
        self.exit(2, f"infer.py: {message} (see --help)\n")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", help="JPEG, PNG, WebP, ...; local or gs://")
    parser.add_argument("--point", action="append", default=[], metavar="X,Y[,L]", help="label 1 on, 0 off the object")
    parser.add_argument("--box", action="append", default=[], metavar="X0,Y0,X1,Y1", help="corners; repeat for objects")
    parser.add_argument("--mask-input", metavar="M.npy", help="(1, 4h, 4w) float logits of an earlier prediction")
    parser.add_argument("--checkpoint", metavar="DIR", help="model directory; default: the bundled vit_tiny")
    parser.add_argument("--out", default="sam_out", metavar="DIR", help="where results go (default: sam_out)")
    return parser.parse_args()


def run(args: argparse.Namespace) -> None:
    """Segments, writes and says so in two lines."""
    use_compilation_cache()
    prompts = parse_prompts(args)
    if prompts.is_empty:
        raise ValueError("nothing to segment: give --point X,Y or --box X0,Y0,X1,Y1 (see --help)")
    image = sam_jax.read_image(args.photo)
    predictor = sam_jax.SamPredictor(*sam_jax.load_model(args.checkpoint))
    start = time.perf_counter()
    predicted = segment_photo(predictor, image, prompts)
    seconds = time.perf_counter() - start
    overlay = write_results(args.out, args.photo, image, prompts, predicted)
    scores = ", ".join(f"{iou:.2f}" for iou in predicted.iou_predictions)
    h, w = image.shape[:2]
    print(f"{args.photo} ({w}x{h}): {len(predicted.masks)} masks in {seconds:.1f} s, predicted IoU {scores}")
    print(f"wrote {overlay}, with {overlay.stem.removesuffix('.overlay')}.masks.json and a PNG per mask beside it")


def main() -> int:
    """Runs the command; bad input ends in one line on stderr and exit code 2."""
    args = parse_arguments()
    try:
        run(args)
    except (ValueError, OSError) as error:
        print(f"infer.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
