"""A composite under construction: a canvas, and the layers pasted on it with their visible parts."""

import dataclasses

import numpy as np
from PIL import Image, ImageFilter

from sam_jax.composites.patches import Patch, blend, scale

Window = tuple[slice, slice]  # rows, columns

MIN_VISIBLE_SHARE = 0.2  # of the layer's own area
MIN_IMAGE_SHARE = 0.0005
MAX_IMAGE_SHARE = 0.9
MIN_PART_CONTRAST = 12.0  # mean change of the canvas, 0 to 255: nothing can be learned from an invisible edge
MAX_PART_SHARE = 0.85  # a part that covers nearly the whole would be the same mask twice


@dataclasses.dataclass(eq=False)
class Layer:
    """One pasted object or part.

    Attributes:
        window: the rows and columns of the canvas that it lies in; nothing of it lies beyond.
        alpha: (h, w) float32 as pasted, of the window, clipped to its ancestors.
        visible: (h, w) bool, of the window, what later layers have left of it.
        area: pixels it would show if nothing hid it and nothing fell off the canvas.
        ancestors: indices of the layers it is a part of, outermost first.
    """

    window: Window
    alpha: np.ndarray
    visible: np.ndarray
    area: int
    ancestors: tuple[int, ...]

    def count(self) -> int:
        """Pixels that are visible."""
        return int(np.count_nonzero(self.visible))

    def visible_window(self) -> Window:
        """The smallest box of the canvas around what is visible, which is not nothing."""
        return _moved(bounding_window(self.visible), self.window)


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
        window, inside = self._place(patch.alpha.shape, top, left)
        alpha = patch.alpha[inside]
        shows = alpha > 0.5
        if not shows.any():
            return None
        blend(self.canvas[window], patch.rgb[inside], alpha)
        return self._add(window, alpha, shows, int(np.count_nonzero(patch.alpha > 0.5)), ())

    def paste_part(self, patch: Patch, top: int, left: int, parent: int) -> int | None:
        """Pastes a part, clipped to the visible part of its parent.

        Returns the index of its layer, or None (with the canvas unchanged) if it is too small, covers nearly the whole
        parent, or hardly differs from it.
        """
        window, inside, alpha = self._on(parent, patch.alpha, top, left)
        shows, rgb = alpha > 0.5, patch.rgb[inside]
        if not self._is_part(shows, parent):
            return None
        if np.abs(rgb[shows] - self.canvas[window][shows]).mean() < MIN_PART_CONTRAST:
            return None
        blend(self.canvas[window], rgb, alpha)
        return self._add(window, alpha, shows, int(np.count_nonzero(shows)), self._lineage(parent))

    def mark_part(self, part: np.ndarray, top: int, left: int, parent: int) -> int | None:
        """Adds a part (h, w) bool that its parent shows already.

        Returns the index of its layer, or None if it is too small or covers nearly the whole parent.
        """
        window, _, alpha = self._on(parent, part.astype(np.float32), top, left)
        shows = alpha > 0.5
        if not self._is_part(shows, parent):
            return None
        return self._add(window, alpha, shows, int(np.count_nonzero(part)), self._lineage(parent))

    def _on(self, parent: int, alpha: np.ndarray, top: int, left: int) -> tuple[Window, Window, np.ndarray]:
        """Where on the canvas a part lies within its parent, which of it that is, and its alpha there."""
        whole = self.layers[parent]
        placed, _ = self._place(alpha.shape, top, left)
        window = _intersection(placed, whole.window)
        inside, of_whole = _relative(window, np.s_[top:, left:]), _relative(window, whole.window)
        return window, inside, alpha[inside] * (whole.alpha[of_whole] * whole.visible[of_whole])

    def _is_part(self, shows: np.ndarray, parent: int) -> bool:
        pixels = self.canvas.shape[0] * self.canvas.shape[1]
        return MIN_IMAGE_SHARE * pixels < np.count_nonzero(shows) < MAX_PART_SHARE * self.layers[parent].count()

    def _lineage(self, parent: int) -> tuple[int, ...]:
        return (*self.layers[parent].ancestors, parent)

    def _place(self, shape: tuple[int, ...], top: int, left: int) -> tuple[Window, Window]:
        """Where a patch lies on the canvas, and which part of it that is; empty where it lies beside it."""
        (h, w), (height, width) = self.size, shape
        y0, x0 = min(max(top, 0), h), min(max(left, 0), w)
        y1, x1 = max(min(top + height, h), y0), max(min(left + width, w), x0)
        return np.s_[y0:y1, x0:x1], np.s_[y0 - top : y1 - top, x0 - left : x1 - left]

    def _add(
        self,
        window: Window,
        alpha: np.ndarray,
        shows: np.ndarray,
        area: int,
        ancestors: tuple[int, ...],
    ) -> int:
        for index, layer in enumerate(self.layers):
            if index not in ancestors:
                shared = _intersection(window, layer.window)
                layer.visible[_relative(shared, layer.window)] &= ~shows[_relative(shared, window)]
        self.layers.append(Layer(window, alpha, shows, area, ancestors))
        return len(self.layers) - 1

    def occupied(self) -> np.ndarray:
        """(h, w) bool: where any object is visible."""
        taken = np.zeros(self.size, bool)
        for layer in self.layers:
            if not layer.ancestors:
                taken[layer.window] |= layer.visible
        return taken

    def shade(self, patch: Patch, top: int, left: int, darkness: float, softness: float) -> None:
        """Draws a soft shadow: darkens the canvas under a blurred copy of the patch's alpha."""
        pad = int(3 * softness) + 1
        alpha = np.pad(patch.alpha, pad)
        image = Image.fromarray((alpha * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(softness))
        shadow = np.asarray(image)
        window, inside = self._place(shadow.shape, top - pad, left - pad)
        scale(self.canvas[window], 1 - darkness * (shadow[inside].astype(np.float32) / 255))

    def masks(self) -> np.ndarray:
        """(n, h, w) bool: the visible parts of layers, without those that are too small or cover nearly the canvas."""
        pixels = self.canvas.shape[0] * self.canvas.shape[1]
        kept = [
            layer
            for layer in self.layers
            if max(MIN_VISIBLE_SHARE * layer.area, MIN_IMAGE_SHARE * pixels) < layer.count() < MAX_IMAGE_SHARE * pixels
        ]
        masks = np.zeros((len(kept), *self.size), bool)
        for mask, layer in zip(masks, kept, strict=True):
            mask[layer.window] = layer.visible
        return masks


def bounding_window(mask: np.ndarray) -> Window:
    """The slices of the smallest box around a non-empty (h, w) bool mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _moved(window: Window, by: Window) -> Window:
    """A window given from the start of another, from where that one is given."""
    y, x = (slice(side.start + start.start, side.stop + start.start) for side, start in zip(window, by, strict=True))
    return y, x


def _relative(window: Window, to: Window) -> Window:
    """The same from the start of `to`, which it lies in."""
    y, x = (slice(side.start - start.start, side.stop - start.start) for side, start in zip(window, to, strict=True))
    return y, x


def _intersection(one: Window, other: Window) -> Window:
    """What two windows share; empty, and inside of both, where that is nothing."""
    y, x = (
        slice(start := min(max(a.start, b.start), a.stop, b.stop), max(min(a.stop, b.stop), start))
        for a, b in zip(one, other, strict=True)
    )
    return y, x
