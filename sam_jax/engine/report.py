"""What a store and its audits say, as text for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from sam_jax.engine.audit import PAPER_AGREEMENT, PAPER_SHARES, THRESHOLDS, Agreement, Audit
from sam_jax.engine.rows import ModelVersion
from sam_jax.engine.statistics import RoundStatistics, Statistics

_HEAD = ("round", "model", "state", "stage", "images", "masks", "masks/image", "s/mask", "first IoU", "new")


def status_text(found: Statistics, present: ModelVersion, rounds: Sequence[RoundStatistics]) -> str:
    """Where a store stands, and a table of what was done with each model."""
    lines = [
        f"stage {found.stage}: {found.done} of {found.done + found.open} tasks done, {found.images} images, "
        f"{found.masks} masks; model {present.name} (round {present.round})"
    ]
    if rounds:
        lines += ["", *_table([_HEAD, *map(_cells, rounds)])]
        lines += [
            "",
            "masks/image: accepted when the image was done; s/mask: of work of people; first IoU: of what the model",
            "proposed first with what was accepted; new: share of semi-automatic masks that people added",
        ]
    return "\n".join(lines)


def audit_text(audit: Audit, agreement: Agreement) -> str:
    """What audits and second labels say, beside the paper."""
    lines = [
        f"{audit.images} images audited: of {audit.pairs + audit.deleted + audit.undecided} automatic masks "
        f"{audit.pairs} were accepted, {audit.deleted} deleted, {audit.undecided} left undecided; {audit.added} added"
    ]
    if audit.shares:
        rows = [("IoU with the corrected mask", "share", "95 % interval", "SAM paper")]
        for threshold, share, paper in zip(THRESHOLDS, audit.shares, PAPER_SHARES, strict=True):
            bounds = f"{100 * share.low:.1f} to {100 * share.high:.1f} %"
            rows.append((f"above {threshold:.2f}", f"{100 * share.value:.1f} %", bounds, f"{100 * paper:.0f} %"))
        lines += ["", *_table(rows)]
    lines += ["", f"{agreement.images} images labelled by two annotators"]
    if agreement.iou is not None:
        iou, (low, high) = agreement.iou, PAPER_AGREEMENT
        lines[-1] += (
            f": mean IoU {iou.value:.3f} ({iou.low:.3f} to {iou.high:.3f}) of {agreement.pairs} pairs that the "
            f"Hungarian method matched; {100 * agreement.matched:.0f} % of masks are in one "
            f"(the paper quotes an IoU of {low:.2f} to {high:.2f})"
        )
    return "\n".join(lines)


def _cells(row: RoundStatistics) -> tuple[str, ...]:
    plain = (row.round, row.name, row.state, row.stage, row.images, row.masks)
    share = None if row.share_new is None else 100 * row.share_new
    means = (_number(row.masks_per_image, 1), _number(row.seconds_per_mask, 1), _number(row.proposal_iou, 3))
    return (*map(str, plain), *means, "-" if share is None else f"{share:.0f} %")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
