"""Segment Anything in JAX and Flax.

import sam_jax

predictor = sam_jax.SamPredictor(*sam_jax.load_model())
predictor.set_image(sam_jax.read_image("image.jpg"))
masks, iou_predictions, low_res_masks = predictor.predict(point_coords, point_labels)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sam_jax.checkpoint import CheckpointError, load_model, save_model
    from sam_jax.config import SamConfig, vit_b, vit_h, vit_l, vit_tiny
    from sam_jax.inference.automatic_mask_generator import SamAutomaticMaskGenerator
    from sam_jax.inference.images import ImageError, read_image, read_mask_input
    from sam_jax.inference.predictor import PredictedMasks, SamPredictor
    from sam_jax.models.sam import Sam, init_variables
    from sam_jax.structs import MaskPredictions, Prompts
    from sam_jax.text.loading import load_towers
    from sam_jax.text.segmenter import TextSegmenter

__version__ = "0.1.0"
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
    "TextSegmenter",
    "init_variables",
    "load_model",
    "load_towers",
    "read_image",
    "read_mask_input",
    "save_model",
    "vit_b",
    "vit_h",
    "vit_l",
    "vit_tiny",
]

# Names are imported on first access, so that `sam-jax --help` does not wait for JAX.
_MODULES = {
    "checkpoint": ("CheckpointError", "load_model", "save_model"),
    "config": ("SamConfig", "vit_b", "vit_h", "vit_l", "vit_tiny"),
    "inference.automatic_mask_generator": ("SamAutomaticMaskGenerator",),
    "inference.images": ("ImageError", "read_image", "read_mask_input"),
    "inference.predictor": ("PredictedMasks", "SamPredictor"),
    "models.sam": ("Sam", "init_variables"),
    "structs": ("MaskPredictions", "Prompts"),
    "text.loading": ("load_towers",),
    "text.segmenter": ("TextSegmenter",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
