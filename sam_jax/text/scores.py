"""How much a mask's embedding is a phrase's: cosines, a softmax against distractors, and which masks are taken."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco

from sam_jax.config import TextOptions
from sam_jax.text.embedding import LoadedTowers
from sam_jax.text.tokenizers import check_text

_ARTICLE = re.compile(r"^(a|an|the|some)\s+")


class PhraseScorer:
    """Scores masks for phrases. Each phrase is embedded once."""

    def __init__(self, towers: LoadedTowers, options: TextOptions) -> None:
        self._towers, self._options = towers, options
        self._known: dict[str, np.ndarray] = {}

    def embed(self, phrases: Sequence[str]) -> np.ndarray:
        """(n, E) float32 of length one: the mean over the templates. Raises TextError for what is no phrase."""
        for phrase in phrases:
            check_text(phrase)
        new = list(dict.fromkeys(phrase for phrase in phrases if phrase not in self._known))
        sentences = [template.replace("{}", phrase.strip()) for phrase in new for template in self._options.templates]
        found = self._towers.embed_texts(sentences).reshape(
            len(new), len(self._options.templates), self._towers.embed_dim
        )
        means = found.mean(axis=1)
        self._known |= zip(new, means / np.linalg.norm(means, axis=1, keepdims=True), strict=True)
        return np.stack([self._known[phrase] for phrase in phrases])

    def scores(self, embeddings: np.ndarray, phrases: Sequence[str]) -> np.ndarray:
        """Scores (n, phrases) float64 of masks with embeddings (n, E): from 0 to 1, or cosines without distractors."""
        cosines = (embeddings @ self.embed(phrases).T).astype(np.float64)
        if not self._options.distractors:
            return cosines
        others = embeddings @ self.embed(self._options.distractors).T
        scale = self._towers.logit_scale
        found = np.empty_like(cosines)
        for column, phrase in enumerate(phrases):
            apart = [_bare(name) != _bare(phrase) for name in self._options.distractors]
            if not any(apart):
                raise ValueError(f"all distractors say {phrase!r}; give others, or none for cosines")
            against = scale * (others[:, apart] - cosines[:, [column]])
            found[:, column] = 1 / (1 + np.exp(np.minimum(against, 700)).sum(axis=1))
        return found


def _bare(name: str) -> str:
    return _ARTICLE.sub("", name.strip().lower())


def choose(rles: Sequence[dict], scores: np.ndarray, options: TextOptions) -> list[int]:
    """Which masks a phrase means: by falling score (n,), none below the threshold, none too much like a better one."""
    chosen: list[int] = []
    for i in np.argsort(-scores, kind="stable").tolist():
        if scores[i] < options.threshold or len(chosen) == options.masks_per_phrase:
            break
        others = [rles[k] for k in chosen]
        if not others or coco.iou([rles[i]], others, [0] * len(others)).max() <= options.mask_nms_thresh:
            chosen.append(i)
    return chosen
