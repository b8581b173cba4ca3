"""Whether a new model is better than the present one: both are measured on the same held-out images.

Three figures, mean IoUs over masks by the paper's protocol (`evaluation.protocol`): the mask of a tight box, that of
one click with the highest predicted IoU, and the best of a click's three masks.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from sam_jax.checkpoint import load_model
from sam_jax.config.engine_models import RetrainConfig
from sam_jax.evaluation import EvaluationOptions, EvaluationResult, evaluate, open_image_set
from sam_jax.evaluation.metrics import bootstrap_means, interval
from sam_jax.evaluation.options import BOX, ORACLE

FIGURES = {"box": BOX, "one click": "1 click", "best of three": ORACLE}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two models on the same masks.

    Attributes:
      present, candidate: mean IoU by figure.
      gain: of the mean of the figures, and `interval`, in which 95 % of a bootstrap over images lies.
      images, masks: that both were measured on.
    """

    present: dict[str, float]
    candidate: dict[str, float]
    gain: float
    interval: tuple[float, float]
    images: int
    masks: int

    def is_better(self, config: RetrainConfig) -> bool:
        """The rule of promotion: the mean of the three figures rises by `margin`, and none falls by more than
        `max_loss`."""
        return self.gain >= config.margin and not self.losses(config)

    def losses(self, config: RetrainConfig) -> list[str]:
        """The figures that fall by more than `max_loss`."""
        return [name for name in FIGURES if self.present[name] - self.candidate[name] > config.max_loss]

    def reason(self, config: RetrainConfig) -> str:
        """Why the candidate is promoted or not."""
        rise = f"the mean of the figures changes by {self.gain:+.4f}"
        if losses := self.losses(config):
            return f"{rise}, and {', '.join(losses)} falls by more than {config.max_loss:g}"
        return f"{rise}; {config.margin:g} is needed" if self.gain < config.margin else rise

    def table(self) -> str:
        """Both models' figures as lines of text."""
        rows = [
            f"{name:<14}{self.present[name]:>10.4f}{self.candidate[name]:>12.4f}"
            f"{self.candidate[name] - self.present[name]:>+10.4f}"
            for name in FIGURES
        ]
        low, high = self.interval
        head = f"{'mean IoU':<14}{'present':>10}{'candidate':>12}{'change':>10}"
        last = f"mean change {self.gain:+.4f} [{low:+.4f}, {high:+.4f}] on {self.masks} masks of {self.images} images"
        return "\n".join([head, *rows, last])


def compare_models(present: Path | None, candidate: Path, held_out: Path, config: RetrainConfig) -> Comparison:
    """Measures two model directories on the images of a folder in SA-1B's format."""
    one, other = (_measure(path, held_out, config) for path in (present, candidate))
    return compare(one, other)


def compare(present: EvaluationResult, candidate: EvaluationResult) -> Comparison:
    """The comparison of two results for the same masks."""
    one, other = ({name: result.miou(column) for name, column in FIGURES.items()} for result in (present, candidate))
    places = [present.columns.index(column) for column in FIGURES.values()]
    change = (candidate.iou - present.iou)[:, places].mean(axis=1, keepdims=True)
    low, high = interval(bootstrap_means(change, present.image_of))[:, 0].tolist()
    return Comparison(one, other, float(np.mean(change)), (low, high), len(present.images), len(present.iou))


def _measure(path: Path | None, held_out: Path, config: RetrainConfig) -> EvaluationResult:
    name = "present" if path is None else path.name
    options = EvaluationOptions(clicks=(1,), boxes=True, max_masks=config.held_out_masks, seed=config.seed)
    return evaluate(*load_model(path), open_image_set(held_out, name=f"measuring {name}"), options, progress=True)


def from_json(content: dict[str, Any]) -> Comparison:
    """A comparison from `dataclasses.asdict` of one, after JSON."""
    return Comparison(**content | {"interval": tuple(content["interval"])})
