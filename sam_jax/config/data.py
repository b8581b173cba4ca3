"""What a model is trained on."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from sam_jax.config.checks import (
    BELOW_ONE,
    GIVEN,
    NOT_NEGATIVE,
    POSITIVE,
    POSITIVE_SHARE,
    SHARE,
    Range,
    check_fields,
    require,
)

MASK_STRIDES = Range(lambda x: x in (1, 2, 4), "4, 2 or 1")


@dataclass(frozen=True)
class CompositeConfig:
    """How composites are made. Probabilities are per example unless an attribute says otherwise.

    Attributes:
      image_size: side S of the padded square, in pixels; a multiple of 4.
      masks_per_image: K, masks kept of each image; where there are more, large and hollow ones are kept more often.
      mask_stride: pixels per cell of the masks, as in `StageConfig`.
      length: examples in one pass: what `len` says.
      labelled: share of examples that are labelled photographs, where the pool has any.
      regions: share of examples that are photographs with the regions that GrabCut found, where the pool has any.
      mosaics: share of examples that are mosaics: images cut into surfaces, without objects.
      pseudo_regions: share of examples that are plain photographs with regions found in them.
      square: share of examples whose content fills the square.
      min_aspect: shorter over longer side of the other examples, at least.
      plain_background: share of composites before a plain backdrop (studio, sky).
      blurred_background: share of composites before a photograph out of focus.
      max_objects: cut-outs in a composite, at most; the least is 2.
      max_distractors: misleading edges below the objects, at most.
      photo_region_object: share of objects that are random shapes out of other photographs.
      region_object: share of objects that are such regions, cut out, where the pool has any.
      match_colours: share of objects whose colours are drawn towards the background's.
      feather: share of objects with soft edges.
      shadow: share of objects that throw a soft shadow.
      parts: share of objects that get parts.
      repeat: share of objects that come as touching copies.
      degrade: share of examples that are degraded as a whole.
    """

    image_size: int = 256
    masks_per_image: int = 16
    mask_stride: int = 4
    length: int = 1_000_000
    labelled: float = 0.07
    regions: float = 0.15
    mosaics: float = 0.15
    pseudo_regions: float = 0.10
    square: float = 0.35
    min_aspect: float = 0.5
    plain_background: float = 0.25
    blurred_background: float = 0.2
    max_objects: int = 12
    max_distractors: int = 5
    photo_region_object: float = 0.30
    region_object: float = 0.15
    match_colours: float = 0.35
    feather: float = 0.6
    shadow: float = 0.25
    parts: float = 0.45
    repeat: float = 0.12
    degrade: float = 0.9

    def __post_init__(self) -> None:
        rest = (
            "image_size",
            "masks_per_image",
            "mask_stride",
            "length",
            "min_aspect",
            "max_objects",
            "max_distractors",
        )
        shares = [one.name for one in fields(self) if one.name not in rest]
        check_fields(
            self,
            image_size=Range(lambda x: x > 0 and x % 4 == 0, "a positive multiple of 4"),
            masks_per_image=POSITIVE,
            mask_stride=MASK_STRIDES,
            length=POSITIVE,
            min_aspect=POSITIVE_SHARE,
            max_objects=Range(lambda x: x >= 2, "2 or more"),
            max_distractors=NOT_NEGATIVE,
            **dict.fromkeys(shares, SHARE),
        )


@dataclass(frozen=True)
class CompositeDataConfig:
    """Composites from a pool that `sam-jax data pool` wrote.

    The stage's image size and masks per image take the place of those in `composite`.

    Attributes:
      pool: the pool's directory, local.
      composite: how composites are made of it.
    """

    pool: str = "data/pool"
    composite: CompositeConfig = field(default_factory=CompositeConfig)

    def __post_init__(self) -> None:
        check_fields(self, pool=GIVEN)


@dataclass(frozen=True)
class RecordDataConfig:
    """Photographs with masks on disk, local or gs://.

    Attributes:
      path: tells by itself what it is: a directory of SA-1B tars (or one tar), a directory of jpg + json, a prepared
        tensorflow-datasets directory (array_record), or a COCO instances .json file.
      image_dir: where the images of a COCO file lie; None means that they are looked for beside it.
      hold_out: share of the images, chosen by image id, that training never sees and evaluation during training uses.
        Above 0, at least one image of a data set of two or more is held out, and at least one is trained on.
      max_images: train on that many images only, chosen by image id: the paper's subsets are 100_000 and 1_000_000.
      max_mask_share: masks that cover more of the image than this are dropped (SAM paper, appendix A: 0.9).
      max_bad_share: unreadable images above this share stop the run; below it each is logged and replaced.
      jitter: (smallest, largest) scale of large-scale jitter, (0.1, 2.0) in the paper's first two stages; None, as the
        published recipe has it, means no augmentation.
      scaled_decode: JPEGs are decoded at a half, a quarter or an eighth where that leaves enough pixels. It is faster,
        but images are then not quite those that inference sees.
      num_workers: processes that read ahead; 0 reads in threads of this process.
      prefetch: examples that each reader keeps ready.
    """

    path: str = "data/sa1b"
    image_dir: str | None = None
    hold_out: float = 0.002
    max_images: int | None = None
    max_mask_share: float = 0.9
    max_bad_share: float = 0.01
    jitter: tuple[float, float] | None = None
    scaled_decode: bool = False
    num_workers: int = 0
    prefetch: int = 32

    def __post_init__(self) -> None:
        check_fields(
            self,
            path=GIVEN,
            image_dir=GIVEN,
            hold_out=BELOW_ONE,
            max_images=POSITIVE,
            max_mask_share=POSITIVE_SHARE,
            max_bad_share=SHARE,
            num_workers=NOT_NEGATIVE,
            prefetch=POSITIVE,
        )
        wrong = self.jitter is not None and not 0 < self.jitter[0] <= self.jitter[1]
        require(not wrong, f"jitter must be (smallest, largest) scale above 0, not {self.jitter}")
