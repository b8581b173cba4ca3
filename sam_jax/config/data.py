"""What a model is trained on."""

from __future__ import annotations

from dataclasses import dataclass, field

from sam_jax.config.checks import require


@dataclass(frozen=True)
class CompositeConfig:
    """How composites are made. Probabilities are per example unless an attribute says otherwise.

    Attributes:
      image_size: side S of the padded square, in pixels; a multiple of 4.
      masks_per_image: K, masks kept of each picture; where there are more, large and hollow ones are kept more often.
      mask_stride: pixels per cell of the masks, as in `StageConfig`.
      length: examples in one pass: what `len` says.
      labelled: share of examples that are labelled photographs, where the pool has any.
      regions: share of examples that are photographs with the regions that GrabCut found, where the pool has any.
      mosaics: share of examples that are mosaics: pictures cut into surfaces, without objects.
      pseudo_regions: share of examples that are plain photographs with regions found in them.
      square: share of examples whose content fills the square.
      min_aspect: shorter over longer side of the other examples, at least.
      plain_background, blurred_background: share of composites before a plain backdrop (studio, sky), or before a
        photograph out of focus.
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


@dataclass(frozen=True)
class CompositeDataConfig:
    """Composites from a pool that `python -m sam_jax.data.cutout_pool build` wrote.

    The stage's image size and masks per image take the place of those in `composite`.
    """

    pool: str = "data/pool"
    composite: CompositeConfig = field(default_factory=CompositeConfig)


@dataclass(frozen=True)
class RecordDataConfig:
    """Photographs with masks on disk, local or gs://.

    Attributes:
      path: tells by itself what it is: a directory of SA-1B tars (or one tar), a directory of jpg + json, a prepared
        tensorflow-datasets directory (array_record), or a COCO instances .json file.
      image_dir: where the pictures of a COCO file lie; None means `images` beside it.
      hold_out: share of the images, chosen by image id, that training never sees and evaluation during training uses.
      max_images: train on that many images only, chosen by image id: the paper's subsets are 100_000 and 1_000_000.
      max_mask_share: masks that cover more of the picture than this are dropped (SAM paper, appendix A: 0.9).
      max_bad_share: unreadable images above this share stop the run; below it each is logged and replaced.
      jitter: (smallest, largest) scale of large-scale jitter, (0.1, 2.0) in the paper's first two stages; None, as the
        published recipe has it, means no augmentation.
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
    num_workers: int = 0
    prefetch: int = 32

    def __post_init__(self) -> None:
        require(0 <= self.hold_out < 1, f"hold_out must be a share from 0 to below 1, not {self.hold_out}")
        require(0 < self.max_mask_share <= 1, f"max_mask_share must be a share above 0, not {self.max_mask_share}")
        require(0 <= self.max_bad_share <= 1, f"max_bad_share must be a share, not {self.max_bad_share}")
        require(self.max_images is None or self.max_images > 0, f"max_images must be positive, not {self.max_images}")
        require(self.num_workers >= 0, f"num_workers must be 0 or more, not {self.num_workers}")
        wrong = self.jitter is not None and not 0 < self.jitter[0] <= self.jitter[1]
        require(not wrong, f"jitter must be (smallest, largest) scale above 0, not {self.jitter}")
