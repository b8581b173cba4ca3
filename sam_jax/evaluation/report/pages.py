"""Results of an evaluation as tables for the terminal, JSON, and a self-contained HTML page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from etils import epath

from sam_jax.evaluation.options import click_column
from sam_jax.evaluation.report.cases import Case
from sam_jax.evaluation.report.charts import Line, line_chart
from sam_jax.evaluation.report.group_tables import group_html
from sam_jax.evaluation.report.html import html_table, text_table, whole_page
from sam_jax.evaluation.results import EvaluationResult, average_over_sets
from sam_jax.files import write_atomically

FORMAT = "sam_jax.evaluation.v1"


def make_report(
    results: Sequence[EvaluationResult], clicks: Sequence[int], about: Mapping[str, Any], seed: int = 0
) -> dict[str, Any]:
    """The content of `report.json`.

    Args:
      results: one per set, with distinct names.
      clicks: which "N clicks" columns there are.
      about: the model and the options, copied as given.
      seed: of the bootstrap.
    """
    sets = {result.name: result.summary(seed) for result in results}
    return {
        "format": FORMAT,
        **about,
        "clicks": list(clicks),
        "sets": sets,
        "average": {"sets": len(results), **average_over_sets(results, seed)},
    }


def text_tables(report: Mapping[str, Any]) -> str:
    """The report for a terminal: mean IoU and boundary IoU, each ± half the width of its interval, and calibration."""
    parts = []
    for title, metric in (("mean IoU (95 % interval over images)", "miou"), ("boundary IoU", "boundary_iou")):
        header, rows = _score_rows(report, metric)
        parts.append(f"{title}\n{text_table([header, *rows])}")
    header, rows = _calibration_rows(report)
    if rows:
        parts.append(f"predicted against true IoU\n{text_table([header, *rows])}")
    return "\n\n".join(parts)


def write_report(
    out: epath.PathLike, report: Mapping[str, Any], cases: Mapping[str, Sequence[Case]], case_column: str
) -> tuple[epath.Path, epath.Path]:
    """Writes `report.html` and `report.json` into the directory `out` and returns their paths."""
    folder = epath.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    page, data = folder / "report.html", folder / "report.json"
    write_atomically(page, html_page(report, cases, case_column).encode())
    write_atomically(data, (json.dumps(report, indent=1) + "\n").encode())
    return page, data


def html_page(report: Mapping[str, Any], cases: Mapping[str, Sequence[Case]], case_column: str) -> str:
    """The report as one HTML page: tables, charts, and images of cases, which `case_column` ranks."""
    parts = [
        "<h2>Mean IoU</h2>",
        html_table(*_score_rows(report, "miou")),
        f'<div class="row">{"".join(_charts(report))}</div>',
        "<h2>Boundary IoU</h2>",
        html_table(*_score_rows(report, "boundary_iou")),
    ]
    header, rows = _calibration_rows(report)
    if rows:
        parts += ["<h2>Predicted against true IoU</h2>", html_table(header, rows)]
    parts += [group_html(name, one["groups"]) for name, one in report["sets"].items() if "groups" in one]
    for name, images in cases.items():
        parts.append(f'<h2>{escape(name)}: best, median and worst at {escape(case_column)}</h2><div class="row">')
        parts += [
            f'<figure><img src="{case.data_url}" alt="{case.kind} case">'
            f"<figcaption><b>{case.kind}</b> {escape(case.caption)}</figcaption></figure>"
            for case in images
        ]
        parts.append("</div>")
    skipped = [f"<li>{escape(text)}</li>" for one in report["sets"].values() for text in one["skipped"]]
    if skipped:
        parts.append(f"<h2>Left out</h2><ul>{''.join(skipped)}</ul>")
    parts.append(
        "<p>Tinted: the predicted mask. White: the true outline. Dots: clicks, green on the object, red off it. "
        "Intervals hold 95 % of a bootstrap over images. Boundary IoU: Cheng et al. 2021, 2 % of the diagonal.</p>"
    )
    return whole_page("Evaluation", f"Evaluation of {report.get('checkpoint', 'model')}", parts)


def _score_rows(report: Mapping[str, Any], metric: str) -> tuple[list[str], list[list[str]]]:
    sets = report["sets"]
    columns = list(dict.fromkeys(column for one in sets.values() for column in one[metric]))
    header, rows = ["set", "images", "masks", *columns], []
    for name, one in sets.items():
        cells = [_cell(one[metric].get(column)) for column in columns]
        rows.append([name, str(one["images"]), str(one["masks"]), *cells])
    if len(sets) > 1:
        cells = [_cell(report["average"][metric].get(column)) for column in columns]
        rows.append([f"average of {len(sets)} sets", "", "", *cells])
    return header, rows


def _cell(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return "-"
    low, high = score["interval"]
    return f"{score['mean']:.3f} ±{(high - low) / 2:.3f}"


def _calibration_rows(report: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    header = ["set", "prompt", "Spearman", "mean abs. error", "mean error", "ECE"]
    rows = []
    for name, one in report["sets"].items():
        for column, found in one["calibration"].items():
            spearman = "-" if found["spearman"] is None else f"{found['spearman']:.3f}"
            errors = ("mean_absolute_error", "mean_error", "expected_calibration_error")
            rows.append([name, column, spearman, *(f"{found[key]:+.3f}".removeprefix("+") for key in errors)])
    return header, rows


def _charts(report: Mapping[str, Any]) -> list[str]:
    clicks, sets, charts = report["clicks"], report["sets"], []
    if clicks:
        lines = []
        for name, one in sets.items():
            scores = [one["miou"][click_column(n)] for n in clicks]
            points = [(n, score["mean"]) for n, score in zip(clicks, scores, strict=True)]
            lines.append(Line(name, points, [score["interval"] for score in scores]))
        ends = min(clicks) - 0.5, max(clicks) + 0.5
        charts.append(line_chart(lines, "clicks", "mean IoU", ends, clicks))
    lines = [
        Line(
            f"{name}, {column}" if len(sets) > 1 else column,
            [(b["predicted"], b["true"]) for b in found["bins"]],
            weights=[b["count"] for b in found["bins"]],
        )
        for name, one in sets.items()
        for column, found in list(one["calibration"].items())[: len(one["calibration"]) if len(sets) == 1 else 1]
    ]
    if lines:
        ticks = [step / 5 for step in range(6)]
        charts.append(line_chart(lines, "predicted IoU", "true IoU", (0.0, 1.05), ticks, diagonal=True))
    return charts
