"""Text prompts as the predictor takes them: embeddings, whichever tower they are from."""

from __future__ import annotations

from typing import Any

import numpy as np


def check_text_embeddings(embeddings: Any, width: int) -> np.ndarray | None:
    """Embeddings (N, E) as float32 of length one; None as None.

    Args:
      width: `SamConfig.text_embed_dim` of the model.

    Raises:
      ValueError: the model has no text prompts, or the embeddings have another shape, are zero or not finite.
    """
    if embeddings is None:
        return None
    if not width:
        raise ValueError(
            "this model was not trained with text prompts (SamConfig.text_embed_dim is 0); sam_jax.TextSegmenter finds "
            "what phrases name with any model"
        )
    array = np.asarray(embeddings, np.float32)
    if array.ndim != 2 or array.shape[1] != width:
        raise ValueError(
            f"text_embeddings have shape {array.shape}; expected (N, {width}), as the model was trained with"
        )
    lengths = np.linalg.norm(array, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or not lengths.all():
        raise ValueError("a text embedding is zero or not finite; expected what a text tower gives")
    return np.asarray(array / lengths)
