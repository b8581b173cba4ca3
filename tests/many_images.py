"""Folders of images to segment, and what a run over them leaves."""

import json

import numpy as np
from PIL import Image

H, W = 48, 80
# The tiny model is random: everything passes, box NMS leaves a few.
LOOSE = dict(points_per_side=2, points_per_batch=4, pred_iou_thresh=-100.0, stability_score_thresh=0.0)
OPTIONS = [f"--{name.replace('_', '-')}={value}" for name, value in LOOSE.items()]


def noise(seed, shape=(H, W)):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def save(path, seed, mode=None, shape=(H, W), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(noise(seed, shape))
    (image.convert(mode) if mode else image).save(path, **options)


def folder(root, count, start=0):
    for number in range(start, start + count):
        save(root / ("sub" if number % 2 else "") / f"p{number}.png", number)
    return root


def contents(out, without=()):
    """What lies below a directory: relative path -> bytes."""
    files = (path for path in out.rglob("*") if path.is_file())
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in files
        if not path.name.startswith(tuple(without))
    }


def failures(out, name="failures.jsonl"):
    path = out / name
    return {line["image"]: line["error"] for line in map(json.loads, path.read_text().splitlines())}
