"""The network: sizes and compute dtype. A new model size needs only a new function here."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass, field
from typing import Any

from sam_jax.config.checks import BELOW_ONE, NOT_NEGATIVE, POSITIVE, Range, check_fields, require
from sam_jax.config.tiny_vit import TinyVitConfig

COMPUTE_DTYPES = ("float32", "bfloat16")
INFERENCE_DTYPES = (*COMPUTE_DTYPES, "int8")
ATTENTION = ("auto", "xla", "pallas", "triton")
DECODER_KERNELS = ("auto", "xla", "pallas")
TOKEN_ORDERS = ("auto", "grid", "windows")


@dataclass(frozen=True)
class ImageEncoderConfig:
    """ViT with windowed and global blocks (Li et al. 2022, as in SAM). Defaults are ViT-B's.

    Attributes:
      image_size: side in pixels of the square input that the position tables are made for. For other input sizes the
        tables are interpolated.
      patch_size: side in pixels of one token.
      embed_dim: width of a token, in channels; a multiple of `num_heads`.
      depth: number of blocks.
      num_heads: attention heads of each block.
      mlp_ratio: width of each block's MLP as a multiple of `embed_dim`.
      window_size: side in tokens of the windows of all blocks but `global_attn_indexes`.
      global_attn_indexes: which blocks, counted from 0, attend to the whole image instead of windows.
      drop_path_rate: stochastic depth rate of the last block in training; it rises linearly from 0 at the first block.
      remat: recompute each block in the backward pass instead of keeping its activations.
      scan: loop over equal groups of blocks, each ending with a global block, and compile only one group. Compilation
        is faster, a step takes a sixth longer, and memory holds a second copy of the blocks' parameters.
      attention: "xla" runs on every platform; "pallas" uses the TPU kernels and "triton" those for NVIDIA GPUs, each an
        error for shapes that its kernels do not support; "auto" uses the kernels on TPU for the shapes that they
        support, XLA otherwise. The GPU kernels keep logits out of memory; they have been compiled for GPUs, but have
        never run on one. But for "xla", norms and dense layers use TPU kernels, too: in bfloat16, at inference.
      token_order: memory layout of tokens between consecutive windowed blocks; results do not depend on it. "grid"
        cuts windows in every block and computes no padded token outside attention: less arithmetic, best on CPUs.
        "windows" cuts once per group of windowed blocks and carries the padding along: fewer copies, best on TPUs.
        "auto" is "windows" where the compute dtype is bfloat16, else "grid".
      int8_mlp: multiply the MLPs of blocks, two thirds of the arithmetic, in 8-bit integers. For inference only:
        rounding has no gradient.
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
    scan: bool = False
    attention: str = "auto"
    token_order: str = "auto"
    int8_mlp: bool = False

    def __post_init__(self) -> None:
        sizes = dict.fromkeys(("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "window_size"), POSITIVE)
        check_fields(self, drop_path_rate=BELOW_ONE, **sizes)
        require(
            self.image_size > 0 and self.image_size % self.patch_size == 0,
            f"image_size {self.image_size} must be a positive multiple of patch_size {self.patch_size}",
        )
        require(
            self.embed_dim % self.num_heads == 0,
            f"embed_dim {self.embed_dim} must be a multiple of num_heads {self.num_heads}",
        )
        for name, known in (("attention", ATTENTION), ("token_order", TOKEN_ORDERS)):
            value = getattr(self, name)
            require(value in known, f"{name} {value!r} is not one of {', '.join(known)}")
        wrong = [i for i in self.global_attn_indexes if not 0 <= i < self.depth]
        require(not wrong, f"global_attn_indexes {wrong} lie outside the {self.depth} blocks")
        every = self.depth // max(1, len(self.global_attn_indexes))
        require(
            not self.scan or self.global_attn_indexes == tuple(range(every - 1, self.depth, every)),
            f"scan needs equal groups of blocks that end with a global block, but there are {self.depth} blocks with "
            f"global_attn_indexes {self.global_attn_indexes}",
        )

    @property
    def grid_size(self) -> int:
        """Side in tokens of the square token grid at `image_size`."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class PromptEncoderConfig:
    """Prompts to tokens (SAM paper, appendix A).

    Attributes:
      mask_in_chans: channels of the mask prompt before its last 1x1 convolution; a multiple of 4.
    """

    mask_in_chans: int = 16

    def __post_init__(self) -> None:
        check_fields(self, mask_in_chans=POSITIVE)
        require(self.mask_in_chans % 4 == 0, f"mask_in_chans {self.mask_in_chans} must be a multiple of 4")


@dataclass(frozen=True)
class MaskDecoderConfig:
    """Two-way transformer and heads (SAM paper, appendix A).

    Attributes:
      depth: number of two-way blocks.
      num_heads: attention heads of each block.
      mlp_dim: width of each block's MLP, in channels.
      attention_downsample_rate: cross-attention has the decoder's width divided by this.
      num_multimask_outputs: masks for an ambiguous prompt, beside the single mask for all others.
      iou_head_depth: layers of the MLP that predicts each mask's IoU.
      iou_head_hidden_dim: width of that MLP, in channels.
      iou_times_stability: whether each predicted IoU is the head's value times the mask's stability score, which is the
        IoU of the mask at logits above 0.5 with itself at logits above -0.5. The published models do not. A stable
        outline is one that the decoder is sure of, which the head of a small model does not see.
      kernels: as `ImageEncoderConfig.attention` without "triton", for the decoder's work on pixels. The kernels are for
        inference: a gradient recomputes the forward pass with XLA.
      dropout_rate: in training, applied to the output of each self-attention, cross-attention and MLP, before the
        residual sum and the norm. No kernel supports it. The paper trains with 0.1; its released code has none.
    """

    depth: int = 2
    num_heads: int = 8
    mlp_dim: int = 2048
    attention_downsample_rate: int = 2
    num_multimask_outputs: int = 3
    iou_head_depth: int = 3
    iou_head_hidden_dim: int = 256
    iou_times_stability: bool = False
    kernels: str = "auto"
    dropout_rate: float = 0.0

    def __post_init__(self) -> None:
        names = ("depth", "num_heads", "mlp_dim", "attention_downsample_rate", "num_multimask_outputs")
        sizes = dict.fromkeys((*names, "iou_head_depth", "iou_head_hidden_dim"), POSITIVE)
        check_fields(self, dropout_rate=BELOW_ONE, **sizes)
        known = ", ".join(DECODER_KERNELS)
        require(self.kernels in DECODER_KERNELS, f"kernels {self.kernels!r} must be one of {known}")

    @property
    def num_mask_tokens(self) -> int:
        """Number of mask tokens: the single-mask token first, then one per mask of an ambiguous prompt."""
        return self.num_multimask_outputs + 1

    @property
    def num_masks(self) -> int:
        """M, masks that the decoder returns per prompt, in the order of their tokens."""
        return self.num_mask_tokens


@dataclass(frozen=True)
class HqMaskDecoderConfig(MaskDecoderConfig):
    """HQ-SAM's mask decoder (Ke et al. 2023): one more token, whose mask uses fine features. For inference only.

    Its mask is added to SAM's. For an ambiguous prompt, only the mask with the highest predicted IoU is returned.

    Attributes:
      hq_token_only: return the HQ token's mask alone, without adding SAM's: an argument of the published predictor.
    """

    hq_token_only: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not self.iou_times_stability, "HQ-SAM has no iou_times_stability; it must be False")

    @property
    def num_masks(self) -> int:
        """M: the single mask, and the best of the masks for an ambiguous prompt."""
        return 2


@dataclass(frozen=True)
class SamConfig:
    """A whole Segment Anything model.

    Attributes:
      image_encoder: SAM's plain ViT or MobileSAM's TinyViT, by the class of this config.
      mask_decoder: SAM's or HQ-SAM's mask decoder, by the class of this config.
      prompt_embed_dim: C, width of image embeddings, prompts and mask decoder.
      details: width of a few convolutions beside the ViT, at a quarter of the image's side, that give the ViT and the
        decoder features finer than a patch (models/details.py). 0, as in the published models: none. With details
        the decoder has no TPU kernel for its upscaling.
      text_embed_dim: width of the text embeddings that are prompts, such as 768 for CLIP ViT-L/14; each becomes one
        token (SAM paper, appendix D.6). 0, as in the published models: no text prompts.
      pixel_mean: mean of red, green and blue for normalising images, on the 0 to 255 scale.
      pixel_std: standard deviation of red, green and blue, on the same scale.
      crf: edge refinement by a CRF (ops/crf.py), before masks are enlarged to the image: outlines move to edges and
        colours of the image, and masks of box prompts end at the box. It has no parameters and is not used in
        training. The published models do not use it.
      mask_threshold: a pixel belongs to a mask where its logit is above this.
      pred_iou_thresh: default threshold of everything mode, which drops masks with a lower predicted IoU. It suits
        this model's IoU head, so it belongs to the weights; the published sizes have the official value.
      stability_score_thresh: the same for the stability score, which depends on the scale of this model's logits.
      dtype: compute dtype, "float32" or "bfloat16". "float32" means true float32 products on every platform
        (ops/products.py), several times slower than "bfloat16" on TPUs and GPUs. Parameters, softmax, normalisation
        statistics, positional encoding, losses, the optimizer and all mask processing after the decoder are float32
        in either case.
    """

    image_encoder: ImageEncoderConfig | TinyVitConfig = field(default_factory=ImageEncoderConfig)
    prompt_encoder: PromptEncoderConfig = field(default_factory=PromptEncoderConfig)
    mask_decoder: MaskDecoderConfig = field(default_factory=MaskDecoderConfig)
    prompt_embed_dim: int = 256
    details: int = 0
    text_embed_dim: int = 0
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    crf: bool = False
    mask_threshold: float = 0.0
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    dtype: str = "float32"

    def __post_init__(self) -> None:
        colour = Range(lambda x: 0 <= x <= 255, "three numbers from 0 to 255")
        deviation = Range(lambda x: x > 0, "three positive numbers")
        sizes = {"prompt_embed_dim": POSITIVE, "details": NOT_NEGATIVE, "text_embed_dim": NOT_NEGATIVE}
        check_fields(self, pixel_mean=colour, pixel_std=deviation, **sizes)
        require(self.dtype in COMPUTE_DTYPES, f"dtype {self.dtype!r} is not one of {', '.join(COMPUTE_DTYPES)}")
        inner = self.mask_decoder.num_heads * self.mask_decoder.attention_downsample_rate
        require(
            self.prompt_embed_dim % 8 == 0 and self.prompt_embed_dim % inner == 0,
            f"prompt_embed_dim {self.prompt_embed_dim} must be a multiple of 8 and of mask_decoder.num_heads x "
            f"attention_downsample_rate = {inner}",
        )
        patch = self.image_encoder.patch_size
        require(not (self.details and self.is_mobile), "details are for a plain ViT; a TinyViT needs details 0")
        require(not self.details or patch % 4 == 0, f"details need a patch_size that is a multiple of 4, not {patch}")
        require(not self.crf or patch % 8 == 0, f"crf needs a patch_size that is a multiple of 8, not {patch}")
        self._check_hq()
        require(
            not (self.details and self.mask_decoder.kernels == "pallas"),
            'details have no TPU kernel: with details, mask_decoder.kernels must be "auto" or "xla", not "pallas"',
        )

    def _check_hq(self) -> None:
        if not self.is_hq:
            return
        require(not self.details, "HQ-SAM has fine features of its own: it needs details 0")
        require(
            self.mask_decoder.kernels != "pallas",
            'HQ-SAM has no TPU kernel: mask_decoder.kernels must be "auto" or "xla", not "pallas"',
        )
        early = self.is_mobile or (not self.vit.scan and bool(self.vit.global_attn_indexes))
        require(early, "HQ-SAM reads the image encoder's first global block: it needs one, and scan False")

    @property
    def is_hq(self) -> bool:
        """Whether the mask decoder is HQ-SAM's."""
        return isinstance(self.mask_decoder, HqMaskDecoderConfig)

    @property
    def is_mobile(self) -> bool:
        """Whether the image encoder is MobileSAM's TinyViT."""
        return isinstance(self.image_encoder, TinyVitConfig)

    @property
    def vit(self) -> ImageEncoderConfig:
        """The image encoder, where only a plain ViT will do. Raises ValueError if it is a TinyViT."""
        if isinstance(self.image_encoder, TinyVitConfig):
            raise ValueError(
                "a TinyViT (MobileSAM) is for inference in float32 or bfloat16; take a SAM with a plain ViT"
            )
        return self.image_encoder

    @property
    def image_size(self) -> int:
        """Side in pixels of the model's native square input frame."""
        return self.image_encoder.image_size

    @property
    def embedding_channels(self) -> int:
        """Channels of an image embedding; with `details` or HQ-SAM they include fine features of each cell."""
        if self.is_hq:
            return 3 * self.prompt_embed_dim
        return self.prompt_embed_dim + (3 * self.prompt_embed_dim + 16 * self.details if self.details else 0)


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
    """The bundled model: 6.6 M parameters, 512 px frame; runs in a fraction of a second on a CPU."""
    return SamConfig(
        image_encoder=ImageEncoderConfig(
            image_size=512,
            embed_dim=256,
            depth=6,
            num_heads=4,
            window_size=8,
            global_attn_indexes=(2, 5),
        ),
        mask_decoder=MaskDecoderConfig(
            mlp_dim=512, attention_downsample_rate=1, iou_head_hidden_dim=128, iou_times_stability=True
        ),
        prompt_embed_dim=128,
        details=32,
        pred_iou_thresh=0.5,  # it is seldom sure, and its logits are soft
        stability_score_thresh=0.5,
    )


def mobile_sam() -> SamConfig:
    """MobileSAM (9.8 M parameters): SAM's decoder on TinyViT-5M."""
    return SamConfig(image_encoder=TinyVitConfig())


def to_dict(config: Any) -> dict[str, Any]:
    """A config as nested dictionaries that JSON can hold."""
    return dataclasses.asdict(config)


def sam_config_from_dict(values: dict[str, Any]) -> SamConfig:
    """The inverse of `to_dict` for a `SamConfig`. Raises ValueError for an unknown key, and suggests a known one."""
    is_tiny_vit = "widths" in values.get("image_encoder", {})
    is_hq = "hq_token_only" in values.get("mask_decoder", {})
    parts = {
        "image_encoder": TinyVitConfig if is_tiny_vit else ImageEncoderConfig,
        "prompt_encoder": PromptEncoderConfig,
        "mask_decoder": HqMaskDecoderConfig if is_hq else MaskDecoderConfig,
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
