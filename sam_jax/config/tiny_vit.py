"""The size of a TinyViT, MobileSAM's image encoder."""

from __future__ import annotations

from dataclasses import dataclass

from sam_jax.config.checks import POSITIVE, check_fields, require

REDUCTION = 4  # of the first convolutions


@dataclass(frozen=True)
class TinyVitConfig:
    """TinyViT (Wu et al. 2022) as in MobileSAM (Zhang et al. 2023): one stage of convolutions, then stages of windowed
    attention. Defaults are those of the 5 M model. For inference alone.

    Attributes:
      image_size: side in pixels of the square frame. Other input sizes work as they are: nothing depends on it.
      widths: channels of each stage.
      depths: blocks of each stage.
      num_heads: attention heads of the stages after the first; each divides its stage's width.
      window_sizes: sides in cells of the windows of the stages after the first.
      mlp_ratio: width of an MLP, in widths of its stage.
      expand_ratio: width inside a convolutional block, in widths of its stage.
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
        """Side in pixels of a cell of the image embedding: every stage but the last two is halved."""
        return REDUCTION * 2 ** (len(self.widths) - 2)

    @property
    def grid_size(self) -> int:
        """Side of the square embedding grid at the native input size."""
        return self.image_size // self.patch_size
