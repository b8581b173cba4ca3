"""How the data engine uses and trains its models."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from sam_jax.config.amg import AmgConfig
from sam_jax.config.checks import NOT_NEGATIVE, POSITIVE, SHARE, Range, check_fields, require
from sam_jax.config.model import SamConfig


def sa1b_settings() -> AmgConfig:
    """Everything mode as SA-1B was made with it, at the thresholds of the model in use (SAM paper, appendix B): 32 x 32
    points on the image, 16 x 16 on each of 2 x 2 crops and 8 x 8 on each of 4 x 4; islands and holes below 100 pixels
    go, and masks of 95 % of the image."""
    return AmgConfig(crop_n_layers=2, crop_n_points_downscale_factor=2, min_mask_region_area=100, max_mask_cover=0.95)


@dataclass(frozen=True)
class FillConfig:
    """Stage 2: which masks of everything mode are proposed to annotators.

    Attributes:
      amg: everything mode on the whole image, without crops: the objects that matter most are large, and annotators add
        the rest.
      confidence: how far above the model's own thresholds a mask has to be, as a share of the way from them to 1. 0.5
        of a threshold of 0.88 is 0.94. Wrong masks cost annotators more than missing ones, which they draw as before.
      max_overlap: of two masks with a larger IoU of pixels the less sure one is left out, and so is a mask that
        overlaps so much with one that the image has already, even if it was deleted there.
    """

    amg: AmgConfig = field(default_factory=lambda: AmgConfig(min_mask_region_area=100, max_mask_cover=0.95))
    confidence: float = 0.5
    max_overlap: float = 0.5

    def __post_init__(self) -> None:
        check_fields(self, confidence=SHARE, max_overlap=SHARE)

    def of_model(self, sam: SamConfig) -> AmgConfig:
        """Everything mode with the thresholds of confident masks."""
        amg = self.amg.of_model(sam)
        names = ("pred_iou_thresh", "stability_score_thresh")
        raised = {name: getattr(amg, name) + self.confidence * (1 - getattr(amg, name)) for name in names}
        return dataclasses.replace(amg, mask_nms_thresh=self.max_overlap, **raised)


@dataclass(frozen=True)
class AutomaticConfig:
    """Stage 3: masks of everything mode, accepted as they are.

    Attributes:
      amg: everything mode.
      max_overlap: a mask that overlaps more, by IoU of pixels, with one that people made is left out.
      everything: also go through images that people have labelled or are labelling.
      again: also go through images that an earlier model has gone through; what that one made is deleted then, but for
        masks that people have changed.
    """

    amg: AmgConfig = field(default_factory=sa1b_settings)
    max_overlap: float = 0.7
    everything: bool = False
    again: bool = False

    def __post_init__(self) -> None:
        check_fields(self, max_overlap=SHARE)


@dataclass(frozen=True)
class RetrainConfig:
    """A round of training: from the present model, on what was accepted since the beginning, to a new version.

    Attributes:
      steps: training steps; None takes `steps_per_image` for each image, from 40 to 2,000.
      steps_per_image: see `steps`.
      minutes: train by the clock instead, compilation included; see `TrainConfig.minutes`.
      whole_model_images: from so many training images on, the whole model is trained; below, the mask decoder alone, on
        embeddings that are computed once and kept, which few images cannot spoil.
      learning_rate: of the mask decoder alone. The whole model is trained with `whole_learning_rate`.
      whole_learning_rate: see there.
      batch_size: images in each step; rounded up to a multiple of the devices.
      masks_per_image: masks of each image in a step, at most, drawn at random.
      margin: how much the mean of the three figures has to rise for a model to be promoted.
      max_loss: how much a single figure may fall then.
      held_out_masks: masks of held-out images that models are compared on, at most.
      automatic: also train on masks of stage 3, which nobody has seen. The default takes those that people have made or
        accepted: a model that learns from its own answers alone also learns its mistakes.
      again: train, even if nothing has changed since the last training.
      seed: of the data's order and of all draws.
    """

    steps: int | None = None
    steps_per_image: float = 10.0
    minutes: float | None = None
    whole_model_images: int = 200
    learning_rate: float = 1e-4
    whole_learning_rate: float = 1e-4
    batch_size: int = 4
    masks_per_image: int = 8
    margin: float = 0.002
    max_loss: float = 0.01
    held_out_masks: int = 1000
    automatic: bool = False
    again: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        rates = ("learning_rate", "whole_learning_rate", "steps_per_image", "minutes")
        counts = ("steps", "batch_size", "masks_per_image", "held_out_masks", "whole_model_images")
        check_fields(
            self,
            **dict.fromkeys((*rates, *counts), POSITIVE),
            margin=NOT_NEGATIVE,
            max_loss=NOT_NEGATIVE,
            seed=Range(lambda x: 0 <= x < 2**32, "from 0 to 2**32 - 1"),
        )
        both = self.steps is not None and self.minutes is not None
        require(not both, f"steps {self.steps} and minutes {self.minutes} exclude each other; give one")

    def num_steps(self, images: int) -> int:
        """Training steps for so many images."""
        return self.steps or round(min(max(40.0, self.steps_per_image * images), 2000.0))
