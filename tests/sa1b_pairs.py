"""SA-1B in miniature, pair by pair: what tests of reading and of the tools make their tars and folders of."""

import io
import json
import tarfile

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask


def annotation_of(mask):
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return {
        "segmentation": {"size": list(mask.shape), "counts": rle["counts"].decode()},
        "area": int(mask.sum()),
        "bbox": [x, y, int(columns[-1]) - x, int(rows[-1]) - y],
    }


def make_pair(number, h=40, w=60, masks=2):
    """A JPEG and its JSON as bytes; every number gives others."""
    rng = np.random.default_rng(number)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)).save(buffer, "JPEG")
    drawn = np.zeros((masks, h, w), bool)
    for mask in drawn:
        top, left = rng.integers(0, (h - 20, w - 20))
        mask[top : top + 15, left : left + 20] = True
    content = {"image": {"image_id": number}, "annotations": [annotation_of(mask) for mask in drawn]}
    return buffer.getvalue(), json.dumps(content).encode()


def files_of(numbers, **sizes):
    files = {}
    for number in numbers:
        files[f"sa_{number}.jpg"], files[f"sa_{number}.json"] = make_pair(number, **sizes)
    return files


def write_tar(path, files, format=tarfile.USTAR_FORMAT):
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def write_folder(path, files):
    path.mkdir(exist_ok=True)
    for name, data in files.items():
        (path / name).write_bytes(data)
