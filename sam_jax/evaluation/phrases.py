"""How well phrases find objects: names of categories as phrases, in the images that have such objects.

For each image and each category in it one phrase is asked for. Of its masks that of the highest score counts: its IoU
with the nearest object of the category, 0 where there is none. Recall counts objects that any mask of their phrase
covers with an IoU of at least 0.5. The confusion says which category's object the best mask lies on instead.
"""

from __future__ import annotations

import io
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from etils import epath
from PIL import Image
from pycocotools import mask as coco
from tqdm import tqdm

from sam_jax.data.coco_files import read_categories, read_coco
from sam_jax.data.coco_places import CocoPlaces
from sam_jax.data.records import DataError
from sam_jax.data.segmentations import Rle, to_rles
from sam_jax.files import write_atomically
from sam_jax.inference.overlays import mask_record
from sam_jax.inference.predictor import SamPredictor
from sam_jax.models.sam import Sam
from sam_jax.rgb import to_rgb
from sam_jax.text.embedding import LoadedTowers
from sam_jax.text.segmenter import TextSegmenter

# An image (H, W, 3) uint8 and phrases -> records with `segmentation` (RLE), `text` and `score`.
FindPhrases = Callable[[np.ndarray, Sequence[str]], list[dict[str, Any]]]
HIT = 0.5  # IoU from which on a mask is of an object
NOTHING = "(nothing)"
_SHOWN = 15
_BATCH = 16


@dataclass(frozen=True, eq=False)
class NamedObjects:
    """An image with the names of its objects: pixels (H, W, 3) uint8, n RLEs and n names."""

    image: np.ndarray
    rles: list[Rle]
    names: list[str]


class CategorySet:
    """The images of a COCO or LVIS file, with the categories of their objects.

    Args:
      path: the file. image_dir: where its images lie; None means that they are looked for beside it.

    Raises:
      DataError: the file is none of COCO's, has no categories, or its images are not to be found.
    """

    def __init__(self, path: epath.PathLike, image_dir: epath.PathLike | None = None) -> None:
        self.path = epath.Path(path)
        self._images, self._categories = read_coco(self.path), read_categories(self.path)
        self._places = CocoPlaces(self.path, self._images, () if image_dir is None else (image_dir,))

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> NamedObjects:
        """Raises DataError where the image or a mask cannot be read."""
        entry = self._images[index]
        try:
            with Image.open(io.BytesIO(self._places.read(index))) as opened:
                image = np.asarray(to_rgb(opened))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{self.path}: {entry.name} cannot be decoded ({error}); fetch the file again") from error
        pairs = zip(entry.segmentations(), self._categories[entry.image_id], strict=True)
        rles, names = [], []
        for segmentation, name in pairs:
            for rle in to_rles([segmentation], image.shape[:2], entry.name):
                rles.append(rle)
                names.append(spoken(name))
        return NamedObjects(image, rles, names)


def spoken(category: str) -> str:
    """A category's name as a phrase: LVIS writes aerosol_can."""
    return " ".join(category.replace("_", " ").split())


@dataclass
class PhraseScores:
    """What an evaluation found.

    Attributes:
      ious: by phrase, the IoU of the best mask in each image that has it.
      objects, found: by phrase, objects, and those of them that a mask covers.
      confusion: (phrase, category of the object that its best mask lies on) -> images.
      images, skipped: images that were looked at, and those that could not be read.
    """

    ious: dict[str, list[float]] = field(default_factory=dict)
    objects: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    confusion: Counter[tuple[str, str]] = field(default_factory=Counter)
    images: int = 0
    skipped: int = 0

    @property
    def mean_iou(self) -> float:
        """Over all phrases of all images."""
        return float(np.mean([iou for ious in self.ious.values() for iou in ious]))

    @property
    def recall(self) -> float:
        """Share of all objects that a mask of their phrase covers."""
        return self.found.total() / self.objects.total()

    def add(self, one: NamedObjects, records: Sequence[dict[str, Any]]) -> None:
        """Counts an image, of which `records` were found."""
        self.images += 1
        for phrase in dict.fromkeys(one.names):
            own = [record for record in records if record["text"] == phrase]
            masks = [record["segmentation"] for record in own]
            overlaps = coco.iou(masks, one.rles, [0] * len(one.rles)) if masks else np.zeros((0, len(one.rles)))
            is_own = np.array([name == phrase for name in one.names])
            best = overlaps[int(np.argmax([r["score"] for r in own]))] if own else np.zeros(len(one.rles))
            self.ious.setdefault(phrase, []).append(float(best[is_own].max()))
            self.objects[phrase] += int(is_own.sum())
            self.found[phrase] += int((overlaps.max(axis=0, initial=0)[is_own] >= HIT).sum())
            # Of objects that the mask covers alike, one of its own name.
            nearest = max(range(len(best)), key=lambda i: (best[i], is_own[i]))
            self.confusion[phrase, one.names[nearest] if best[nearest] >= HIT else NOTHING] += 1

    def summary(self) -> dict[str, Any]:
        """Ready for JSON."""
        phrases = {
            phrase: {
                "images": len(ious),
                "iou": float(np.mean(ious)),
                "objects": self.objects[phrase],
                "recall": self.found[phrase] / self.objects[phrase],
                "lies_on": {other: n for (name, other), n in sorted(self.confusion.items()) if name == phrase},
            }
            for phrase, ious in sorted(self.ious.items())
        }
        said = {"images": self.images, "skipped": self.skipped, "hit_iou": HIT}
        return said | {"mean_iou": self.mean_iou, "recall": self.recall, "phrases": phrases}

    def table(self) -> str:
        """Some lines for people: all phrases together, the rarest hits, and the commonest confusions."""
        lines = [f"{'phrase':<28}{'images':>8}{'IoU':>8}{'objects':>9}{'recall':>8}"]
        shown = sorted(self.ious, key=lambda phrase: -len(self.ious[phrase]))[:_SHOWN]
        for phrase in shown:
            ious, recall = self.ious[phrase], self.found[phrase] / self.objects[phrase]
            lines.append(f"{phrase[:27]:<28}{len(ious):>8}{np.mean(ious):>8.3f}{self.objects[phrase]:>9}{recall:>8.3f}")
        if len(self.ious) > _SHOWN:
            lines.append(f"and {len(self.ious) - _SHOWN} more phrases")
        count = sum(map(len, self.ious.values()))
        lines.append(f"{'all':<28}{count:>8}{self.mean_iou:>8.3f}{self.objects.total():>9}{self.recall:>8.3f}")
        wrong = Counter({pair: n for pair, n in self.confusion.items() if pair[0] != pair[1]})
        lines += [f"{n} times {phrase!r} lay on {other}" for (phrase, other), n in wrong.most_common(5)]
        return "\n".join(lines)


def evaluate_phrases(
    find: FindPhrases, images: CategorySet, limit: int | None = None, seed: int = 0, progress: bool = False
) -> PhraseScores:
    """Asks for each category of each image.

    Args:
      find: such as `TextSegmenter(...).segment`.
      limit: at most so many random images.

    Raises:
      DataError: no image can be read.
    """
    scores = PhraseScores()
    for index in tqdm(_order(len(images), limit, seed), desc="phrases", unit="image", disable=not progress):
        try:
            one = images[int(index)]
        except DataError as error:
            warnings.warn(f"left out: {error}", stacklevel=2)
            scores.skipped += 1
            continue
        if one.rles:
            scores.add(one, find(one.image, list(dict.fromkeys(one.names))))
    if not scores.images:
        raise DataError(f"{images.path}: none of its {len(images)} images can be read")
    return scores


def _order(count: int, limit: int | None, seed: int) -> np.ndarray:
    return np.arange(count) if limit is None else np.sort(np.random.default_rng(seed).permutation(count)[:limit])


def finder(model: Sam, variables: Any, towers: LoadedTowers) -> FindPhrases:
    """What finds phrases: the model itself where it was trained with texts, else everything mode and the towers."""
    if not model.config.text_embed_dim:
        return TextSegmenter(model, variables, towers).segment
    predictor = SamPredictor(model, variables)

    def find(image: np.ndarray, phrases: Sequence[str]) -> list[dict[str, Any]]:
        predictor.set_image(image)
        return [record for part in _parts(phrases) for record in _prompted(predictor, towers, part)]

    return find


def _parts(phrases: Sequence[str]) -> Iterator[Sequence[str]]:
    return (phrases[start : start + _BATCH] for start in range(0, len(phrases), _BATCH))


def _prompted(predictor: SamPredictor, towers: LoadedTowers, phrases: Sequence[str]) -> Iterator[dict[str, Any]]:
    masks, ious, _ = predictor.predict_many(text_embeddings=towers.embed_texts(phrases))
    for number, phrase in enumerate(phrases):
        best = int(ious[number].argmax())
        iou = float(ious[number, best])
        yield mask_record(number, masks[number, best], iou, {"text": phrase, "score": iou})


def write_phrases(out: epath.PathLike, scores: PhraseScores, about: dict[str, Any]) -> epath.Path:
    """Writes `out`/text.json, and returns its path."""
    folder = epath.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"about": about, **scores.summary()}, indent=2)
    write_atomically(folder / "text.json", content.encode())
    return folder / "text.json"
