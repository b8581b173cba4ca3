"""What to measure, and in which portions."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np

# Of the SAM paper, appendix D.1.
PAPER_CLICKS = (1, 2, 3, 5, 9)
MAX_CLICKS = 100


@dataclass(frozen=True)
class EvaluationOptions:
    """How to evaluate one set of images.

    Attributes:
      clicks: numbers of clicks after which masks are scored.
      boxes: whether to score box prompts too, and their refinement.
      limit: at most so many images, drawn at random; None means all.
      max_masks: no further image once there are so many masks; images then come in random order. The paper takes about
        10,000 masks of every set that has more than 15,000.
      seed: of those draws and of the bootstrap.
      images_per_batch: images that the encoder sees at once.
      prompts_per_batch: objects that the decoder works on at once. Both only trade memory for speed.
      threads: of the host: reading, distance transforms, scores.
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
            raise ValueError(f"clicks are {list(self.clicks)}; expected rising numbers of 1 to {MAX_CLICKS}")
        for name in ("limit", "max_masks", "images_per_batch", "prompts_per_batch", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected 1 or more")

    @property
    def columns(self) -> tuple[str, ...]:
        """What is scored, in order: "1 click", "1 click, oracle", "2 clicks", ..., "box", "box + mask"."""
        names = []
        for n in self.clicks:
            names += ["1 click", ORACLE] if n == 1 else [click_column(n)]
        return (*names, *((BOX, REFINED) if self.boxes else ()))

    def order(self, count: int) -> np.ndarray:
        """(m,) int: the images to take, of `count`."""
        if self.limit is None and self.max_masks is None:
            return np.arange(count)
        chosen = np.random.default_rng(self.seed).permutation(count)[: self.limit]
        return np.sort(chosen) if self.max_masks is None else chosen


ORACLE, BOX, REFINED = "1 click, oracle", "box", "box + mask"


def click_column(number: int) -> str:
    """The column of so many clicks."""
    return "1 click" if number == 1 else f"{number} clicks"
