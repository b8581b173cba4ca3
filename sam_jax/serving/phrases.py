"""What phrases name in stored images: everything mode's masks, embedded once and kept for the next phrase."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sam_jax.config import TextOptions
from sam_jax.inference.exports import Record
from sam_jax.serving.refusals import Refusal
from sam_jax.serving.schemas import TextIn
from sam_jax.text.candidates import embed_masks
from sam_jax.text.embedding import LoadedTowers
from sam_jax.text.scores import PhraseScorer, choose
from sam_jax.text.tokenizers import TextError

# Pixels of an image (H, W, 3) uint8, options of everything mode, what is told of progress -> records.
FindEverything = Callable[[np.ndarray, dict[str, Any], Callable[[int, int], None]], list[Record]]
_KEPT = 16  # images whose candidates are kept: some hundred run lengths and embeddings each


class _Candidates(NamedTuple):
    """Size (H, W) of an image, its records, and their embeddings (n, E)."""

    size: tuple[int, int]
    records: list[Record]
    embeddings: np.ndarray


class PhraseSearch:
    """Finds what phrases name. Safe for threads."""

    def __init__(
        self, towers: LoadedTowers, pixels_of: Callable[[str], np.ndarray], find_everything: FindEverything
    ) -> None:
        """Takes towers, and what gives an image by its id, and everything in it."""
        self._towers, self._options = towers, TextOptions()
        self._pixels_of, self._find_everything = pixels_of, find_everything
        self._scorer = PhraseScorer(towers, self._options)
        self._kept: OrderedDict[tuple[Any, ...], _Candidates] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, phrases: Sequence[str]) -> None:
        """Raises Refusal (422) for what is no phrase."""
        try:
            with self._lock:
                self._scorer.embed(phrases)
        except TextError as error:
            raise Refusal(422, str(error)) from error

    def embed(self, text: str) -> np.ndarray:
        """A text's embedding (E,), as a prompt. Raises Refusal (422)."""
        try:
            return self._towers.embed_texts([text])[0]
        except TextError as error:
            raise Refusal(422, str(error)) from error

    def find(
        self, name: str, wanted: TextIn, on_progress: Callable[[int, int], None]
    ) -> tuple[tuple[int, int], list[Record]]:
        """Size (H, W) of a stored image, and records of what phrases name in it, with `text` and `score`.

        Args:
          on_progress: told how many points are done, and of how many, where the image is new. What it raises ends it.

        Raises:
          Refusal: (404, 422).
        """
        size, records, embeddings = self._candidates(name, wanted.everything(), on_progress)
        with self._lock:
            scores = self._scorer.scores(embeddings, wanted.phrases)
        options = TextOptions(threshold=wanted.threshold, masks_per_phrase=wanted.masks_per_phrase)
        rles = [record["segmentation"] for record in records]
        return size, [
            {**records[i], "text": phrase, "score": float(scores[i, column])}
            for column, phrase in enumerate(wanted.phrases)
            for i in choose(rles, scores[:, column], options)
        ]

    def _candidates(
        self, name: str, everything: dict[str, Any], on_progress: Callable[[int, int], None]
    ) -> _Candidates:
        key = (name, *sorted(everything.items()))
        pixels = self._pixels_of(name)  # also where candidates are kept: whether the image is, still
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        records = self._find_everything(pixels, everything, on_progress)
        embeddings = embed_masks(self._towers, pixels, records, self._options)
        found = _Candidates(pixels.shape[:2], records, embeddings)
        with self._lock:
            self._kept[key] = found
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return found
