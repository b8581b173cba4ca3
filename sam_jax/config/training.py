"""How a model is trained. The files in configs/ return a `TrainConfig`."""

from __future__ import annotations

from dataclasses import dataclass, field

from sam_jax.config.checks import require
from sam_jax.config.data import CompositeDataConfig, RecordDataConfig
from sam_jax.config.model import SamConfig


@dataclass(frozen=True)
class StageConfig:
    """A stretch of training at one image size. Batches are per step over all devices.

    Attributes:
      num_points: where given, takes the place of `InteractionConfig.num_points` in this stage.
      mosaics: where given, takes the place of `CompositeConfig.mosaics` in this stage.
      num_examples: composites made for this stage and kept in memory; then they come again. None makes new ones
        throughout, which costs a CPU about as much as a small model's step.
    """

    image_size: int = 1024
    batch_size: int = 256
    masks_per_image: int = 64
    num_steps: int = 90_000
    num_points: int | None = None
    mosaics: float | None = None
    num_examples: int | None = None

    def __post_init__(self) -> None:
        for name in ("image_size", "batch_size", "masks_per_image", "num_steps", "num_examples"):
            value = getattr(self, name)
            require(value is None or value > 0, f"stage {name} must be positive, not {value}")


@dataclass(frozen=True)
class InteractionConfig:
    """The simulated interactive segmentation of one training step (SAM paper, appendix A).

    Attributes:
      num_points: corrective points after the first prompt, one per step, drawn from the error region.
      num_mask_only_steps: further steps that feed back the mask without a new point; the last step is one of them,
        the others fall at random places.
      box_probability: chance that the first prompt is a box rather than a point.
      box_noise: standard deviation of the noise on box corners, as a share of the box side.
      box_noise_max: its limit in pixels of the input frame.
      box_multimask: whether a box as first prompt counts as ambiguous, so that the three-mask output is trained on it.
        The paper says "more than one prompt" for the single mask, and a box is two corner tokens: default False.
    """

    num_points: int = 8
    num_mask_only_steps: int = 2
    box_probability: float = 0.5
    box_noise: float = 0.1
    box_noise_max: float = 20.0
    box_multimask: bool = False

    @property
    def num_steps(self) -> int:
        """Decoder passes in one training step."""
        return 1 + self.num_points + self.num_mask_only_steps


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss (SAM paper, appendix A: focal and dice 20:1, IoU 1).

    Attributes:
      focal_alpha, focal_gamma: the paper gives neither; these are Lin et al. 2017's, which SAM 2's training code uses.
      supervise_all_iou: the paper leaves open which of the three masks teach the IoU head. False (default) takes the
        lowest-loss mask alone; True all three, which ranks them better when little data is seen.
      supervise_all_outputs: the paper trains the single mask on unambiguous prompts alone and the three masks on
        ambiguous ones alone (False). True trains both on every prompt: twice the signal per picture.
      affinity_weight: of `losses.affinity_loss`, which teaches the image embedding directly. The paper has none (0); a
        model trained from scratch otherwise learns to answer prompts without looking at the picture.
    """

    focal_weight: float = 20.0
    dice_weight: float = 1.0
    iou_weight: float = 1.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    supervise_all_iou: bool = False
    supervise_all_outputs: bool = False
    affinity_weight: float = 0.0


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with linear warm-up (SAM paper, appendix A).

    Attributes:
      milestones: shares of the whole training after which the learning rate drops by `milestone_factor`.
      cosine: decay along a half cosine to 0 instead of at milestones.
      layer_decay: the learning rate of each encoder block is this times the next one's; 1 switches it off.
      clip_norm: clips gradients to this global norm; 0 switches it off.
    """

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


@dataclass(frozen=True)
class TrainConfig:
    """One experiment. The files in configs/ return one of these.

    Attributes:
      workdir: receives `log.jsonl`, `state/` (what a resumed run needs) and, at the end, `model/` (for `load_model`).
      init_from: a model directory to start from; None starts from scratch.
      storage_dtype: how the finished model's parameters are stored, "float32" or, at half the size, "float16".
      remat_interactions: recompute each decoder pass in the backward pass: memory stays that of one interaction, the
        decoder's work grows by a half.
    """

    sam: SamConfig = field(default_factory=SamConfig)
    stages: tuple[StageConfig, ...] = (StageConfig(),)
    data: CompositeDataConfig | RecordDataConfig = field(default_factory=CompositeDataConfig)
    interaction: InteractionConfig = field(default_factory=InteractionConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    workdir: str = "runs/sam"
    init_from: str | None = None
    storage_dtype: str = "float32"
    remat_interactions: bool = True
    seed: int = 0
    log_every: int = 20
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        patch = self.sam.image_encoder.patch_size
        require(patch == 16, f"training needs patch_size 16 (masks at a quarter of the image side), not {patch}")
        wrong = [stage.image_size for stage in self.stages if stage.image_size % patch]
        require(not wrong, f"stage image_size {wrong} must be a multiple of patch_size {patch}")

    @property
    def num_steps(self) -> int:
        """Training steps over all stages."""
        return sum(stage.num_steps for stage in self.stages)
