"""The work behind `sam-jax zero-shot edges`: maps of many images, and their scores beside those of floors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from sam_jax.batch.image_list import ImageFile
from sam_jax.zero_shot.boundary_benchmark import THRESHOLDS, BoundaryScores
from sam_jax.zero_shot.edge_floors import edge_floors
from sam_jax.zero_shot.edge_report import print_scores, write_edge_report
from sam_jax.zero_shot.edge_scores import EdgeMap, find_boundaries, score_maps

_COUNTS = "counts"  # the folder below OUT


@dataclass(frozen=True)
class ScoringOptions:
    """How edge maps are scored.

    Attributes:
      boundaries: BSDS500, or a folder of its .mat files.
      floors: also score what needs no learning.
      thresholds: how many.
      processes: that count.
    """

    boundaries: str
    floors: bool = False
    thresholds: int = THRESHOLDS
    processes: int = os.cpu_count() or 1

    def __post_init__(self) -> None:
        for name in ("thresholds", "processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more")


def score_edges(
    images: Sequence[ImageFile],
    edges: dict[str, str],
    out: str,
    name: str,
    options: ScoringOptions,
    about: dict[str, Any],
) -> dict[str, BoundaryScores]:
    """Scores edge maps, prints the table and writes a report.

    Args:
      images: those that the maps are of; where there are none, the maps themselves.
      edges: by an image's path the file of its edges. Images without are left out.
      out: where reports go, and counts, from which an interrupted run goes on.
      name: whose edges they are.
      about: what report.json says of the run.

    Raises:
      GroundTruthError: there are no boundaries of any of the images.
    """
    boundaries = find_boundaries(images, options.boundaries)
    chosen = [image for image in images if image.path in boundaries and image.path in edges]
    if missing := len(images) - len(chosen):
        print(f"{missing} of {len(images)} images are not scored: no edges, or no boundaries in {options.boundaries}")
    scores, failures = {}, []
    floors = [floor for floor in edge_floors() if options.floors]
    for floor in (None, *floors):
        label = floor or name
        maps = [
            EdgeMap(
                image.path,
                image.path if floor else edges[image.path],
                boundaries[image.path],
                os.fspath(epath.Path(out) / _COUNTS / f"{image.name}.{(floor or 'edges').lower()}.json"),
                floor,
            )
            for image in chosen
        ]
        found, wrong = score_maps(maps, options.thresholds, options.processes, label)
        failures += wrong
        if found is not None:
            scores[label] = found
    if not scores:
        raise ValueError(f"none of {len(chosen)} edge maps can be compared; {failures[0] if failures else 'no edges'}")
    print_scores(scores)
    for line in failures:
        print(f"left out: {line}")
    examples = [(image.path, edges[image.path], boundaries[image.path]) for image in chosen]
    failed = {line.partition(": ")[0] for line in failures}
    examples = [example for example in examples if example[0] not in failed]
    about = about | {"images": len(examples), "thresholds": options.thresholds, "left_out": failures}
    print(f"wrote {write_edge_report(out, scores, about, examples, failures)}")
    return scores
