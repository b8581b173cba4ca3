"""How good the masks are: automatic ones beside their corrections, and those of two annotators beside each other.

Source: SAM paper, section 5, "mask quality": people corrected all automatic masks of 500 images.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np
from pycocotools import mask as coco
from scipy.optimize import linear_sum_assignment

from sam_jax.engine.rows import ACCEPTED, AUDIT, DELETED, DONE, PROPOSED, REPEAT, STAGES, MaskRow, Task
from sam_jax.engine.store import Store
from sam_jax.evaluation.metrics import bootstrap_means, interval

THRESHOLDS = (0.90, 0.75)
PAPER_SHARES = (0.94, 0.97)
PAPER_AGREEMENT = (0.85, 0.91)  # IoU of two annotators, which the paper quotes from earlier work
MATCH_IOU = 0.5  # two annotators mean one object from here on


@dataclasses.dataclass(frozen=True)
class Share:
    """An average, and the bounds of its 95 % interval, by a bootstrap over images."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Audit:
    """What finished audits say.

    Attributes:
      images: whose audit is done. pairs: automatic masks that were accepted, corrected or not.
      deleted: automatic masks that were no object. undecided: those that nobody accepted or deleted.
      added: masks of objects that the model had missed.
      shares: of pairs with an IoU above each of THRESHOLDS; empty without pairs.
    """

    images: int
    pairs: int
    deleted: int
    undecided: int
    added: int
    shares: tuple[Share, ...]


@dataclasses.dataclass(frozen=True)
class Agreement:
    """What two annotators of the same images say.

    Attributes:
      images: that two annotators have finished. pairs: masks of one object by both.
      matched: share of all masks that are in a pair. iou: mean over pairs; None without any.
    """

    images: int
    pairs: int
    matched: float
    iou: Share | None


def read_audit(store: Store, seed: int = 0) -> Audit:
    """Compares automatic masks with what audits made of them; `seed` is of the bootstrap."""
    images, ious, image_of = 0, list[float](), list[int]()
    counts: Counter[tuple[bool, str]] = Counter()
    for task in store.tasks(stage=AUDIT, state=DONE):
        images += 1
        masks = [mask for mask in store.masks(task.image_id, stage=AUDIT, state=None) if mask.task_id == task.id]
        counts.update((mask.from_model, mask.state) for mask in masks)
        pairs = [mask.proposal_iou for mask in masks if mask.from_model and mask.state == ACCEPTED]
        ious += [iou for iou in pairs if iou is not None]
        image_of += [task.image_id] * len(pairs)
    above = np.array(ious)[:, None] > np.array(THRESHOLDS)
    shares = _shares(above.astype(float), image_of, seed)
    deleted, undecided, added = (counts[key] for key in ((True, DELETED), (True, PROPOSED), (False, ACCEPTED)))
    return Audit(images, len(ious), deleted, undecided, added, shares)


def read_agreement(store: Store, seed: int = 0) -> Agreement:
    """Compares masks of different annotators of the same images, each labelled from nothing.

    Masks are matched one to one by the Hungarian method, such that the sum of IoUs is largest; matches below MATCH_IOU
    are of different objects, and no pair.
    """
    images, masks, ious, image_of = 0, 0, list[float](), list[int]()
    for one, other in _second_labels(store):
        matched = _matched_ious(one, other)
        images, masks = images + 1, masks + len(one) + len(other)
        ious += matched
        image_of += [one[0].image_id if one else other[0].image_id] * len(matched)
    shares = _shares(np.array(ious)[:, None], image_of, seed)
    return Agreement(images, len(ious), 2 * len(ious) / masks if masks else 0.0, shares[0] if shares else None)


def _second_labels(store: Store) -> Iterator[tuple[list[MaskRow], list[MaskRow]]]:
    """Masks of each two annotators of an image."""
    for image_id in sorted({task.image_id for task in store.tasks(stage=REPEAT, state=DONE)}):
        done = [one for one in store.image_tasks(image_id) if one.state == DONE and one.stage != AUDIT]
        by_annotator: dict[str | None, Task] = {}
        for one in done:
            by_annotator.setdefault(one.annotator, one)
        for pair in combinations(by_annotator.values(), 2):
            sets = [_masks_by_people(store, one) for one in pair]
            if any(sets):
                yield sets[0], sets[1]


def _masks_by_people(store: Store, task: Task) -> list[MaskRow]:
    masks = [mask for mask in store.task_masks(task) if mask.state == ACCEPTED]
    return [mask for mask in masks if task.stage == REPEAT or mask.stage in STAGES[:2]]


def _matched_ious(one: Sequence[MaskRow], other: Sequence[MaskRow]) -> list[float]:
    if not one or not other:
        return []
    rles = [[mask.segmentation for mask in masks] for masks in (one, other)]
    ious = np.array(coco.iou(*rles, [0] * len(other)))
    found: list[float] = ious[linear_sum_assignment(-ious)].tolist()
    return [iou for iou in found if iou >= MATCH_IOU]


def _shares(values: np.ndarray, image_of: Sequence[int], seed: int) -> tuple[Share, ...]:
    """Means of (n, c) over masks, one per column."""
    if not len(values):
        return ()
    low, high = interval(bootstrap_means(values, np.array(image_of), seed=seed))
    return tuple(Share(*map(float, three)) for three in zip(values.mean(axis=0), low, high, strict=True))
