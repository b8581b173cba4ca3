"""The size of a TinyViT, MobileSAM's image encoder."""

from __future__ import annotations

from dataclasses import dataclass

from sam_jax.config.checks import POSITIVE, check_fields, require

REDUCTION = 4  # of the first convolutions


@dataclass(frozen=True)
class TinyVitConfig:
    """TinyViT (Wu et al. 2022) as in MobileSAM (Zhang et al. 2023): one stage of convolutions, then stages of windowed
    attention. Defaults are those of the 5 M model. For inference only.

    Attributes:
      image_size: side in pixels of the square input frame. No parameter depends on it.
      widths: channels of each stage.
      depths: blocks of each stage.
      num_heads: attention heads of each stage after the first; each divides its stage's width.
      window_sizes: side in cells of the windows of each stage after the first.
      mlp_ratio: width of an MLP as a multiple of its stage's width.
      expand_ratio: width inside a convolutional block as a multiple of its stage's width.
    """

    image_size: int = 1024
    widths: tuple[int, ...] = (64, 128, 160, 320)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (4, 5, 10)
    window_sizes: tuple[int, ...] = (7, 14, 7)
    mlp_ratio: float = 4.0
    expand_ratio: float = 4.0

    def __post_init__(self) -> None:
        names = ("widths", "depths", "num_heads", "window_sizes", "mlp_ratio", "expand_ratio")
        check_fields(self, **dict.fromkeys(names, POSITIVE))
        stages = len(self.widths)
        require(stages >= 2, f"widths must name two stages or more, not {self.widths}")
        for name, count in (("depths", stages), ("num_heads", stages - 1), ("window_sizes", stages - 1)):
            value = getattr(self, name)
            require(len(value) == count, f"{name} {value} must have {count} numbers, as there are {stages} widths")
        wrong = [w for w, heads in zip(self.widths[1:], self.num_heads, strict=True) if w % heads]
        require(not wrong, f"widths {wrong} must be multiples of their stages' num_heads {self.num_heads}")
        require(self.widths[0] % 2 == 0, f"widths {self.widths} must begin with an even number")
        require(
            self.image_size > 0 and self.image_size % self.patch_size == 0,
            f"image_size {self.image_size} must be a positive multiple of {self.patch_size}",
        )

    @property
    def patch_size(self) -> int:
        """Side in pixels of a cell of the image embedding: every stage but the last two ends with a halving."""
        return REDUCTION * 2 ** (len(self.widths) - 2)

    @property
    def grid_size(self) -> int:
        """Side in cells of the square embedding grid at `image_size`."""
        return self.image_size // self.patch_size
