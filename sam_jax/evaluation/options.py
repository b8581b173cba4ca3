"""Options of an evaluation: what to score, and batch sizes."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np

# SAM paper, appendix D.1.
PAPER_CLICKS = (1, 2, 3, 5, 9)
MAX_CLICKS = 100


@dataclass(frozen=True)
class EvaluationOptions:
    """How to evaluate one set of images.

    Attributes:
      clicks: numbers of clicks after which masks are scored.
      boxes: whether to also score box prompts, and the same with the mask fed back.
      limit: maximum number of images, drawn at random; None means all.
      max_masks: stop after the image that reaches this number of masks; images are then in random order. The paper
        samples about 10,000 masks of every set that has more than 15,000.
      seed: of this sampling and of the bootstrap.
      images_per_batch: images per call of the image encoder.
      prompts_per_batch: objects per call of the mask decoder. Both only trade memory for speed.
      threads: on the host, for reading, distance transforms and scores.
      keep_masks: keep every scored mask as RLE in the result.
    """

    clicks: tuple[int, ...] = PAPER_CLICKS
    boxes: bool = True
    limit: int | None = None
    max_masks: int | None = None
    seed: int = 0
    images_per_batch: int = 4
    prompts_per_batch: int = 32
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    keep_masks: bool = False

    def __post_init__(self) -> None:
        if not self.clicks and not self.boxes:
            raise ValueError("clicks is empty and boxes False: nothing to score; give clicks such as (1, 3), or boxes")
        wrong = [n for n in self.clicks if not 1 <= n <= MAX_CLICKS]
        if wrong or list(self.clicks) != sorted(set(self.clicks)):
            raise ValueError(f"clicks are {list(self.clicks)}; expected increasing numbers from 1 to {MAX_CLICKS}")
        for name in ("limit", "max_masks", "images_per_batch", "prompts_per_batch", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected 1 or more")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of scores, in order: "1 click", "1 click, oracle", "2 clicks", ..., "box", "box + mask"."""
        names = []
        for n in self.clicks:
            names += ["1 click", ORACLE] if n == 1 else [click_column(n)]
        return (*names, *((BOX, REFINED) if self.boxes else ()))

    def order(self, count: int) -> np.ndarray:
        """(m,) int: indices of the images to evaluate, out of `count`."""
        if self.limit is None and self.max_masks is None:
            return np.arange(count)
        chosen = np.random.default_rng(self.seed).permutation(count)[: self.limit]
        return np.sort(chosen) if self.max_masks is None else chosen


ORACLE, BOX, REFINED = "1 click, oracle", "box", "box + mask"


def click_column(number: int) -> str:
    """The name of the column for `number` clicks."""
    return "1 click" if number == 1 else f"{number} clicks"
