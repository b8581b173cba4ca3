"""Settings of everything mode."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from sam_jax.config.checks import BELOW_ONE, NOT_NEGATIVE, POSITIVE, SHARE, check_fields, one_of, require
from sam_jax.config.model import SamConfig

OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle", "low_res")


@dataclass(frozen=True)
class AmgConfig:
    """Settings of `SamAutomaticMaskGenerator`.

    The first block has the names, meanings and defaults of the official class; the second is ours, off by default.

    Attributes:
      points_per_side: points along each side of the grid over the whole image.
      points_per_batch: points decoded at once.
      pred_iou_thresh: masks whose predicted IoU is not above this are dropped; 0 switches the filter off. None uses
        `SamConfig.pred_iou_thresh` of the model: 0.88 for the published sizes.
      stability_score_thresh: masks below this stability score are dropped; 0 switches the filter off. None uses
        `SamConfig.stability_score_thresh` of the model: 0.95 for the published sizes.
      stability_score_offset: the score is the IoU of the masks at `mask_threshold` plus and minus this many logits.
      box_nms_thresh: of two masks of one crop whose *boxes* overlap by more than this IoU, the one with the lower
        predicted IoU is dropped.
      crop_n_layers: above 0, masks are also generated in 4, 16, ... overlapping crops, one set of crops per layer.
      crop_nms_thresh: as `box_nms_thresh`, between crops; masks of smaller crops win.
      crop_overlap_ratio: overlap of the first layer's crops, as a share of the image's shorter side.
      crop_n_points_downscale_factor: layer i has points_per_side / factor**i points along each side of each crop.
      min_mask_region_area: above 0, holes of fewer pixels are filled and islands of fewer pixels removed; duplicates
        that result are dropped. To drop small masks, use `min_mask_area`.
      output_mode: format of `segmentation`: "binary_mask" (H, W) bool, "uncompressed_rle", "coco_rle", or "low_res"
        (ours): the mask decoder's logits for the crop, (4h, 4w) float32.
      mask_nms_thresh: of two masks whose *pixels* overlap by more than this IoU, the one with the lower predicted IoU
        is dropped. Box NMS alone leaves near-duplicates.
      min_mask_area: masks of fewer pixels of the image are dropped.
      max_mask_area: masks of more pixels of the image are dropped; None means no limit.
      max_mask_cover: masks that cover more than this share of the image are dropped; SA-1B was made with 0.95.
      skip_full_image: generate masks in crops only, not in the whole image: for small objects in very large images.
    """

    points_per_side: int | None = 32
    points_per_batch: int = 64
    pred_iou_thresh: float | None = None
    stability_score_thresh: float | None = None
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    min_mask_region_area: int = 0
    output_mode: str = "binary_mask"

    mask_nms_thresh: float | None = None
    min_mask_area: int = 0
    max_mask_area: int | None = None
    max_mask_cover: float = 1.0
    skip_full_image: bool = False

    def __post_init__(self) -> None:
        check_fields(
            self,
            points_per_side=POSITIVE,
            points_per_batch=POSITIVE,
            stability_score_offset=NOT_NEGATIVE,
            box_nms_thresh=SHARE,
            crop_n_layers=NOT_NEGATIVE,
            crop_nms_thresh=SHARE,
            crop_overlap_ratio=BELOW_ONE,
            crop_n_points_downscale_factor=POSITIVE,
            min_mask_region_area=NOT_NEGATIVE,
            output_mode=one_of(OUTPUT_MODES),
            mask_nms_thresh=SHARE,
            min_mask_area=NOT_NEGATIVE,
            max_mask_area=NOT_NEGATIVE,
            max_mask_cover=SHARE,
        )
        require(
            not self.skip_full_image or self.crop_n_layers > 0,
            "skip_full_image without crops leaves nothing to segment: set crop_n_layers",
        )

    def of_model(self, sam: SamConfig) -> AmgConfig:
        """These settings, with thresholds that are None replaced by the model's."""
        names = ("pred_iou_thresh", "stability_score_thresh")
        return dataclasses.replace(self, **{name: getattr(sam, name) for name in names if getattr(self, name) is None})
