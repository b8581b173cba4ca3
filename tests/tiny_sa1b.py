"""SA-1B in miniature: photographs of coloured rectangles with their masks, as tars or as a folder."""

import io
import json
import tarfile

import numpy as np
from PIL import Image
from pycocotools import mask as coco


def tiny_files(count, seed=0, size=(60, 80)):
    """Yields (name, bytes) of sa_<id>.jpg and sa_<id>.json for ids 1 to count."""
    rng = np.random.default_rng(seed)
    h, w = size
    for image_id in range(1, count + 1):
        image = rng.integers(0, 60, (h, w, 3), np.uint8)
        annotations = []
        for number in range(3):
            y, x = rng.integers(0, h - 32), rng.integers(0, w - 40)
            mask = np.zeros((h, w), np.uint8)
            mask[y : y + rng.integers(16, 32), x : x + rng.integers(20, 40)] = 1
            image[mask > 0] = rng.integers(80, 255, 3)
            rle = coco.encode(np.asfortranarray(mask))
            annotations.append(
                {
                    "id": 10 * image_id + number,
                    "segmentation": {"size": [h, w], "counts": rle["counts"].decode()},
                    "bbox": [float(value) for value in coco.toBbox(rle)],
                    "area": int(mask.sum()),
                    "predicted_iou": 0.95,
                    "stability_score": 0.97,
                    "crop_box": [0.0, 0.0, float(w), float(h)],
                    "point_coords": [[float(x) + 2, float(y) + 2]],
                }
            )
        encoded = io.BytesIO()
        Image.fromarray(image).save(encoded, "JPEG", quality=92)
        info = {"image_id": image_id, "width": w, "height": h, "file_name": f"sa_{image_id}.jpg"}
        yield f"sa_{image_id}.jpg", encoded.getvalue()
        yield f"sa_{image_id}.json", json.dumps({"image": info, "annotations": annotations}).encode()


def write_tar(path, count=12, seed=0):
    """Writes one tar of `count` images. Returns `path`."""
    with tarfile.open(path, "w") as tar:
        for name, content in tiny_files(count, seed):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_folder(path, count=12, seed=0):
    """Writes a folder of `count` images. Returns `path`."""
    path.mkdir(parents=True, exist_ok=True)
    for name, content in tiny_files(count, seed):
        (path / name).write_bytes(content)
    return path
