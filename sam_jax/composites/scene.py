"""A composite under construction: a canvas, and the layers pasted on it with their visible parts."""

import dataclasses

import numpy as np
from PIL import Image, ImageFilter

from sam_jax.composites.patches import Patch

MIN_VISIBLE_SHARE = 0.2  # of the layer's own area
MIN_IMAGE_SHARE = 0.0005
MAX_IMAGE_SHARE = 0.9
MIN_PART_CONTRAST = 12.0  # mean change of the canvas, 0 to 255: nothing can be learned from an invisible edge
MAX_PART_SHARE = 0.85  # a part that covers nearly the whole would be the same mask twice


@dataclasses.dataclass(eq=False)
class Layer:
    """One pasted object or part.

    Attributes:
        alpha: (h, w) float32 as pasted, clipped to its ancestors.
        visible: (h, w) bool, where no later layer covers it.
        area: its number of pixels if nothing covered it and all were on the canvas.
        ancestors: indices of the layers that it is a part of, outermost first.
    """

    alpha: np.ndarray
    visible: np.ndarray
    area: int
    ancestors: tuple[int, ...]


class Scene:
    """A canvas to paste objects and parts on. A layer hides all earlier ones, except its ancestors.

    Attributes:
        canvas: (h, w, 3) float32, 0 to 255.
        layers: in the order of pasting.
    """

    def __init__(self, background: np.ndarray):
        self.canvas = background.astype(np.float32)
        self.layers: list[Layer] = []

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) in pixels."""
        return self.canvas.shape[:2]

    def paste(self, patch: Patch, top: int, left: int) -> int | None:
        """Pastes an object with its corner at (top, left), which may be off the canvas.

        Returns the index of its layer, or None if it is not visible.
        """
        alpha, rgb = self._place(patch, top, left)
        if not (alpha > 0.5).any():
            return None
        return self._add(alpha, rgb, int((patch.alpha > 0.5).sum()), ())

    def paste_part(self, patch: Patch, top: int, left: int, parent: int) -> int | None:
        """Pastes a part, clipped to the visible part of its parent.

        Returns the index of its layer, or None (with the canvas unchanged) if it is too small, covers nearly the whole
        parent, or hardly differs from it.
        """
        alpha, rgb = self._place(patch, top, left)
        whole = self.layers[parent]
        alpha *= whole.alpha * whole.visible
        area = int((alpha > 0.5).sum())
        if not MIN_IMAGE_SHARE * alpha.size < area < MAX_PART_SHARE * whole.visible.sum():
            return None
        inside = alpha > 0.5
        if np.abs(rgb[inside] - self.canvas[inside]).mean() < MIN_PART_CONTRAST:
            return None
        return self._add(alpha, rgb, area, (*whole.ancestors, parent))

    def _place(self, patch: Patch, top: int, left: int) -> tuple[np.ndarray, np.ndarray]:
        """The patch at its place on an empty canvas: alpha (h, w), rgb (h, w, 3), zero elsewhere."""
        h, w = self.size
        alpha = np.zeros((h, w), np.float32)
        rgb = np.zeros((h, w, 3), np.float32)
        y0, x0 = max(top, 0), max(left, 0)
        y1, x1 = min(top + patch.alpha.shape[0], h), min(left + patch.alpha.shape[1], w)
        if y0 < y1 and x0 < x1:
            inside = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
            alpha[y0:y1, x0:x1] = patch.alpha[inside]
            rgb[y0:y1, x0:x1] = patch.rgb[inside]
        return alpha, rgb

    def _add(self, alpha: np.ndarray, rgb: np.ndarray, area: int, ancestors: tuple[int, ...]) -> int:
        window = bounding_window(alpha > 0)
        self.canvas[window] += (rgb[window] - self.canvas[window]) * alpha[window][..., None]
        shows = alpha > 0.5
        for index, layer in enumerate(self.layers):
            if index not in ancestors:
                layer.visible[window] &= ~shows[window]
        self.layers.append(Layer(alpha, shows.copy(), area, ancestors))
        return len(self.layers) - 1

    def occupied(self) -> np.ndarray:
        """(h, w) bool: where any object is visible."""
        taken = np.zeros(self.size, bool)
        for layer in self.layers:
            if not layer.ancestors:
                taken |= layer.visible
        return taken

    def shade(self, patch: Patch, top: int, left: int, darkness: float, softness: float) -> None:
        """Draws a soft shadow: darkens the canvas under a blurred copy of the patch's alpha."""
        pad = int(3 * softness) + 1
        alpha = np.pad(patch.alpha, pad)
        image = Image.fromarray((alpha * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(softness))
        shadow = np.asarray(image, np.float32) / 255
        placed, _ = self._place(Patch(np.zeros((*shadow.shape, 3), np.float32), shadow), top - pad, left - pad)
        self.canvas *= 1 - darkness * placed[..., None]

    def masks(self) -> np.ndarray:
        """(n, h, w) bool: the visible parts of layers, without those that are too small or cover nearly the canvas."""
        pixels = self.canvas.shape[0] * self.canvas.shape[1]
        kept = [
            layer.visible
            for layer in self.layers
            if max(MIN_VISIBLE_SHARE * layer.area, MIN_IMAGE_SHARE * pixels)
            < layer.visible.sum()
            < MAX_IMAGE_SHARE * pixels
        ]
        return np.array(kept, bool).reshape(-1, *self.size)


def bounding_window(mask: np.ndarray) -> tuple[slice, slice]:
    """The slices of the smallest box around a non-empty (h, w) bool mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
