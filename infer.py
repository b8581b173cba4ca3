"""Segment images: everything in them, or what prompts say.

    python infer.py IMAGE --point 500,375               one point: three masks, from part to whole
    python infer.py IMAGE --point 500,375 --point 520,300,0    a second point that is off the object
    python infer.py IMAGE --box 425,600,700,875 --box 75,275,1725,850    one object per box
    python infer.py IMAGE --point 500,375 --mask-input logits.npy        refine an earlier mask

    python infer.py IMAGE --format overlay              everything mode: masks of all that is in the image
    python infer.py images/ more/*.jpg @list.txt        of many images; again to go on after a stop
    python infer.py images/ --prompts boxes.json        masks of what each image's boxes or points mean
    python infer.py plan.tif --tile 1024                an image too large to be looked at at once
    python infer.py gs://BUCKET/images --out gs://BUCKET/masks --distributed    the same command on every host

Coordinates are pixels of the image. Results go to --out. With --point, --box or --mask-input they are IMAGE.masks.json
(COCO RLE), a PNG per mask and an overlay. Otherwise IMAGE.json in SA-1B's format, for images of sub-directories in the
same sub-directories, and what --format adds: png (one per mask), overlay, coco (coco_results.json of all images).
failures.jsonl lists images that cannot be done. Exit codes: 0 all done, 1 some images are not, 2 wrong input.
"""

from __future__ import annotations

import argparse
import sys
import time

import sam_jax
from sam_jax import runtime
from sam_jax.batch import command_line, one_image
from sam_jax.batch import run as batch_run
from sam_jax.batch.image_list import find_images
from sam_jax.batch.result_files import OutputError, ResultFiles


def segment_one(args: argparse.Namespace, prompts: one_image.ImagePrompts) -> None:
    """Segments one image by the prompts of the command line, writes and says so in two lines."""
    (path,) = args.images
    image = sam_jax.read_image(path)
    predictor = sam_jax.SamPredictor(*sam_jax.load_model(args.checkpoint, args.dtype, args.crf))
    start = time.perf_counter()
    predicted = one_image.segment_image(predictor, image, prompts)
    seconds = time.perf_counter() - start
    overlay = one_image.write_results(args.out, path, image, prompts, predicted)
    scores = ", ".join(f"{iou:.2f}" for iou in predicted.iou_predictions)
    h, w = image.shape[:2]
    print(f"{path} ({w}x{h}): {len(predicted.masks)} masks in {seconds:.1f} s, predicted IoU {scores}")
    print(f"wrote {overlay}, with {overlay.stem.removesuffix('.overlay')}.masks.json and a PNG per mask beside it")


def segment_many(args: argparse.Namespace) -> int:
    """Segments all images that are not finished; returns the exit code."""
    host, hosts = getattr(args, "host", 0), getattr(args, "num_hosts", 1)
    if hasattr(args, "distributed"):
        host, hosts = runtime.connect_hosts(
            *(getattr(args, name, None) for name in ("coordinator", "num_hosts", "host"))
        )
    options, formats = command_line.run_options(args, host, hosts), command_line.formats(args)
    images = find_images(args.images, exclude=args.out)
    prompts = command_line.read_prompt_file(args)
    files = ResultFiles(args.out, formats, command_line.result_settings(args))
    segmenter = command_line.build_segmenter(args, *sam_jax.load_model(args.checkpoint, args.dtype, args.crf))
    summary = batch_run.run_images(images, segmenter, files, prompts, options)
    print(summary.text(files.out / options.failures_file))
    if hasattr(args, "distributed"):
        runtime.wait_for_hosts()
    if "coco" in formats and host == 0 and (hosts == 1 or hasattr(args, "distributed")):
        print(f"wrote {batch_run.write_coco(files, images, prompts)}")
    return 1 if summary.failures else 0


def main() -> int:
    """Runs the command; bad input ends in one line on stderr and exit code 2."""
    args = command_line.parse_arguments(__doc__ or "")
    try:
        runtime.use_compilation_cache()
        prompts = command_line.one_image_prompts(args)
        if prompts.is_empty:
            return segment_many(args)
        segment_one(args, prompts)
    except (ValueError, OSError) as error:
        print(f"infer.py: {error}", file=sys.stderr)
        return 1 if isinstance(error, OutputError) else 2
    except KeyboardInterrupt:
        print("infer.py: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
