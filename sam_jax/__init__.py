"""Segment Anything in JAX and Flax.

import sam_jax

predictor = sam_jax.SamPredictor(*sam_jax.load_model())
predictor.set_image(sam_jax.read_image("image.jpg"))
masks, iou_predictions, low_res_masks = predictor.predict(point_coords, point_labels)
"""

from sam_jax.checkpoint import CheckpointError, load_model, save_model
from sam_jax.config import SamConfig, vit_b, vit_h, vit_l, vit_tiny
from sam_jax.inference.automatic_mask_generator import SamAutomaticMaskGenerator
from sam_jax.inference.images import ImageError, read_image, read_mask_input
from sam_jax.inference.predictor import PredictedMasks, SamPredictor
from sam_jax.models.sam import Sam, init_variables
from sam_jax.structs import MaskPredictions, Prompts

__all__ = [
    "CheckpointError",
    "ImageError",
    "MaskPredictions",
    "PredictedMasks",
    "Prompts",
    "Sam",
    "SamAutomaticMaskGenerator",
    "SamConfig",
    "SamPredictor",
    "init_variables",
    "load_model",
    "read_image",
    "read_mask_input",
    "save_model",
    "vit_b",
    "vit_h",
    "vit_l",
    "vit_tiny",
]
__version__ = "0.1.0"
