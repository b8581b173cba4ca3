"""Configurations: frozen, hashable dataclasses, so that a config is a static argument of `jax.jit`.

Sizes are data: a new model size is a new function here, nothing else. This module imports the standard library only.
"""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass, field
from typing import Any

COMPUTE_DTYPES = ("float32", "bfloat16")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True)
class ImageEncoderConfig:
    """ViT with windowed and global blocks (Li et al. 2022, as in SAM). Defaults are ViT-B's.

    Attributes:
      image_size: side in pixels of the square input that the position tables are made for. Other input sizes work
        through interpolation.
      patch_size: side in pixels of one token.
      window_size: side in tokens of the windows of all blocks but `global_attn_indexes`.
      drop_path_rate: stochastic depth of the last block at training; earlier blocks scale down linearly to 0.
      remat: recompute each block in the backward pass instead of keeping its activations.
    """

    image_size: int = 1024
    patch_size: int = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    window_size: int = 14
    global_attn_indexes: tuple[int, ...] = (2, 5, 8, 11)
    drop_path_rate: float = 0.0
    remat: bool = False

    def __post_init__(self) -> None:
        _require(
            self.image_size > 0 and self.image_size % self.patch_size == 0,
            f"image_size {self.image_size} must be a positive multiple of patch_size {self.patch_size}",
        )
        _require(
            self.embed_dim % self.num_heads == 0,
            f"embed_dim {self.embed_dim} must be a multiple of num_heads {self.num_heads}",
        )
        _require(self.window_size > 0, f"window_size must be positive, not {self.window_size}")
        wrong = [i for i in self.global_attn_indexes if not 0 <= i < self.depth]
        _require(not wrong, f"global_attn_indexes {wrong} lie outside the {self.depth} blocks")

    @property
    def grid_size(self) -> int:
        """Side of the square token grid at the native input size."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class PromptEncoderConfig:
    """`mask_in_chans` is the width of the mask prompt just before its last 1x1 convolution."""

    mask_in_chans: int = 16

    def __post_init__(self) -> None:
        _require(self.mask_in_chans % 4 == 0, f"mask_in_chans {self.mask_in_chans} must be a multiple of 4")


@dataclass(frozen=True)
class MaskDecoderConfig:
    """Two-way transformer and heads (SAM paper, appendix A)."""

    depth: int = 2
    num_heads: int = 8
    mlp_dim: int = 2048
    attention_downsample_rate: int = 2
    num_multimask_outputs: int = 3
    iou_head_depth: int = 3
    iou_head_hidden_dim: int = 256

    @property
    def num_mask_tokens(self) -> int:
        """The single-mask token comes first, then one token per mask of an ambiguous prompt."""
        return self.num_multimask_outputs + 1


@dataclass(frozen=True)
class SamConfig:
    """A whole Segment Anything model.

    Attributes:
      prompt_embed_dim: width of image embeddings, prompts and mask decoder.
      pixel_mean, pixel_std: RGB statistics on the 0..255 scale.
      mask_threshold: a pixel belongs to a mask where its logit is above this.
      dtype: compute dtype, "float32" or "bfloat16". Parameters are float32 in any case; softmax, normalisation
        statistics and positional encoding stay in float32.
    """

    image_encoder: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    prompt_encoder: PromptEncoderConfig = field(default_factory=PromptEncoderConfig)
    mask_decoder: MaskDecoderConfig = field(default_factory=MaskDecoderConfig)
    prompt_embed_dim: int = 256
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    mask_threshold: float = 0.0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        _require(self.dtype in COMPUTE_DTYPES, f"dtype {self.dtype!r} is not one of {', '.join(COMPUTE_DTYPES)}")
        _require(
            self.mask_decoder.num_heads > 0, f"mask_decoder.num_heads {self.mask_decoder.num_heads} must be positive"
        )
        inner = self.mask_decoder.num_heads * self.mask_decoder.attention_downsample_rate
        _require(
            self.prompt_embed_dim % 8 == 0 and self.prompt_embed_dim % inner == 0,
            f"prompt_embed_dim {self.prompt_embed_dim} must be a multiple of 8 and of mask_decoder.num_heads x "
            f"attention_downsample_rate = {inner}",
        )

    @property
    def image_size(self) -> int:
        """Native side of the model's square input frame in pixels."""
        return self.image_encoder.image_size


def vit_b() -> SamConfig:
    """SAM with ViT-B (93.7 M parameters)."""
    return SamConfig()


def vit_l() -> SamConfig:
    """SAM with ViT-L (312.3 M parameters)."""
    return SamConfig(
        image_encoder=ImageEncoderConfig(embed_dim=1024, depth=24, num_heads=16, global_attn_indexes=(5, 11, 17, 23))
    )


def vit_h() -> SamConfig:
    """SAM with ViT-H (641.1 M parameters), the model of the paper."""
    return SamConfig(
        image_encoder=ImageEncoderConfig(embed_dim=1280, depth=32, num_heads=16, global_attn_indexes=(7, 15, 23, 31))
    )


def vit_tiny() -> SamConfig:
    """The bundled model: 6 M parameters, 512 px frame; runs in a fraction of a second on a CPU."""
    return SamConfig(
        image_encoder=ImageEncoderConfig(
            image_size=512,
            embed_dim=256,
            depth=6,
            num_heads=4,
            window_size=8,
            global_attn_indexes=(2, 5),
        ),
        mask_decoder=MaskDecoderConfig(mlp_dim=512, iou_head_hidden_dim=128),
        prompt_embed_dim=128,
    )


def to_dict(config: Any) -> dict[str, Any]:
    """A config as nested plain dictionaries, ready for JSON."""
    return dataclasses.asdict(config)


def sam_config_from_dict(values: dict[str, Any]) -> SamConfig:
    """The inverse of `to_dict` for `SamConfig`. Raises ValueError that names an unknown key and the nearest known."""
    parts = {
        "image_encoder": ImageEncoderConfig,
        "prompt_encoder": PromptEncoderConfig,
        "mask_decoder": MaskDecoderConfig,
    }
    values = dict(values)
    for name, cls in parts.items():
        if name in values:
            values[name] = _from_dict(cls, values[name], prefix=f"{name}.")
    return _from_dict(SamConfig, values, prefix="")


def _from_dict(cls: Any, values: dict[str, Any], prefix: str) -> Any:
    known = [f.name for f in dataclasses.fields(cls)]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {prefix}{near[0]}?" if near else f"; known: {', '.join(known)}"
            raise ValueError(f"unknown config key {prefix}{key}{hint}")
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


@dataclass(frozen=True)
class StageConfig:
    """A stretch of training at one image size. Batches are per step over all devices.

    `num_points`, where given, takes the place of `InteractionConfig.num_points` in this stage.
    """

    image_size: int = 1024
    batch_size: int = 256
    masks_per_image: int = 64
    num_steps: int = 90_000
    num_points: int | None = None

    def __post_init__(self) -> None:
        for name in ("image_size", "batch_size", "masks_per_image", "num_steps"):
            _require(getattr(self, name) > 0, f"stage {name} must be positive, not {getattr(self, name)}")


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
    """

    focal_weight: float = 20.0
    dice_weight: float = 1.0
    iou_weight: float = 1.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    supervise_all_iou: bool = False
    supervise_all_outputs: bool = False


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
class CompositeConfig:
    """How composites are made. Probabilities are per example unless an attribute says otherwise.

    Attributes:
      image_size: side S of the padded square, in pixels; a multiple of 4.
      masks_per_image: K, masks kept of each picture; a random K where there are more.
      length: examples in one pass: what `len` says.
      labelled: share of examples that are labelled photographs, where the pool has any.
      pseudo_regions: share of examples that are plain photographs with regions found in them.
      square: share of examples whose content fills the square.
      min_aspect: shorter over longer side of the other examples, at least.
      max_objects: cut-outs in a composite, at most; the least is 2.
      max_distractors: misleading edges below the objects, at most.
      photo_region_object: share of objects that are random shapes out of other photographs.
      match_colours: share of objects whose colours are drawn towards the background's.
      feather: share of objects with soft edges.
      shadow: share of objects that throw a soft shadow.
      parts: share of objects that get parts.
      repeat: share of objects that come as touching copies.
      degrade: share of examples that are degraded as a whole.
    """

    image_size: int = 256
    masks_per_image: int = 16
    length: int = 1_000_000
    labelled: float = 0.07
    pseudo_regions: float = 0.10
    square: float = 0.35
    min_aspect: float = 0.5
    max_objects: int = 12
    max_distractors: int = 5
    photo_region_object: float = 0.30
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
    data: CompositeDataConfig = field(default_factory=CompositeDataConfig)
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
        _require(patch == 16, f"training needs patch_size 16 (masks at a quarter of the image side), not {patch}")
        wrong = [stage.image_size for stage in self.stages if stage.image_size % patch]
        _require(not wrong, f"stage image_size {wrong} must be a multiple of patch_size {patch}")

    @property
    def num_steps(self) -> int:
        """Training steps over all stages."""
        return sum(stage.num_steps for stage in self.stages)
