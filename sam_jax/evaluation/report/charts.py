"""Charts as inline SVG: they need no plotting library, and print at any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 380
_LEFT, _TOP, _RIGHT, _BOTTOM = 52, 16, 16, 46
# Okabe and Ito (2008), safe for colour-blind readers; dashes distinguish further sets.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")
_DASHES = ("", "6 3", "2 3", "8 3 2 3")


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
      name: for the legend.
      points: (x, y).
      intervals: (low, high) in y of each point, or empty.
      weights: counts that set the sizes of the dots, or empty.
    """

    name: str
    points: Sequence[tuple[float, float]]
    intervals: Sequence[tuple[float, float]] = ()
    weights: Sequence[float] = ()


def line_chart(
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    x_range: tuple[float, float],
    x_ticks: Sequence[float],
    diagonal: bool = False,
) -> str:
    """A line chart as SVG, with y from 0 to 1 and a legend below."""
    legend_rows = (len(lines) + 2) // 3
    height = HEIGHT + 20 * legend_rows
    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">']
    parts += _axes(x_label, y_label, x_range, x_ticks)
    if diagonal:
        (x0, y0), (x1, y1) = _at(0, 0, x_range), _at(1, 1, x_range)
        parts.append(f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}" stroke="#999" stroke-dasharray="4 4"/>')
    for number, line in enumerate(lines):
        parts += _line(line, number, x_range)
        x, y = _LEFT + number % 3 * (WIDTH - _LEFT) / 3, HEIGHT + 8 + 20 * (number // 3)
        parts.append(f'<line x1="{x}" y1="{y}" x2="{x + 22}" y2="{y}" {_stroke(number)}/>')
        parts.append(f'<text x="{x + 28}" y="{y + 4}">{escape(line.name[:24])}</text>')
    return "\n".join([*parts, "</svg>"])


def _axes(x_label: str, y_label: str, x_range: tuple[float, float], x_ticks: Sequence[float]) -> list[str]:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = []
    for step in range(6):
        _, y = _at(x_range[0], step / 5, x_range)
        parts.append(f'<line x1="{_LEFT}" y1="{y}" x2="{right}" y2="{y}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{step / 5:.1f}</text>')
    for tick in x_ticks:
        x, _ = _at(tick, 0, x_range)
        parts.append(f'<line x1="{x}" y1="{bottom}" x2="{x}" y2="{bottom + 5}" stroke="#333"/>')
        parts.append(f'<text x="{x}" y="{bottom + 19}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="#333"/>')
    middle = (_LEFT + right) / 2
    parts.append(f'<text x="{middle}" y="{bottom + 38}" text-anchor="middle">{escape(x_label)}</text>')
    y = (_TOP + bottom) / 2
    parts.append(f'<text x="13" y="{y}" text-anchor="middle" transform="rotate(-90 13 {y})">{escape(y_label)}</text>')
    return parts


def _line(line: Line, number: int, x_range: tuple[float, float]) -> list[str]:
    colour = COLOURS[number % len(COLOURS)]
    places = [_at(x, y, x_range) for x, y in line.points]
    path = " ".join(f"{x},{y}" for x, y in places)
    parts = [f'<polyline points="{path}" fill="none" {_stroke(number)}/>']
    for (x, _), (low, high) in zip(line.points, line.intervals, strict=False):
        (px, y0), (_, y1) = _at(x, low, x_range), _at(x, high, x_range)
        parts.append(f'<line x1="{px}" y1="{y0}" x2="{px}" y2="{y1}" stroke="{colour}" opacity="0.6"/>')
    most = max(line.weights, default=1.0)
    weights = line.weights or [most / 4] * len(places)
    for (x, y), weight in zip(places, weights, strict=True):
        radius = 1.5 + 4.5 * (weight / most) ** 0.5
        parts.append(f'<circle cx="{x}" cy="{y}" r="{radius:.1f}" fill="{colour}" opacity="0.85"/>')
    return parts


def _stroke(number: int) -> str:
    dash = _DASHES[number // len(COLOURS) % len(_DASHES)]
    return f'stroke="{COLOURS[number % len(COLOURS)]}" stroke-width="2" stroke-dasharray="{dash}"'


def _at(x: float, y: float, x_range: tuple[float, float]) -> tuple[float, float]:
    low, high = x_range
    across = _LEFT + (x - low) / (high - low) * (WIDTH - _LEFT - _RIGHT)
    up = HEIGHT - _BOTTOM - min(max(y, 0.0), 1.0) * (HEIGHT - _TOP - _BOTTOM)
    return round(across, 1), round(up, 1)
