"""How many training examples per second a core makes from SA-1B-sized records, compared with the plain way.

    python benchmarks/data_pipeline.py [--dir DIR] [--images 8] [--rounds 5] [--json OUT.json] [--profile]

Makes photographs of 1500 x 2250 pixels (smooth noise and shapes, JPEG quality 90) with 100 masks each, once, as
jpg + json pairs in DIR, and turns them into examples of 1024 pixels with 64 masks on a 256 x 256 grid in three ways,
one after the other on each record:
  sam_jax     Sa1bFolder and ExampleMaker: full JPEG decoding, masks reduced from their run lengths
  scaled      the same with data.scaled_decode: JPEG decoded at reduced size
  plain       full JPEG decoding, pycocotools decoding of each mask at full size, both resized by PIL
Times are CPU seconds of one thread, which other load on the machine affects little: medians over the rounds.
"""

from __future__ import annotations

import cProfile
import dataclasses
import io
import json
import pstats
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask
from tqdm import tqdm
from tyro.conf import arg

from sam_jax.composites.random_shapes import smooth_field
from sam_jax.data.example import MASK_STRIDE, Example, pack_example
from sam_jax.data.record_examples import ExampleMaker, whole
from sam_jax.data.records import Record
from sam_jax.data.sa1b import Sa1bFolder

HEIGHT, WIDTH, MASKS = 1500, 2250, 100
IMAGE_SIZE, MASKS_PER_IMAGE = 1024, 64


def draw_image(rng: np.random.Generator) -> Image.Image:
    """Smooth noise, shapes and some grain: about a megabyte as JPEG, like SA-1B's photographs."""
    layers = [sum(smooth_field(rng, HEIGHT, WIDTH, cells) for cells in (5, 40, 200)) for _ in range(3)]
    image = Image.fromarray((128 + 28 * np.dstack(layers)).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(60):
        x, y, side = rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT), np.exp(rng.uniform(3, 6))
        draw.ellipse((x, y, x + side, y + side * rng.uniform(0.3, 1)), tuple(rng.integers(0, 256, 3).tolist()))
    grain = rng.normal(0, 4, (HEIGHT, WIDTH, 1))
    return Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))


def draw_mask(rng: np.random.Generator) -> np.ndarray:
    """A blob with a ragged outline, its side from 40 to 1400 pixels: (HEIGHT, WIDTH) uint8 in Fortran order."""
    side = int(np.exp(rng.uniform(np.log(40), np.log(1400))))
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    blob = 1.2 - 2 * np.hypot(y, x) + 0.4 * smooth_field(rng, side, side, 6) + 0.05 * smooth_field(rng, side, side, 40)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    top, left = rng.integers(0, (HEIGHT - side, WIDTH - side))
    mask[top : top + side, left : left + side] = blob > 0
    return mask


def make_records(folder: Path, count: int) -> None:
    """Writes `count` pairs unless they exist."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in tqdm(range(count), "making records", leave=False):
        decoded, text = folder / f"sa_{number}.jpg", folder / f"sa_{number}.json"
        if decoded.exists() and text.exists():
            continue
        rng = np.random.default_rng(number)
        draw_image(rng).save(decoded, quality=90)
        codes = [coco_mask.encode(draw_mask(rng)) for _ in range(MASKS)]
        annotations = [
            {
                "id": mask,
                "segmentation": {"size": [HEIGHT, WIDTH], "counts": code["counts"].decode()},
                "area": int(coco_mask.area(code)),
            }
            for mask, code in enumerate(codes)
        ]
        text.write_text(json.dumps({"image": {"image_id": number}, "annotations": annotations}))


def plain_example(index: int, record: Record) -> Example:
    """The straightforward way: everything decoded at full size, then resized."""
    rng = np.random.default_rng(index)
    decoded = Image.open(io.BytesIO(record.image)).convert("RGB")
    rows, columns = whole((decoded.height, decoded.width), IMAGE_SIZE).resized
    image = np.asarray(decoded.resize((columns, rows), Image.Resampling.BILINEAR))
    grid = IMAGE_SIZE // MASK_STRIDE
    box = columns // MASK_STRIDE, rows // MASK_STRIDE
    chosen = rng.permutation(len(record.segmentations))[:MASKS_PER_IMAGE]
    masks = np.zeros((len(chosen), grid, grid), bool)
    for mask, number in zip(masks, chosen, strict=True):
        full = Image.fromarray(coco_mask.decode(record.segmentations[number]) * np.uint8(255))
        mask[: box[1], : box[0]] = np.asarray(full.resize(box, Image.Resampling.BOX)) > 127
    return pack_example(image, masks, record.image_id, IMAGE_SIZE, MASKS_PER_IMAGE)


def measure(folder: Path, rounds: int) -> dict[str, list[float]]:
    """CPU seconds per example of each way, one figure per round; records are read from disk each time."""
    source = Sa1bFolder(folder)
    ways: dict[str, Callable[[int, Record], Example]] = {
        "sam_jax": ExampleMaker(IMAGE_SIZE, MASKS_PER_IMAGE, max_mask_share=0.9),
        "scaled": ExampleMaker(IMAGE_SIZE, MASKS_PER_IMAGE, max_mask_share=0.9, scaled_decode=True),
        "plain": plain_example,
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in tqdm(range(rounds + 1), "measuring", leave=False):  # the first round only warms up
        spent = dict.fromkeys(ways, 0.0)
        for index in range(len(source)):
            for name, way in ways.items():
                start = time.thread_time()
                example = way(number * len(source) + index, source[index])
                spent[name] += time.thread_time() - start
                assert example.mask_valid.all(), "all ways must do the same work"
        if number:
            for name in ways:
                seconds[name].append(spent[name] / len(source))
    return seconds


def profile(folder: Path) -> None:
    """Prints a profile of our own way."""
    source, maker = Sa1bFolder(folder), ExampleMaker(IMAGE_SIZE, MASKS_PER_IMAGE, max_mask_share=0.9)
    profiler = cProfile.Profile()
    profiler.enable()
    for index in range(5 * len(source)):
        maker(index, source[index % len(source)])
    profiler.disable()
    pstats.Stats(profiler).sort_stats("tottime").print_stats(15)


def report(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Prints the table and returns its figures."""
    print(f"{'':10}{'ms per example':>16}{'from':>8}{'to':>8}{'examples/s per core':>22}")
    figures = {}
    for name, rounds in seconds.items():
        median = float(np.median(rounds))
        print(f"{name:10}{1e3 * median:16.1f}{1e3 * min(rounds):8.1f}{1e3 * max(rounds):8.1f}{1 / median:22.1f}")
        figures[name] = {"ms_per_example": 1e3 * median, "examples_per_second": 1 / median}
    for name in ("sam_jax", "scaled"):
        print(f"{name} makes {figures['plain']['ms_per_example'] / figures[name]['ms_per_example']:.2f} x as many")
    return figures


@dataclasses.dataclass(frozen=True)
class Options:
    """The command line."""

    dir: Annotated[Path | None, arg(help="where the records are made and kept; None: a temporary directory")] = None
    images: Annotated[int, arg(help="images to read")] = 8
    rounds: Annotated[int, arg(help="timed rounds")] = 5
    json: Annotated[Path | None, arg(help="also write the figures there")] = None
    profile: Annotated[bool, arg(help="print a profile of our own way instead of comparing")] = False


def main() -> int:
    """Parses the command line and measures."""
    args = tyro.cli(Options, description=__doc__)
    if args.images < 1 or args.rounds < 1:
        print("--images and --rounds must be 1 or more", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.dir or Path(temporary)
        make_records(folder, args.images)
        if args.profile:
            profile(folder)
            return 0
        figures = report(measure(folder, args.rounds))
    if args.json:
        setting = {"images": args.images, "rounds": args.rounds, "image_size": IMAGE_SIZE, "masks": MASKS_PER_IMAGE}
        args.json.write_text(json.dumps({**setting, **figures}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
