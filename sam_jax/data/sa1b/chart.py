"""Draws stats.png with PIL only: three histograms and a map of mask centres."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 1400, 1050
_PANEL = WIDTH // 2, (HEIGHT - 50) // 2
_PLOT = 90, 60, 30, 75  # margins of the plot in its panel: left, top, right, bottom
_INK, _GREY, _GRID, _BAR = (30, 30, 30), (110, 110, 110), (225, 225, 225), (43, 108, 176)
_DARK, _BRIGHT = np.array([13, 28, 66.0]), np.array([255, 232, 140.0])


def draw_chart(figures: dict[str, Any], title: str) -> Image.Image:
    """An RGB image, (HEIGHT, WIDTH), of the figures of `statistics.summary`."""
    chart = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(chart)
    heading = f"{title}: {figures['images']:,} images, {figures['masks']:,} masks"
    draw.text((WIDTH / 2, 28), _shortened(draw, heading), _INK, _font(26), anchor="mm")
    panels = (
        ("masks_per_image", "Masks per image", "masks", "share of images"),
        ("relative_size", "Relative mask size", "square root of (mask area / image area)", "share of masks"),
        ("concavity", "Mask concavity", "1 - mask area / area of its convex hull", "share of masks"),
    )
    for number, (name, caption, x_label, y_label) in enumerate(panels):
        corner = number % 2 * _PANEL[0], 50 + number // 2 * _PANEL[1]
        _draw_bars(draw, corner, figures[name], caption, x_label, y_label)
    _draw_centres(chart, draw, (_PANEL[0], 50 + _PANEL[1]), np.array(figures["centres"]["counts"], float))
    return chart


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _shortened(draw: ImageDraw.ImageDraw, text: str) -> str:
    """The text, with its beginning cut off if it is wider than the chart."""
    while draw.textlength(text, _font(26)) > WIDTH - 80:
        text = "..." + text[8:]
    return text


def _plot_box(corner: tuple[int, int]) -> tuple[int, int, int, int]:
    left, top, right, bottom = _PLOT
    return corner[0] + left, corner[1] + top, corner[0] + _PANEL[0] - right, corner[1] + _PANEL[1] - bottom


def _draw_bars(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    figure: dict[str, Any],
    caption: str,
    x_label: str,
    y_label: str,
) -> None:
    """One histogram with its caption, axes, ticks and median."""
    x0, y0, x1, y1 = box = _plot_box(corner)
    edges = np.array(figure["histogram"]["edges"])
    counts = np.array(figure["histogram"]["counts"], float)
    shares = counts / max(counts.sum(), 1)
    top = _round_up(shares.max())
    _draw_labels(draw, box, f"{caption}  (mean {figure['mean']:.3g}, median {figure['quartiles'][1]:.3g})", x_label)
    draw.text((x0 - 78, y0 - 18), y_label, _GREY, _font(17), anchor="lm")
    for step in range(5):
        y, value = y1 - step / 4 * (y1 - y0), step / 4 * top
        draw.line((x0, y, x1, y), _GRID)
        draw.text((x0 - 8, y), f"{value:.3g}" if top < 0.01 else f"{value:.1%}", _INK, _font(17), anchor="rm")
    x = x0 + (edges - edges[0]) / (edges[-1] - edges[0]) * (x1 - x0)
    for begin, end, share in zip(x[:-1], x[1:], shares, strict=True):
        if share:
            draw.rectangle((begin, y1 - share / top * (y1 - y0), max(end - 1, begin), y1), _BAR)
    _draw_axis(draw, box, edges[0], edges[-1])


def _draw_centres(chart: Image.Image, draw: ImageDraw.ImageDraw, corner: tuple[int, int], counts: np.ndarray) -> None:
    """The map of mask centres (rows, columns), brightest where they are most frequent."""
    x0, y0, x1, y1 = _plot_box(corner)
    side = min(x1 - x0, y1 - y0)
    x0 += (x1 - x0 - side) // 2
    box = x0, y0, x0 + side, y0 + side
    share = counts / max(counts.max(), 1)
    colours = (_DARK + share[..., None] * (_BRIGHT - _DARK)).astype(np.uint8)
    chart.paste(Image.fromarray(colours).resize((side, side), Image.Resampling.NEAREST), (x0, y0))
    most = share.size * counts.max() / max(counts.sum(), 1)
    _draw_labels(draw, box, f"Mask centres  (brightest: {most:.3g} times an even spread)", "x / image width")
    draw.text((x0 - 10, y0 - 18), "y / image height", _GREY, _font(17), anchor="rm")
    for value in (0.0, 0.5, 1.0):
        draw.text((x0 - 8, y0 + value * side), f"{value:g}", _INK, _font(17), anchor="rm")
    _draw_axis(draw, box, 0, 1)


def _draw_labels(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], caption: str, x_label: str) -> None:
    x0, y0, x1, y1 = box
    draw.text(((x0 + x1) / 2, y0 - 40), caption, _INK, _font(21), anchor="mm")
    draw.text(((x0 + x1) / 2, y1 + 48), x_label, _GREY, _font(17), anchor="mm")


def _draw_axis(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], low: float, high: float) -> None:
    x0, y0, x1, y1 = box
    draw.line((x0, y1, x1, y1), _INK)
    draw.line((x0, y0, x0, y1), _INK)
    for step in range(6):
        x, value = x0 + step / 5 * (x1 - x0), low + step / 5 * (high - low)
        draw.line((x, y1, x, y1 + 6), _INK)
        draw.text((x, y1 + 20), f"{value:g}", _INK, _font(17), anchor="mm")


def _round_up(value: float) -> float:
    """Rounds up to 1, 2, 2.5, 5 or 10 times a power of ten, for the end of an axis."""
    power = 10.0 ** np.floor(np.log10(max(value, 1e-6)))
    return float(next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= value * (1 - 1e-9)))
