"""Settings of masks carried through the frames of a video."""

from __future__ import annotations

from dataclasses import dataclass

from sam_jax.config.checks import NOT_NEGATIVE, POSITIVE, POSITIVE_SHARE, SHARE, check_fields


@dataclass(frozen=True)
class VideoConfig:
    """Settings of `sam_jax.video`.

    Attributes:
      memory: last good frames that are remembered, besides prompted frames.
      anchors: prompted frames that are remembered, the nearest ones.
      cells: cells along the frame's longest side that are matched: the embedding's, each split into up to 4 x 4.
      radius: how far a cell moves between frames at most, as a share of the longest side. It grows while an object is
        lost.
      temperature: of the softmax over matches; smaller values trust the best match more.
      cycle_radius: cells; a match counts less the farther from its start the match back ends.
      colour_weight: weight of a cell's mean colour beside its embedding.
      carried_share: weight of the carried mask in the result, beside the mask decoder's mask.
      good_iou: a mask is remembered if its predicted IoU is above this share of that at the prompt.
      occlusion_iou: an object counts as hidden, and its mask is empty, below this share.
    """

    memory: int = 3
    anchors: int = 2
    cells: int = 64
    radius: float = 0.2
    temperature: float = 0.1
    cycle_radius: float = 3.0
    colour_weight: float = 1.0
    carried_share: float = 0.5
    good_iou: float = 0.5
    occlusion_iou: float = 0.2

    def __post_init__(self) -> None:
        check_fields(
            self,
            memory=POSITIVE,
            anchors=POSITIVE,
            cells=POSITIVE,
            radius=POSITIVE_SHARE,
            temperature=POSITIVE,
            cycle_radius=POSITIVE,
            colour_weight=NOT_NEGATIVE,
            carried_share=SHARE,
            good_iou=SHARE,
            occlusion_iou=SHARE,
        )
