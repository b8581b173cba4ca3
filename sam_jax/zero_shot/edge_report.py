"""What the boundary benchmark tells: a table for the terminal, report.json, and report.html with curves and images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from sam_jax.evaluation.report.charts import Line, line_chart
from sam_jax.evaluation.report.html import html_table, image_figure, text_table, whole_page
from sam_jax.files import write_atomically
from sam_jax.inference.images import read_image
from sam_jax.inference.overlays import side_by_side
from sam_jax.zero_shot.boundary_benchmark import BoundaryScores, read_boundaries

FORMAT = "sam_jax.edges.v1"
SHOWN = 6
PAPER = ("SAM paper, ViT-H (test images)", ".768", ".786", ".794", ".928", "", "", "")
_HEADER = ["edges", "ODS", "OIS", "AP", "R50", "threshold", "recall", "precision"]


def score_rows(scores: Mapping[str, BoundaryScores]) -> list[list[str]]:
    """The table, its header first."""
    fields = ("ods", "ois", "ap", "r50", "threshold", "recall", "precision")
    return [_HEADER, *([name, *(f"{getattr(one, field):.3f}" for field in fields)] for name, one in scores.items())]


def write_edge_report(
    out: epath.PathLike,
    scores: Mapping[str, BoundaryScores],
    about: Mapping[str, Any],
    examples: Sequence[tuple[str, str, str]],
    failures: Sequence[str],
) -> epath.Path:
    """Writes `out`/report.html and report.json, and gives the page's path.

    Args:
      scores: by name of whose edges they are.
      about: what was run, for report.json.
      examples: files of an image or edge map, of its edges, and of its boundaries.
      failures: what was left out, and why.
    """
    folder = epath.Path(out)
    content = {"format": FORMAT, **about, "scores": {name: one.as_dict() for name, one in scores.items()}}
    header, *rows = score_rows(scores)
    lines = [Line(name, [(r, p) for _, r, p in one.curve if p > 0]) for name, one in scores.items()]
    ticks = [step / 5 for step in range(6)]
    parts = [
        html_table(header, [*rows, PAPER]),
        line_chart(lines, "recall", "precision", (0.0, 1.0), ticks),
        f"<p>{about['images']} images. Boundaries may lie .0075 of the diagonal apart; see docs/zero_shot.md.</p>",
        *(_example(*files) for files in examples[:SHOWN]),
    ]
    if failures:
        parts += ["<h2>Left out</h2>", html_table(["image"], [[line] for line in failures])]
    page = folder / "report.html"
    write_atomically(page, whole_page("Edges", "Edges against people's boundaries", parts).encode())
    write_atomically(folder / "report.json", (json.dumps(content, indent=1) + "\n").encode())
    return page


def print_scores(scores: Mapping[str, BoundaryScores]) -> None:
    """The table on stdout."""
    print(text_table(score_rows(scores)))


def _example(image: str, edges: str, boundaries: str) -> str:
    drawn = read_image(edges)
    people = np.mean(read_boundaries(boundaries), axis=0)
    shown = [255 - drawn, _grey(255 - 255 * people)]
    if image != edges:
        shown.insert(0, _resized(read_image(image), drawn.shape[:2]))
    return image_figure(side_by_side(shown, 480), f"{epath.Path(image).name}: edges found, and people's boundaries")


def _grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values.astype(np.uint8)[..., None], 3, axis=-1)


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return image if image.shape[:2] == size else np.asarray(Image.fromarray(image).resize(size[::-1]))
