"""Phrases as prompts of images, with a SAM that knows no text: the work of `TextSegmenter` as a segmenter of many."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
from PIL import Image

from sam_jax.batch.prompt_files import ImageObjects
from sam_jax.batch.segmenters import PromptedSegmenter, Record, Size
from sam_jax.inference.images import as_array
from sam_jax.text.segmenter import TextSegmenter


class PhraseSegmenter:
    """Masks of what phrases name, found among everything in the image; other prompts have a mask each.

    An object with a text and with points or a box has one mask, by its points and box, and the text's score for it.
    """

    def __init__(self, segmenter: TextSegmenter) -> None:
        self._text = segmenter
        self._prompted = PromptedSegmenter(segmenter.model, segmenter.variables)

    def find(self, image: np.ndarray | Image.Image, objects: ImageObjects | None) -> list[Record]:
        """Records, in the objects' order; a text alone has as many as it names. Nothing is left for the host.

        Raises:
          ValueError: a text cannot be used, or a prompt lies outside the image.
        """
        pixels, prompts = as_array(image), () if objects is None else objects.objects
        places = [i for i, prompt in enumerate(prompts) if prompt.points or prompt.box is not None]
        bare = [dataclasses.replace(prompts[i], text=None) for i in places]
        found = self._prompted.find(pixels, ImageObjects(tuple(bare)))
        placed = dict(zip(places, self._prompted.records(found, pixels.shape[:2]), strict=True))
        for i in places:
            if (text := prompts[i].text) is not None:
                (score,) = self._text.score_records(pixels, [placed[i]], [text])[:, 0]
                placed[i] |= {"text": text, "score": prompts[i].extra.get("score", float(score))}
        phrases = list(dict.fromkeys(str(p.text) for i, p in enumerate(prompts) if i not in placed))
        named: dict[str, list[Record]] = {phrase: [] for phrase in phrases}
        for record in self._text.segment(pixels, phrases) if phrases else ():
            named[record["text"]].append(record)
        return [
            record | prompt.extra
            for i, prompt in enumerate(prompts)
            for record in ([placed[i]] if i in placed else named[str(prompt.text)])
        ]

    def records(self, found: list[Record], size: Size) -> list[Record]:
        """What `find` gave."""
        return found

    def on_device(self, device: jax.Device) -> PhraseSegmenter:
        """The same, with its variables on a device."""
        return PhraseSegmenter(self._text.on_device(device))
