"""A pool of cut-outs and photographs made on the spot, in the form that `load_pool` reads."""

import json

import numpy as np
from PIL import Image


def write_pool(root, count=3):
    """Discs of plain colour and photographs of noise, all in the train split. Returns `root`."""
    rng, files = np.random.default_rng(0), []
    y, x = np.mgrid[-1:1:48j, -1:1:48j]
    for number in range(count):
        disc = np.dstack([np.full((48, 48, 3), 80 * number), 255 * (x * x + y * y < 0.9)]).astype(np.uint8)
        background = rng.integers(0, 256, (120, 150, 3), np.uint8)
        for kind, image in (("photo_cutout", disc), ("background", background)):
            path = f"{kind}_{number}.png"
            Image.fromarray(image).save(root / path)
            files.append({"path": path, "kind": kind, "package": "made-up", "split": "train"})
    (root / "pool.json").write_text(json.dumps({"files": files}))
    return root
