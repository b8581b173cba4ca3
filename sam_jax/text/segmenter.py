"""TextSegmenter: masks of what phrases name, with any SAM, such as the released ones, which know no text.

Everything mode, given boxes or a detector say where objects are; the towers of CLIP or SigLIP 2 say what they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image

from sam_jax.config import TextOptions
from sam_jax.inference.automatic_mask_generator import SamAutomaticMaskGenerator
from sam_jax.inference.images import as_array
from sam_jax.inference.predictor import SamPredictor
from sam_jax.models.sam import Sam
from sam_jax.text.candidates import Detector, Record, detect, embed_masks, masks_of_boxes
from sam_jax.text.embedding import LoadedTowers
from sam_jax.text.scores import PhraseScorer, choose
from sam_jax.text.tokenizers import check_text


class TextSegmenter:
    """Finds what phrases name in an image.

    segmenter = TextSegmenter(*sam_jax.load_model(), sam_jax.load_towers("checkpoints/clip_vit_b_32"))
    records = segmenter.segment(sam_jax.read_image("image.jpg"), ["a dog", "the ball"])
    """

    def __init__(
        self,
        model: Sam,
        variables: dict[str, Any],
        towers: LoadedTowers | None = None,
        *,
        options: TextOptions | None = None,
        detector: Detector | None = None,
        progress: bool = False,
        **everything: Any,
    ) -> None:
        """Takes a model, towers and settings.

        Args:
          model, variables: as `load_model` gives them.
          towers: as `load_towers` gives them; None only with a detector, whose scores then count.
          options: which masks a phrase means; None means the defaults.
          detector: a function from an image (H, W, 3) uint8 and phrases to a `PhraseBoxes` of each phrase. Its boxes
            become masks, and everything mode does not run.
          progress: shows a bar while crops are scored, where there is a terminal.
          everything: options of everything mode, fields of `AmgConfig`.

        Raises:
          ValueError: neither towers nor a detector is given, or an option is unknown or out of range.
        """
        if towers is None and detector is None:
            raise ValueError("no text model is given; give towers (sam_jax.load_towers), or a detector")
        self.towers, self.detector, self.progress = towers, detector, progress
        self.options = options or TextOptions()
        self._everything = everything
        self._generator = SamAutomaticMaskGenerator(model, variables, **everything | {"output_mode": "coco_rle"})
        self._predictor = SamPredictor(model, self._generator.variables)
        self._scorer = None if towers is None else PhraseScorer(towers, self.options)

    @property
    def model(self) -> Sam:
        """The model that masks are of."""
        return self._generator.model

    @property
    def variables(self) -> dict[str, Any]:
        """The model's, as they are computed with."""
        return self._generator.variables

    def segment(
        self, image: np.ndarray | Image.Image, phrases: Sequence[str], boxes: np.ndarray | None = None
    ) -> list[Record]:
        """Masks of what phrases name.

        Args:
          image: (H, W, 3) uint8, or an image of Pillow.
          phrases: such as ["a dog", "the ball"]; each is scored by itself.
          boxes: (n, 4) xyxy in pixels of the image: only their objects are looked at, in the place of everything.

        Returns:
          Records as of everything mode with compressed run lengths, and `text` and `score` of each: phrase by phrase,
          the best first. A phrase without a mask of at least `TextOptions.threshold` has none.

        Raises:
          TextError: a phrase is empty, too long, or has no word that the text tower knows.
          ValueError: no phrase is given, or a box is empty or lies outside the image.
        """
        if isinstance(phrases, str):
            raise ValueError(f"phrases is the text {phrases!r}; expected a list of phrases, such as [{phrases!r}]")
        if not phrases:
            raise ValueError("no phrase is given; expected some, such as ['a dog']")
        for phrase in phrases:
            check_text(phrase)
        pixels = as_array(image)
        if self.detector is not None and boxes is None:
            return self._detected(pixels, phrases)
        return self.choose(*self.score(pixels, phrases, boxes), phrases)

    def score(
        self, image: np.ndarray | Image.Image, phrases: Sequence[str], boxes: np.ndarray | None = None
    ) -> tuple[list[Record], np.ndarray]:
        """All candidates, and their scores (n, phrases) float64; arguments as of `segment`."""
        self._text_model()[1].embed(phrases)  # says what is wrong with them before the work begins
        pixels = as_array(image)
        if boxes is None:
            candidates = self._generator.generate(pixels)
        else:
            candidates = masks_of_boxes(self._predictor, pixels, np.asarray(boxes, float).reshape(-1, 4))
        return candidates, self.score_records(pixels, candidates, phrases)

    def score_records(self, image: np.ndarray, records: Sequence[Record], phrases: Sequence[str]) -> np.ndarray:
        """Scores (n, phrases) float64 of masks that are there already, as records with run lengths."""
        towers, scorer = self._text_model()
        return scorer.scores(embed_masks(towers, image, records, self.options, self.progress), phrases)

    def _text_model(self) -> tuple[LoadedTowers, PhraseScorer]:
        if self.towers is None or self._scorer is None:
            raise ValueError("no text model is given; give towers (sam_jax.load_towers)")
        return self.towers, self._scorer

    def choose(self, candidates: Sequence[Record], scores: np.ndarray, phrases: Sequence[str]) -> list[Record]:
        """Of scored candidates those that each phrase means, as `segment` returns them."""
        rles = [record["segmentation"] for record in candidates]
        return [
            {**candidates[i], "text": phrase, "score": float(scores[i, column])}
            for column, phrase in enumerate(phrases)
            for i in choose(rles, scores[:, column], self.options)
        ]

    def on_device(self, device: jax.Device) -> TextSegmenter:
        """The same, with its variables on a device."""
        return TextSegmenter(
            self.model,
            jax.device_put(self.variables, device),
            None if self.towers is None else self.towers.on_device(device),
            options=self.options,
            detector=self.detector,
            progress=self.progress,
            **self._everything,
        )

    def _detected(self, image: np.ndarray, phrases: Sequence[str]) -> list[Record]:
        assert self.detector is not None
        found = detect(self.detector, image, phrases)
        options = dataclasses.replace(self.options, mask_nms_thresh=1.0)  # detectors have done it
        masks = masks_of_boxes(self._predictor, image, np.concatenate([one.boxes for one in found]))
        records, first = [], 0
        for phrase, (boxes, scores) in zip(phrases, found, strict=True):
            own, first = masks[first : first + len(boxes)], first + len(boxes)
            for i in choose([record["segmentation"] for record in own], scores, options):
                records.append({**own[i], "text": phrase, "score": float(scores[i])})
        return records
