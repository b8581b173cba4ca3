"""Scores by group as tables and a chart, laid out as tables 2 and 6 of the SAM paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from sam_jax.evaluation.report.charts import COLOURS
from sam_jax.evaluation.report.html import html_table, text_table

_ROW, _LEFT, _WIDTH, _RIGHT = 22, 210, 560, 24


def group_rows(groups: Mapping[str, Any]) -> list[list[str]]:
    """A row per group, the header first: masks, images, and mean IoU with half its interval's width."""
    columns = groups["columns"]
    rows = [["group", "masks", "images", *columns]]
    for attribute, found in groups["attributes"].items():
        for value, scores in found.items():
            cells = [_cell(scores[column]) for column in columns]
            rows.append([f"{attribute}: {value}", str(scores["masks"]), str(scores["images"]), *cells])
    return rows


def difference_rows(groups: Mapping[str, Any]) -> list[list[str]]:
    """A row per pair of groups and score, the header first."""
    rows = [["groups", "score", "difference", "p", "corrected p", ""]]
    for one in groups["differences"]:
        p = ["-" if one[key] is None else f"{one[key]:.3f}" for key in ("p", "corrected_p")]
        mark = "differ" if one["significant"] else ""
        names = f"{one['attribute']}: {one['groups'][0]} - {one['groups'][1]}"
        rows.append([names, one["column"], f"{one['difference']:+.3f}", *p, mark])
    return rows


def group_text(groups: Mapping[str, Any]) -> str:
    """Both tables and all warnings for a terminal."""
    parts = [f"mean IoU by group (95 % interval over images)\n{text_table(group_rows(groups))}"]
    if groups["differences"]:
        title = "differences (Welch's t test on images, Benjamini-Hochberg)"
        parts.append(f"{title}\n{text_table(difference_rows(groups))}")
    return "\n\n".join([*parts, *(f"warning: {line}" for line in groups["warnings"])])


def group_html(name: str, groups: Mapping[str, Any]) -> str:
    """The same as HTML, with a chart."""
    rows, pairs = group_rows(groups), difference_rows(groups)
    parts = [f"<h2>{escape(name)}: groups</h2>", html_table(rows[0], rows[1:]), group_chart(groups)]
    if len(pairs) > 1:
        parts.append(html_table(pairs[0], pairs[1:]))
    parts += [f"<p>Warning: {escape(line)}.</p>" for line in groups["warnings"]]
    return "\n".join(parts)


def group_chart(groups: Mapping[str, Any]) -> str:
    """SVG: a dot per group and score on a scale of 0 to 1, with its interval."""
    columns = groups["columns"]
    rows = [(f"{a}: {v}", scores) for a, found in groups["attributes"].items() for v, scores in found.items()]
    height = _ROW * (len(rows) + 2)
    parts = [f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" role="img">']
    for step in range(6):
        x = _across(step / 5)
        parts.append(f'<line x1="{x}" y1="4" x2="{x}" y2="{_ROW * len(rows) + 6}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{x}" y="{_ROW * len(rows) + 20}" text-anchor="middle">{step / 5:.1f}</text>')
    for number, (label, scores) in enumerate(rows):
        y = _ROW * number + 15
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">{escape(label[:32])}</text>')
        for place, column in enumerate(columns):
            parts += _dot(scores[column], y, COLOURS[place])
    for place, column in enumerate(columns):
        x = _LEFT + 140 * place
        parts.append(f'<circle cx="{x}" cy="{height - 10}" r="4" fill="{COLOURS[place]}"/>')
        parts.append(f'<text x="{x + 10}" y="{height - 6}">mean IoU, {escape(column)}</text>')
    return "\n".join([*parts, "</svg>"])


def _dot(score: Mapping[str, Any], y: float, colour: str) -> Sequence[str]:
    low, high = map(_across, score["interval"])
    return (
        f'<line x1="{low}" y1="{y}" x2="{high}" y2="{y}" stroke="{colour}" stroke-width="2" opacity="0.6"/>',
        f'<circle cx="{_across(score["mean"])}" cy="{y}" r="4" fill="{colour}"/>',
    )


def _across(value: float) -> float:
    return round(_LEFT + min(max(value, 0.0), 1.0) * (_WIDTH - _LEFT - _RIGHT), 1)


def _cell(score: Mapping[str, Any]) -> str:
    low, high = score["interval"]
    return f"{score['mean']:.3f} ±{(high - low) / 2:.3f}"
