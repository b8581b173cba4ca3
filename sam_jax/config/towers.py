"""What image and text towers are: CLIP's and SigLIP 2's sizes. A new size is a new function here, nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sam_jax.config.checks import POSITIVE, check_fields, one_of, require

FAMILIES = ("clip", "siglip")
ACTIVATIONS = ("quick_gelu", "gelu", "gelu_tanh")


@dataclass(frozen=True)
class VisionTowerConfig:
    """A ViT that gives one embedding of an image. Defaults are CLIP ViT-B/32's.

    Attributes:
      image_size: side in pixels of its square input.
      patch_size: side in pixels of a token. Rows and columns that fill none are left out, as SigLIP's at 384 / 14.
      width: of a token, in channels; a multiple of `num_heads`.
      depth: number of blocks.
      num_heads: attention heads of each block.
      mlp_dim: width of each block's MLP, in channels.
    """

    image_size: int = 224
    patch_size: int = 32
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072

    def __post_init__(self) -> None:
        names = ("image_size", "patch_size", "width", "depth", "num_heads", "mlp_dim")
        check_fields(self, **dict.fromkeys(names, POSITIVE))
        require(
            self.image_size >= self.patch_size,
            f"image_size {self.image_size} must be at least patch_size {self.patch_size}",
        )
        require(self.width % self.num_heads == 0, f"width {self.width} must be a multiple of num_heads")

    @property
    def grid_size(self) -> int:
        """Tokens along one side."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class TextTowerConfig:
    """A transformer that gives one embedding of a text. Defaults are CLIP ViT-B's.

    Attributes:
      vocab_size: rows of the table of tokens.
      context_length: tokens of a text, padding included.
      width: of a token, in channels; a multiple of `num_heads`.
      depth: number of blocks.
      num_heads: attention heads of each block.
      mlp_dim: width of each block's MLP, in channels.
    """

    vocab_size: int = 49408
    context_length: int = 77
    width: int = 512
    depth: int = 12
    num_heads: int = 8
    mlp_dim: int = 2048

    def __post_init__(self) -> None:
        names = ("vocab_size", "context_length", "width", "depth", "num_heads", "mlp_dim")
        check_fields(self, **dict.fromkeys(names, POSITIVE))
        require(self.width % self.num_heads == 0, f"width {self.width} must be a multiple of num_heads")


@dataclass(frozen=True)
class TowersConfig:
    """Two towers whose embeddings lie in one space.

    Attributes:
      family: "clip" (Radford et al. 2021): a class token in the image, causal text that is read at its last token.
        "siglip" (Zhai et al. 2023, and SigLIP 2): attention pooling over the image, text read at the last place.
      vision: of images.
      text: of texts.
      embed_dim: width of the embeddings. SigLIP's images have the width of their tower, which has to be the same.
      activation: of the MLPs: "quick_gelu" as OpenAI's CLIP, "gelu" as others that trained the same network, or
        "gelu_tanh" as SigLIP.
      pixel_mean: means of red, green and blue, on the 0 to 255 scale, that images are normalised by.
      pixel_std: their standard deviations, on the same scale.
    """

    family: str = "clip"
    vision: VisionTowerConfig = field(default_factory=VisionTowerConfig)
    text: TextTowerConfig = field(default_factory=TextTowerConfig)
    embed_dim: int = 512
    activation: str = "quick_gelu"
    pixel_mean: tuple[float, float, float] = (122.7709383, 116.7460125, 104.09373615)
    pixel_std: tuple[float, float, float] = (68.5005327, 66.6321579, 70.32316305)

    def __post_init__(self) -> None:
        names = {"family": one_of(FAMILIES), "activation": one_of(ACTIVATIONS)}
        check_fields(self, **names, embed_dim=POSITIVE, pixel_std=POSITIVE)
        require(
            self.is_clip or self.vision.width == self.embed_dim,
            f"embed_dim {self.embed_dim} must be the vision tower's width {self.vision.width}: SigLIP projects none",
        )

    @property
    def is_clip(self) -> bool:
        """Whether these are CLIP's, as opposed to SigLIP's."""
        return self.family == "clip"


def clip_vit_b_32() -> TowersConfig:
    """CLIP ViT-B/32 (151 M parameters)."""
    return TowersConfig()


def clip_vit_b_16() -> TowersConfig:
    """CLIP ViT-B/16 (150 M parameters)."""
    return TowersConfig(vision=VisionTowerConfig(patch_size=16))


def clip_vit_l_14(image_size: int = 224) -> TowersConfig:
    """CLIP ViT-L/14 (428 M parameters)."""
    return TowersConfig(
        vision=VisionTowerConfig(image_size, 14, width=1024, depth=24, num_heads=16, mlp_dim=4096),
        text=TextTowerConfig(width=768, num_heads=12, mlp_dim=3072),
        embed_dim=768,
    )


def clip_vit_l_14_336() -> TowersConfig:
    """CLIP ViT-L/14 at 336 px, the towers of the SAM paper."""
    return clip_vit_l_14(336)


GREY = (127.5, 127.5, 127.5)


def siglip2_base(image_size: int = 224, patch_size: int = 16) -> TowersConfig:
    """SigLIP 2 base (375 M parameters, most of them the table of 256,000 tokens)."""
    return _siglip2(VisionTowerConfig(image_size, patch_size), TextTowerConfig(256_000, 64, 768, 12, 12, 3072))


def siglip2_so400m(image_size: int = 384, patch_size: int = 14) -> TowersConfig:
    """SigLIP 2 so400m (1136 M parameters)."""
    vision = VisionTowerConfig(image_size, patch_size, width=1152, depth=27, num_heads=16, mlp_dim=4304)
    return _siglip2(vision, TextTowerConfig(256_000, 64, 1152, 27, 16, 4304))


def _siglip2(vision: VisionTowerConfig, text: TextTowerConfig) -> TowersConfig:
    return TowersConfig("siglip", vision, text, vision.width, "gelu_tanh", GREY, GREY)


def towers_config_from_dict(values: dict[str, Any]) -> TowersConfig:
    """The inverse of `to_dict` for `TowersConfig`. Raises ValueError or TypeError for what is no such config."""
    fields: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in values.items()}
    fields |= {"vision": VisionTowerConfig(**values["vision"]), "text": TextTowerConfig(**values["text"])}
    return TowersConfig(**fields)
