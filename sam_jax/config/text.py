"""How phrases find masks with released weights: what is said to the text tower, and which masks are taken."""

from __future__ import annotations

from dataclasses import dataclass

from sam_jax.config.checks import NOT_NEGATIVE, POSITIVE, SHARE, Range, check_fields, require

# CLIP was trained on captions. Phrases bring their own articles: "a dog", "the ball".
TEMPLATES = ("{}", "a photo of {}.", "a cropped photo of {}.", "a photo of {} in the scene.")
# What a mask may be of when it is of nothing that was asked for.
DISTRACTORS = (
    "background",
    "sky",
    "ground",
    "floor",
    "wall",
    "grass",
    "water",
    "shadow",
    "a texture",
    "part of an object",
    "something else",
)


@dataclass(frozen=True)
class TextOptions:
    """Which masks a phrase means.

    Attributes:
      templates: sentences, each with one {} for the phrase; a phrase's embedding is their mean.
      distractors: names that each mask may have instead. A mask's score for a phrase is the softmax of the phrase
        against these, by itself: other phrases do not change it. Those that the phrase says are left out. Empty: the
        score is the cosine.
      threshold: masks of a lower score are not taken.
      masks_per_phrase: at most so many, the best; None means all.
      mask_nms_thresh: of two masks of one phrase whose IoU is above this the one of the lower score goes.
      enlarge: side of the square that is looked at, in longer sides of the mask's box.
      masked_share: weight of the crop without its background in a mask's embedding; the rest is the crop's as it is.
      batch_size: crops that the image tower sees at once; takes memory, saves time.
    """

    templates: tuple[str, ...] = TEMPLATES
    distractors: tuple[str, ...] = DISTRACTORS
    threshold: float = 0.5
    masks_per_phrase: int | None = None
    mask_nms_thresh: float = 0.5
    enlarge: float = 1.2
    masked_share: float = 0.5
    batch_size: int = 32

    def __post_init__(self) -> None:
        at_least_one = Range(lambda x: x >= 1, "1 or more")
        check_fields(
            self,
            templates=Range(lambda x: x.count("{}") == 1, "sentences with one {} for the phrase"),
            distractors=Range(lambda x: bool(x.strip()), "names, not empty"),
            threshold=Range(lambda x: -1 <= x <= 1, "from -1 to 1"),
            masks_per_phrase=POSITIVE,
            mask_nms_thresh=NOT_NEGATIVE,
            enlarge=at_least_one,
            masked_share=SHARE,
            batch_size=POSITIVE,
        )
        require(len(self.templates) > 0, "templates must hold at least one sentence, not ()")
