"""Training data: images on disk, or composites made from a pool."""

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
      masks_per_image: K, masks kept per image; of more than K, large and hollow ones are kept with higher probability.
      mask_stride: pixels per cell of the masks, as in `StageConfig`.
      length: examples in one pass, the `len` of the source.
      labelled: share of examples that are labelled photographs, if the pool has any.
      regions: share of examples that are photographs with the regions that `pool-label` found, if the pool has any.
      mosaics: share of examples that are mosaics: images cut into surfaces, without objects.
      pseudo_regions: share of examples that are unlabelled photographs with regions found in them on the fly.
      square: share of examples whose content fills the square.
      min_aspect: lower limit of the shorter side over the longer side, for the other examples.
      plain_background: share of composites on a plain background (studio, sky).
      blurred_background: share of composites on an out-of-focus photograph.
      max_objects: largest number of cut-outs in a composite; the smallest is 2.
      max_distractors: largest number of misleading edges behind the objects.
      photo_region_object: share of objects that are random shapes cut out of other photographs.
      region_object: share of objects that are regions of `pool-label`, cut out, if the pool has any.
      model_object: share of objects that are rendered models, whose parts are known, if the pool has any.
      match_colours: share of objects whose colours are shifted towards the background's.
      feather: share of objects with soft edges.
      shadow: share of objects that cast a soft shadow.
      parts: share of objects that get parts.
      repeat: share of objects that appear as several touching copies.
      degrade: share of examples whose whole image is degraded.
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
    model_object: float = 0.0
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

    The stage's image size, masks per image and mask stride replace those in `composite`.

    Attributes:
      pool: the pool's directory, or the tar that `sam-jax data pack-pool` made of it; local.
      composite: how composites are made of it.
      num_workers: processes that make composites, each a core's work; 0 makes them in threads of this process. None:
        all cores but two where there is an accelerator, which would wait for fewer; on a CPU none, for the training
        step wants its cores, or one where `reuse` needs it.
      reuse: how often an example is used, at most, while new ones arrive. 1 (default): once, in an order that follows
        from the seed, so that a run and its continuation are the same bit by bit. More keep a fast accelerator busy
        with few cores; which examples a batch holds then depends on when they arrive, and a continuation begins with
        new ones.
      buffer_gib: GiB of shared memory for examples, at most. With `reuse`, as many as fit are kept (at 256 px 5,200 a
        GiB, at 512 px 1,300); without, few are ahead of training at a time.
    """

    pool: str = "data/pool"
    composite: CompositeConfig = field(default_factory=CompositeConfig)
    num_workers: int | None = None
    reuse: int = 1
    buffer_gib: float = 4.0

    def __post_init__(self) -> None:
        above = Range(lambda x: x > 0, "above 0")
        check_fields(self, pool=GIVEN, num_workers=NOT_NEGATIVE, reuse=POSITIVE, buffer_gib=above)
        needs = self.reuse > 1 and self.num_workers == 0
        require(not needs, f"reuse {self.reuse} needs processes that make new examples; num_workers must not be 0")


@dataclass(frozen=True)
class RecordDataConfig:
    """Photographs with masks on disk, local or gs://.

    Attributes:
      path: a directory of SA-1B tars (or one tar), a directory of jpg + json, a prepared tensorflow-datasets directory
        (array_record), or a COCO instances .json file. The format is detected.
      image_dir: directory of a COCO file's images; None looks for them beside the file.
      hold_out: share of the images, chosen by image id, that are kept out of training for the evaluation during it.
        Above 0, at least one image of a data set of two or more is held out, and at least one is trained on.
      max_images: train on this many images only, chosen by image id: the paper's subsets are 100_000 and 1_000_000.
      max_mask_share: masks that cover more than this share of the image are dropped (SAM paper, appendix A: 0.9).
      max_bad_share: a larger share of unreadable images stops the run; below it, each is logged and replaced.
      jitter: (smallest, largest) scale of large-scale jitter, (0.1, 2.0) in the paper's first two stages; None, as in
        the published recipe, means no augmentation.
      scaled_decode: decode JPEGs at 1/2, 1/4 or 1/8 size where that leaves enough pixels. Faster, but the images then
        differ slightly from those that inference sees.
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
