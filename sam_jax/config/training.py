"""Settings of training. The files in configs/ return a `TrainConfig`."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field

from sam_jax.config.checks import (
    BELOW_ONE,
    GIVEN,
    NOT_NEGATIVE,
    POSITIVE,
    POSITIVE_SHARE,
    SHARE,
    Range,
    check_fields,
    one_of,
    require,
)
from sam_jax.config.data import MASK_STRIDES, CompositeDataConfig, RecordDataConfig
from sam_jax.config.model import SamConfig

OPTIMIZERS = ("adamw", "muon")
STORAGE_DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class StageConfig:
    """A part of training at one image size.

    Attributes:
      image_size: side of the padded square input, in pixels; a multiple of the model's patch size.
      batch_size: images in each step, over all devices.
      masks_per_image: largest number of masks of each image per step, drawn at random (SAM paper, appendix A: 64).
      num_steps: training steps of this stage.
      mask_stride: pixels of the input frame per cell of the masks in the loss. 4 (default) is the decoder's own grid,
        a quarter of the frame's side, at a sixteenth of the memory. With 2 or 1 its logits are enlarged bilinearly,
        as in SAM 2's training code; SAM's paper does not say.
      num_points: replaces `InteractionConfig.num_points` in this stage, unless None.
      mosaics: replaces `CompositeConfig.mosaics` in this stage, unless None.
      num_examples: number of composites made for this stage, kept in memory and repeated. None always makes new ones,
        which costs a CPU about as much as a small model's step.
    """

    image_size: int = 1024
    batch_size: int = 256
    masks_per_image: int = 64
    num_steps: int = 90_000
    mask_stride: int = 4
    num_points: int | None = None
    mosaics: float | None = None
    num_examples: int | None = None

    def __post_init__(self) -> None:
        counts = ("image_size", "batch_size", "masks_per_image", "num_steps", "num_examples")
        rest = {"mask_stride": MASK_STRIDES, "num_points": NOT_NEGATIVE, "mosaics": SHARE}
        check_fields(self, "stage", **dict.fromkeys(counts, POSITIVE), **rest)


@dataclass(frozen=True)
class InteractionConfig:
    """The simulated interactive segmentation of one training step (SAM paper, appendix A).

    Attributes:
      num_points: corrective points after the first prompt, one per interaction, drawn from the error region.
      num_mask_only_steps: further interactions that feed back the mask without a new point: the last one, and the
        others at random positions.
      box_probability: probability that the first prompt is a box rather than a point.
      box_noise: standard deviation of the noise on box corners, as a share of the box side.
      box_noise_max: limit of the noise on box corners, in pixels of the input frame.
      box_noise_uniform: draw uniform noise from +-min(box_noise * side, box_noise_max), which SAM 2's training code
        calls SAM's noise. The paper says "standard deviation": default False, Gaussian.
      box_multimask: treat a box as first prompt as ambiguous, and train the three masks on it. The paper says "more
        than one prompt" for the single mask, and a box is two corner tokens: default False.
      text_probability: with text prompts, probability that the first prompt of an object has its text embedding.
      text_alone: share of these that have nothing else, in the paper all; the others also have their point or box.
    """

    num_points: int = 8
    num_mask_only_steps: int = 2
    box_probability: float = 0.5
    box_noise: float = 0.1
    box_noise_max: float = 20.0
    box_noise_uniform: bool = False
    box_multimask: bool = False
    text_probability: float = 1.0
    text_alone: float = 1.0

    def __post_init__(self) -> None:
        sizes = dict.fromkeys(("num_points", "num_mask_only_steps", "box_noise", "box_noise_max"), NOT_NEGATIVE)
        check_fields(self, **dict.fromkeys(("box_probability", "text_probability", "text_alone"), SHARE), **sizes)

    @property
    def num_steps(self) -> int:
        """Decoder passes in one training step."""
        return 1 + self.num_points + self.num_mask_only_steps


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss (SAM paper, appendix A: focal and dice 20:1, IoU 1).

    Attributes:
      focal_weight: weight of the focal loss, 0 or more.
      dice_weight: weight of the dice loss, 0 or more.
      iou_weight: weight of the squared error of the predicted IoU, 0 or more.
      focal_alpha: weight of foreground pixels in the focal loss, from 0 to 1; background pixels get 1 - alpha. The
        paper gives none; 0.25 is that of Lin et al. 2017, which SAM 2's training code uses.
      focal_gamma: exponent that reduces the weight of pixels already classified well, 0 or more. From the same source.
      supervise_all_iou: the paper leaves open which of the three masks train the IoU head. False (default): only the
        lowest-loss mask; True: all three, which ranks them better after little data.
      supervise_all_outputs: False, as in the paper, trains the single mask on unambiguous prompts only and the three
        masks on ambiguous ones only. True trains both on every prompt: twice the signal per image.
      sum_interactions: sum the losses of all interactions, as SAM 2's training code does, instead of averaging them.
        The paper does not say. AdamW is invariant to the factor, but clipping and logs are not: default False, so
        that they do not depend on the number of interactions.
      affinity_weight: weight of `losses.affinity_loss`, which trains the image embedding directly, and with
        `SamConfig.details` the detail features for masks too. The paper has none (0); without it, a model trained from
        scratch learns to answer prompts without using the image.
    """

    focal_weight: float = 20.0
    dice_weight: float = 1.0
    iou_weight: float = 1.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    supervise_all_iou: bool = False
    supervise_all_outputs: bool = False
    sum_interactions: bool = False
    affinity_weight: float = 0.0

    def __post_init__(self) -> None:
        weights = ("focal_weight", "dice_weight", "iou_weight", "affinity_weight")
        check_fields(self, focal_alpha=SHARE, **dict.fromkeys((*weights, "focal_gamma"), NOT_NEGATIVE))
        total = sum(getattr(self, name) for name in weights)
        require(total > 0, f"one of {', '.join(weights)} must be above 0, or there is nothing to learn")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with linear warm-up (SAM paper, appendix A).

    Attributes:
      optimizer: "adamw", the paper's, or "muon", which updates large kernels along their orthogonalised momentum
        (Jordan et al. 2024), in steps as long as Adam's (Liu et al. 2025), and other parameters as Adam does. Learning
        rates and weight decay carry over. configs/bundled.py uses it.
      learning_rate: the peak of the learning rate, after warm-up.
      b1: decay rate of Adam's mean of gradients, from 0 to below 1.
      b2: decay rate of Adam's mean of squared gradients, from 0 to below 1.
      weight_decay: decoupled weight decay of kernels, scaled by the learning rate.
      warmup_steps: steps over which the learning rate rises from 0 to its peak; half of all steps at most.
      milestones: shares of the whole training after which the learning rate is multiplied by `milestone_factor`.
      milestone_factor: factor on the learning rate at each milestone.
      cosine: decay along a half cosine to 0 instead of at milestones.
      layer_decay: the learning rate of each encoder block is this times the next one's; 1 switches it off.
      clip_norm: clips gradients to this global norm; 0 switches it off.
    """

    optimizer: str = "adamw"
    learning_rate: float = 8e-4
    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 0.1
    warmup_steps: int = 250
    milestones: tuple[float, ...] = (60_000 / 90_000, 86_666 / 90_000)
    milestone_factor: float = 0.1
    cosine: bool = False
    layer_decay: float = 0.8
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        check_fields(
            self,
            learning_rate=NOT_NEGATIVE,
            b1=BELOW_ONE,
            b2=BELOW_ONE,
            weight_decay=NOT_NEGATIVE,
            warmup_steps=NOT_NEGATIVE,
            milestones=Range(lambda x: 0 <= x <= 1, "shares of the training, each from 0 to 1"),
            milestone_factor=NOT_NEGATIVE,
            layer_decay=POSITIVE_SHARE,
            clip_norm=NOT_NEGATIVE,
        )
        require(self.optimizer in OPTIMIZERS, f"optimizer {self.optimizer!r} is not one of {', '.join(OPTIMIZERS)}")


@dataclass(frozen=True)
class AugmentConfig:
    """What is done to images on the device, anew each time that one is used. The paper's recipe has none of it.

    Attributes:
      mirror: share of the images that are turned left to right, with their masks.
      recolour: share of the images whose contrast, brightness and colour balance are changed.
    """

    mirror: float = 0.0
    recolour: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self, "augment", mirror=SHARE, recolour=SHARE)


@dataclass(frozen=True)
class FinetuneConfig:
    """Which parameters are trained. The defaults train everything.

    Attributes:
      frozen: regular expressions over parameter paths ("image_encoder/.*"); parameters whose whole path matches one are
        not trained and have no optimizer state. A pattern that matches nothing is an error.
      lora_rank: above 0, the image encoder is frozen and the qkv kernels that `frozen` does not name learn a low-rank
        update (LoRA, Hu et al. 2021), which is merged into the saved model.
      lora_alpha: the update is scaled by lora_alpha / lora_rank.
      embedding_cache: a directory, local or gs://, that keeps the embeddings of all training images, each computed only
        once. Needs a frozen image encoder and images without jitter.
    """

    frozen: tuple[str, ...] = ()
    lora_rank: int = 0
    lora_alpha: float = 16.0
    embedding_cache: str | None = None

    def __post_init__(self) -> None:
        pattern = Range(_is_pattern, "regular expressions over parameter paths, such as 'image_encoder/.*'")
        check_fields(self, frozen=pattern, lora_rank=NOT_NEGATIVE, lora_alpha=POSITIVE, embedding_cache=GIVEN)


@dataclass(frozen=True)
class TextPromptConfig:
    """Text prompts of training: the image tower's embedding of each object's crop, in the place of a text's (SAM paper,
    appendix D.6). At inference the text tower's embedding of a phrase takes that place.

    Attributes:
      towers: a directory that `sam-jax convert from-clip` wrote; None means that there are no text prompts.
      cache: a directory, local or gs://, in which embeddings are kept, by the content of images, masks and towers:
        computed once, read ever after.
      looks: crops of each mask, each with an enlargement and a background of its own; a step takes one of them.
      max_enlarge: the side of a crop is drawn from 1 to this, in longer sides of the mask's box.
      keep_background: chance that a crop keeps what is not the mask.
      attend_to_mask: whether the embedding is read from the tokens of the mask alone, as in the paper.
      min_area: smaller masks, in pixels of the image, are left out; 100 x 100 in the paper.
    """

    towers: str | None = None
    cache: str = "data/text_embeddings"
    looks: int = 4
    max_enlarge: float = 2.0
    keep_background: float = 0.5
    attend_to_mask: bool = True
    min_area: int = 100 * 100

    def __post_init__(self) -> None:
        at_least_one = Range(lambda x: x >= 1, "1 or more")
        given = dict.fromkeys(("towers", "cache"), GIVEN)
        check_fields(
            self,
            "text",
            looks=POSITIVE,
            max_enlarge=at_least_one,
            keep_background=SHARE,
            min_area=NOT_NEGATIVE,
            **given,
        )


@dataclass(frozen=True)
class MeshConfig:
    """The device mesh. The batch is split over all devices.

    Attributes:
      data: groups of devices that each hold a whole copy of parameters and optimizer state; -1: all devices / fsdp.
      fsdp: devices that share one such copy. On a TPU v5e, ViT-H needs at least 16.
    """

    data: int = -1
    fsdp: int = 1

    def __post_init__(self) -> None:
        check_fields(self, "mesh", fsdp=POSITIVE, data=Range(lambda x: x > 0 or x == -1, "positive or -1"))


@dataclass(frozen=True)
class TrainConfig:
    """One experiment. The files in configs/ return one of these.

    Attributes:
      workdir: output directory, local or gs://: `config.json`, `log.jsonl`, `tensorboard/`, `overlays/`, `logs/` (one
        per host), `state/` (checkpoints) and, at the end, `model/` and, if an earlier state had a better evaluation,
        `best/` (both for `load_model`).
      init_from: a model directory to start from, or "vit_tiny", the bundled one; None starts from scratch.
      storage_dtype: how the finished model's parameters are stored, "float32" or, at half the size, "float16".
      accumulate: process each batch in this many pieces and take one optimizer step with their mean gradient.
      minutes: how long the run takes, on one host, from its start to the written model; None means the stages' steps.
        Each stage gets a share of them by its `num_steps`, and decay follows the clock. A model is written at a half,
        seven tenths and 85 % of them, too (`snapshot_50`, ...). A run that goes on has the minutes that were left.
      seed: seed of initial weights, data order and all random draws; from 0 to 2**32 - 1.
      log_every: steps between rows of metrics.
      eval_every: steps between evaluations, which measure mean IoU per interaction on held-out images; 0 never.
      eval_images: number of held-out images per evaluation.
      overlay_every: steps between images of predictions on the first held-out images; 0 never.
      checkpoint_every: steps between checkpoints. Each evaluation saves one too.
      keep: number of newest checkpoints to keep, beside the one with the best evaluation.
    """

    sam: SamConfig = field(default_factory=SamConfig)
    stages: tuple[StageConfig, ...] = (StageConfig(),)
    data: CompositeDataConfig | RecordDataConfig = field(default_factory=RecordDataConfig)
    interaction: InteractionConfig = field(default_factory=InteractionConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    text: TextPromptConfig = field(default_factory=TextPromptConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    workdir: str = "runs/sam"
    init_from: str | None = None
    storage_dtype: str = "float32"
    accumulate: int = 1
    minutes: float | None = None
    seed: int = 0
    log_every: int = 20
    eval_every: int = 0
    eval_images: int = 64
    overlay_every: int = 0
    checkpoint_every: int = 500
    keep: int = 2

    def __post_init__(self) -> None:
        rest = {"workdir": GIVEN, "init_from": GIVEN, "storage_dtype": one_of(STORAGE_DTYPES)}
        counts = ("accumulate", "log_every", "eval_images", "checkpoint_every", "keep")
        rest |= dict.fromkeys((*counts, "minutes"), POSITIVE) | dict.fromkeys(
            ("eval_every", "overlay_every"), NOT_NEGATIVE
        )
        check_fields(self, seed=Range(lambda x: 0 <= x < 2**32, "from 0 to 2**32 - 1"), **rest)
        require(len(self.stages) > 0, "stages must hold at least one stage, not ()")
        patch = self.sam.image_encoder.patch_size
        require(patch == 16, f"training needs patch_size 16 (masks at a quarter of the image side), not {patch}")
        require(not self.sam.is_hq, "HQ-SAM is for inference; training needs a mask_decoder of SAM")
        require(not self.sam.vit.int8_mlp, "int8_mlp is for inference; training needs it False")
        self._check_text()
        wrong = [stage.image_size for stage in self.stages if stage.image_size % patch]
        require(not wrong, f"stage image_size {wrong} must be a multiple of patch_size {patch}")
        uneven = [stage.batch_size for stage in self.stages if stage.batch_size % self.accumulate]
        reused = isinstance(self.data, CompositeDataConfig) and self.data.reuse > 1
        kept = [stage.num_examples for stage in self.stages if stage.num_examples is not None]
        require(not (reused and kept), f"data.reuse and stage num_examples {kept} exclude each other; drop one")
        require(not uneven, f"stage batch_size {uneven} must be a multiple of accumulate {self.accumulate}")

    def _check_text(self) -> None:
        has_texts = self.text.towers is not None
        require(
            has_texts == bool(self.sam.text_embed_dim),
            f"text.towers {self.text.towers} and sam.text_embed_dim {self.sam.text_embed_dim} go together: give both, "
            "or None and 0",
        )
        require(
            not has_texts or isinstance(self.data, RecordDataConfig),
            "text prompts need images on disk: data must be a RecordDataConfig",
        )

    @property
    def num_steps(self) -> int:
        """Training steps of all stages together."""
        return sum(stage.num_steps for stage in self.stages)


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def for_stage(config: TrainConfig, stage: StageConfig) -> TrainConfig:
    """The config with the values that `stage` replaces in its `interaction`."""
    if stage.num_points is None:
        return config
    interaction = dataclasses.replace(config.interaction, num_points=stage.num_points)
    return dataclasses.replace(config, interaction=interaction)
