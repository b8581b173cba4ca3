"""Scores by group of people, region, or anything else that a table says about images or masks.

The table is a CSV file. Its first column, `image`, names images; a second column `mask` is optional and names single
masks of them, counted from 0. Every further column is an attribute, such as perceived gender presentation, age group,
skin tone, region or income, and its values are groups; an empty cell belongs to none.

Groups of one attribute are compared in pairs: Welch's t test on the means of images (masks of one image are not
independent), for all pairs, attributes and numbers of clicks together corrected by Benjamini and Hochberg's procedure.
Source of the layout: SAM paper, section 7 of the responsible AI analysis, tables 2 and 6.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from etils import epath
from scipy import stats

from sam_jax.data.records import DataError
from sam_jax.evaluation.metrics import bootstrap_means, interval
from sam_jax.evaluation.options import click_column
from sam_jax.evaluation.results import EvaluationResult

CLICKS = (1, 3)  # of tables 2 and 6
SMALL = 30  # images: below, an interval says little
LEVEL = 0.05  # of corrected p values
_IMAGE, _MASK = "image", "mask"
Key = tuple[str, int | None]


@dataclass(frozen=True)
class Attributes:
    """A table of attributes.

    Attributes:
      path: of the file, for messages.
      names: of the attributes.
      values: of each image, or of each mask of an image, a value per attribute; "" is none.
    """

    path: str
    names: tuple[str, ...]
    values: Mapping[Key, tuple[str, ...]]

    def check(self, image_ids: Sequence[str]) -> None:
        """Raises DataError if the table names an image that is none of `image_ids`."""
        known = set(image_ids)
        for image, _ in self.values:
            if not known & set(_spellings(image)):
                example = image_ids[0] if len(image_ids) else "none"
                raise DataError(f"{self.path}: no image is called {image!r}; expected names such as {example!r}")

    def check_masks(self, masks: Sequence[tuple[str, int]]) -> None:
        """Raises DataError if the table names a mask that its image, one of those given, has not."""
        images, known = {image for image, _ in masks}, set(masks)
        for image, mask in self.values:
            names = [name for name in _spellings(image) if name in images]
            if mask is not None and names and not any((name, mask) in known for name in names):
                count = sum(one in names for one, _ in masks)
                raise DataError(f"{self.path}: {image!r} has no mask {mask}; it has {count}, counted from 0")

    def of_masks(self, masks: Sequence[tuple[str, int]]) -> np.ndarray:
        """(n, attributes) str: the values of masks, each given by its image's id and its number there."""
        by_id = {(name, mask): row for (image, mask), row in self.values.items() for name in _spellings(image)}
        none = ("",) * len(self.names)
        return np.array([by_id.get(mask, by_id.get((mask[0], None), none)) for mask in masks], str)


def read_attributes(path: epath.PathLike) -> Attributes:
    """Reads a table of attributes, local or gs://.

    Raises:
      DataError: it is missing, no such table, or says two things about one image or mask.
    """
    try:
        rows = list(
            csv.DictReader(io.StringIO(epath.Path(path).read_text(encoding="utf-8-sig")), restkey="", restval="")
        )
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV ({error})") from None
    header = [name for name in (rows[0] if rows else {}) if name]
    attributes = tuple(name for name in header if name not in (_IMAGE, _MASK))
    if header[:1] != [_IMAGE] or not attributes:
        raise DataError(f"{path}: expected CSV with a column 'image', then attributes; it begins {', '.join(header)!r}")
    values: dict[Key, tuple[str, ...]] = {}
    for number, row in enumerate(rows, 2):
        mask = row.get(_MASK, "")
        if mask and not mask.isdecimal():
            raise DataError(f"{path}, line {number}: mask is {mask!r}; expected its number within the image, from 0")
        key = row[_IMAGE].strip(), int(mask) if mask else None
        if key in values:
            raise DataError(f"{path}, line {number}: {row[_IMAGE]!r} is there twice; keep one line")
        values[key] = tuple(row[name].strip() for name in attributes)
    return Attributes(str(path), attributes, values)


def _spellings(image: str) -> tuple[str, ...]:
    """What the data may call an image that a table calls so: as written, without directory and suffix, by number."""
    stem = PurePosixPath(image).stem
    digits = re.search(r"\d+$", stem)
    return (image, stem, *((str(int(digits[0])),) if digits else ()))


def group_columns(columns: Sequence[str]) -> tuple[str, ...]:
    """The scores that groups are compared by. Raises DataError if there are none."""
    found = tuple(name for name in map(click_column, CLICKS) if name in columns)
    if not found:
        raise DataError(f"--groups compares scores at {CLICKS[0]} and {CLICKS[1]} clicks; add them to --clicks")
    return found


def score_groups(
    result: EvaluationResult, image_ids: Sequence[str], attributes: Attributes, seed: int = 0
) -> dict[str, Any]:
    """Scores of every group of every attribute, and differences between groups; ready for JSON.

    Args:
      image_ids: of each image of the result.
      seed: of the bootstrap.

    Returns:
      columns: the scores. attributes: {attribute: {group: {"masks", "images", column: {"mean", "interval"}}}}, where
      intervals hold 95 % of a bootstrap over images. differences: of each pair {"attribute", "groups", "column",
      "difference", "p", "corrected_p", "significant"}. warnings: lines about small groups.
    """
    columns = group_columns(result.columns)
    iou = result.iou[:, [result.columns.index(column) for column in columns]]
    masks = list(zip((image_ids[i] for i in result.image_of), result.mask_of.tolist(), strict=True))
    attributes.check_masks(masks)
    values = attributes.of_masks(masks)
    found: dict[str, Any] = {}
    differences, warnings = [], []
    for number, name in enumerate(attributes.names):
        groups = {value: values[:, number] == value for value in sorted(set(values[:, number]) - {""})}
        found[name] = {}
        for value, inside in groups.items():
            scores = _scores(iou[inside], result.image_of[inside], columns, seed)
            found[name][value] = scores
            if scores["images"] < SMALL:
                warnings.append(f"{name} {value}: only {scores['images']} images; its interval says little")
        for one, other in combinations(groups, 2):
            pair = [(iou[groups[group]], result.image_of[groups[group]]) for group in (one, other)]
            differences += [
                {"attribute": name, "groups": [one, other], "column": column, **_difference(pair, place)}
                for place, column in enumerate(columns)
            ]
    _correct(differences)
    return {"columns": list(columns), "attributes": found, "differences": differences, "warnings": warnings}


def _scores(iou: np.ndarray, image_of: np.ndarray, columns: Sequence[str], seed: int) -> dict[str, Any]:
    means, bounds = iou.mean(axis=0), interval(bootstrap_means(iou, image_of, seed=seed))
    scores = {
        column: {"mean": float(mean), "interval": [float(low), float(high)]}
        for column, mean, low, high in zip(columns, means, *bounds, strict=True)
    }
    return {"masks": len(iou), "images": len(np.unique(image_of)), **scores}


def _difference(pair: Sequence[tuple[np.ndarray, np.ndarray]], column: int) -> dict[str, Any]:
    """Of two groups' means over masks, and the p value of their means over images; None where a group has one image."""
    of_images = [_image_means(iou[:, column], image_of) for iou, image_of in pair]
    testable = all(len(means) > 1 for means in of_images) and any(np.ptp(means) > 0 for means in of_images)
    p = float(stats.ttest_ind(*of_images, equal_var=False).pvalue) if testable else None
    (one, _), (other, _) = pair
    return {"difference": float(one[:, column].mean() - other[:, column].mean()), "p": p}


def _image_means(values: np.ndarray, image_of: np.ndarray) -> np.ndarray:
    _, place = np.unique(image_of, return_inverse=True)
    means: np.ndarray = np.bincount(place, values) / np.bincount(place)
    return means


def _correct(differences: list[dict[str, Any]]) -> None:
    """Adds corrected p values, all comparisons taken together."""
    tested = [one for one in differences if one["p"] is not None]
    corrected = stats.false_discovery_control([one["p"] for one in tested]) if tested else []
    for one in differences:
        one |= {"corrected_p": None, "significant": False}
    for one, p in zip(tested, corrected, strict=True):
        one |= {"corrected_p": float(p), "significant": bool(p < LEVEL)}
