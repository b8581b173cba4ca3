"""How good are the masks? The SAM paper's interactive protocol, on any labelled images.

`sam-jax evaluate DATA... --checkpoint DIR --out report/` scores a model, prints tables and writes a report.
"""

from sam_jax.evaluation.options import EvaluationOptions
from sam_jax.evaluation.protocol import evaluate
from sam_jax.evaluation.results import EvaluationResult, average_over_sets
from sam_jax.evaluation.sets.image_sets import ImageSet, LabelledImage, RecordImages, open_image_set
from sam_jax.evaluation.sets.paper_sets import PAPER_SETS, open_paper_set

__all__ = [
    "PAPER_SETS",
    "EvaluationOptions",
    "EvaluationResult",
    "ImageSet",
    "LabelledImage",
    "RecordImages",
    "average_over_sets",
    "evaluate",
    "open_image_set",
    "open_paper_set",
]
