"""The protocol said slowly: one object, one prompt at a time.

What it states is the protocol: where to click, which mask goes on, what is fed back, what counts. The network's
arithmetic is not its subject: a pixel whose logit is zero but for rounding would fall on either side. So that part
comes from `evaluation.programs`, called for one object alone, which test_programs holds to SamPredictor.
"""

import math

import numpy as np
from scipy.spatial import cKDTree

from sam_jax.evaluation import programs
from sam_jax.inference.encoding import encode_images
from sam_jax.models.sam import Sam
from sam_jax.ops.transforms import pad_to_square, resize_longest_side
from sam_jax.structs import Prompts


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def squared_depth(region):
    """(H, W) int: squared distance of each pixel to the nearest one outside; what lies beyond the image is outside."""
    padded = np.pad(region, 1)
    depth = np.zeros(padded.shape, np.int64)
    inside, outside = np.argwhere(padded), np.argwhere(~padded)
    if len(inside):
        distance, _ = cKDTree(outside).query(inside)
        depth[tuple(inside.T)] = np.rint(distance**2)
    return depth[1:-1, 1:-1]


def correction(true, mask, clicks):
    """(x, y, label) of the next click, or None; the first of the deepest pixels in reading order."""
    depths = {1: squared_depth(true & ~mask), 0: squared_depth(mask & ~true)}
    for depth in depths.values():
        for x, y, _ in clicks:
            depth[y, x] = 0
    label = 1 if depths[1].max() > depths[0].max() else 0
    deepest = depths[label].max()
    if deepest == 0:
        return None
    y, x = np.argwhere(depths[label] == deepest)[0].tolist()
    return x, y, label


def border(mask, ratio=0.02):
    """Pixels of the mask from which a step of that many pixels in any of the eight directions' square leaves it."""
    h, w = mask.shape
    reach = max(1, round(ratio * math.sqrt(h * h + w * w)))
    padded = np.pad(mask, reach)
    inner = np.ones_like(mask)
    for dy in range(2 * reach + 1):
        for dx in range(2 * reach + 1):
            inner &= padded[dy : dy + h, dx : dx + w]
    return mask & ~inner


class SlowSam:
    """One image and its prompts, one after the other."""

    def __init__(self, config, variables, image):
        self.model, self.variables, self.side = Sam(config), variables, config.image_size
        self.original = image.shape[:2]
        resized = resize_longest_side(image, self.side)
        self.input = resized.shape[:2]
        frame, size = pad_to_square(resized, self.side)[None], np.array([self.input], np.int32)
        self.encoded = encode_images(self.model, variables, frame, size)

    def predict(self, clicks=(), box=None, logits=None, slots=1):
        """Masks (4, H, W) bool, low-res logits (4, l, l) and predicted IoU (4,); the unambiguous mask first."""
        ratio = np.array([self.input[1] / self.original[1], self.input[0] / self.original[0]])
        coords, labels = np.zeros((1, 1, slots, 2), np.float32), np.full((1, 1, slots), -1, np.int32)
        for slot, (x, y, label) in enumerate(clicks):
            coords[0, 0, slot], labels[0, 0, slot] = np.array([x, y]) * ratio, label
        corners = np.zeros(4) if box is None else np.array(box, float) * np.tile(ratio, 2)
        prompts = Prompts(
            point_coords=coords,
            point_labels=labels,
            boxes=corners.astype(np.float32)[None, None],
            box_valid=np.array([[box is not None]]),
            mask_inputs=None if logits is None else logits[None, None],
        )
        row = np.zeros(1, np.int32)
        found = programs.decode(self.model, self.variables, self.encoded.embeddings, row, prompts)
        logits, estimates = (np.asarray(x)[0, 0] for x in (found.low_res_masks, found.iou_predictions))
        final = self._at_edges(logits, corners if box is not None else None)
        return np.concatenate([self._enlarge(final[:1]), self._enlarge(final[1:])]), logits, estimates

    def _at_edges(self, logits, box):
        if not self.model.config.crf:
            return logits
        box, row = None if box is None else box.astype(np.float32)[None, None], np.zeros(1, np.int32)
        patch = self.model.config.image_encoder.patch_size
        refined = [programs.refine_edges(x[None, None, None], self.encoded.pixels, row, box, patch) for x in logits]
        return np.stack(refined)[:, 0, 0, 0]

    def _enlarge(self, logits):
        matrices = programs.enlarging_matrices(logits.shape[-1], self.side, [self.input], [self.original])
        packed = programs.enlarge(logits[None, None], *matrices, self.model.config.mask_threshold)
        h, w = self.original
        return np.unpackbits(np.asarray(packed)[0, 0, :, :h], axis=-1, count=w).astype(bool)


def play(sam, true, counts):
    """({column: (mask, predicted IoU)}, clicks) of one object (H, W) bool."""
    found, clicks = {}, [correction(true, np.zeros_like(true), ())]
    masks, logits, estimates = sam.predict(clicks)
    best = 1 + int(np.argmax(estimates[1:]))
    oracle = 1 + int(np.argmax([iou(true, mask) for mask in masks[1:]]))
    mask, low, estimate = masks[best], logits[best], estimates[best]
    found["1 click"], found["1 click, oracle"] = (mask, estimate), (masks[oracle], estimates[oracle])
    done = False
    for number in range(2, max(counts) + 1):
        click = None if done else correction(true, mask, clicks)
        done = done or click is None
        if not done:
            clicks.append(click)
            masks, logits, estimates = sam.predict(clicks, logits=low, slots=max(counts))
            mask, low, estimate = masks[0], logits[0], estimates[0]
        if number in counts:
            found[f"{number} clicks"] = mask, estimate
    rows, cols = np.where(true)
    box = cols.min(), rows.min(), cols.max() + 1, rows.max() + 1
    masks, logits, estimates = sam.predict(box=box)
    found["box"] = masks[0], estimates[0]
    masks, _, estimates = sam.predict(box=box, logits=logits[0])
    found["box + mask"] = masks[0], estimates[0]
    return found, clicks
