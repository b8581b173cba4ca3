"""A whole evaluation: opens, scores and draws one set after the other, and reports on all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sam_jax.data.records import DataError
from sam_jax.evaluation.floors import evaluate_floors, floor_columns
from sam_jax.evaluation.groups import Attributes, group_columns, score_groups
from sam_jax.evaluation.options import EvaluationOptions
from sam_jax.evaluation.protocol import evaluate
from sam_jax.evaluation.report.cases import Case, draw_cases
from sam_jax.evaluation.report.group_tables import group_text
from sam_jax.evaluation.report.pages import make_report, text_tables, write_report
from sam_jax.evaluation.results import EvaluationResult, join
from sam_jax.evaluation.sets.image_sets import ImageSet, open_image_set
from sam_jax.evaluation.sets.paper_sets import PAPER_SETS, open_paper_set
from sam_jax.models.sam import Sam


def open_sets(paths: Sequence[str], paper_sets: Sequence[str], image_dir: str | None) -> list[ImageSet]:
    """Opens labelled sets.

    Args:
      paths: anything that `open_image_set` reads.
      paper_sets: NAME=PATH of the paper's sets, as published.
      image_dir: the directory of the images of .json files in `paths`.

    Raises:
      DataError: none are given, one cannot be opened, or two have the same name.
    """
    sets: list[ImageSet] = []
    for path in paths:
        sets.append(open_image_set(path, image_dir=image_dir if path.endswith(".json") else None))
    for text in paper_sets:
        name, sign, path = text.partition("=")
        if not (name and sign and path):
            raise DataError(f"--set {text} is not of the form NAME=PATH, such as ADE20K=data/ADE20K_2021_17_01")
        sets.append(open_paper_set(name, path))
    if not sets:
        raise DataError("nothing to evaluate: give DATA, or --set NAME=PATH (see --help and --list-sets)")
    names = [one.name for one in sets]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"two sets are called {twice}; rename one, or evaluate them separately")
    return sets


def evaluate_sets(
    model: Sam,
    variables: Any,
    sets: Sequence[ImageSet],
    options: EvaluationOptions,
    about: dict[str, Any],
    out: str,
    floors: bool = False,
    attributes: Attributes | None = None,
) -> None:
    """Evaluates, prints tables and writes `out`/report.html and report.json.

    Args:
      about: what the report says about the model and the options.
      floors: also score the baselines without learning.
      attributes: also score by group.

    Raises:
      DataError: the attributes name an image that no set has, or the options score none of the clicks that groups are
        compared by.
    """
    if attributes is not None:
        group_columns(options.columns)
        attributes.check([name for one in sets for name in one.image_ids])
    results, cases = [], {}
    for one in sets:
        result, cases[one.name] = _evaluate_set(model, variables, one, replace(options, keep_masks=True), floors)
        results.append(result)
    report = make_report(results, options.clicks, about, options.seed)
    if attributes is not None:
        for result, one in zip(results, sets, strict=True):
            ids = [one.image_ids[index] for index in result.indices]
            report["sets"][result.name]["groups"] = score_groups(result, ids, attributes, options.seed)
    print(text_tables(report))
    for name, found in report["sets"].items():
        if "groups" in found:
            print(f"\n{name}: {group_text(found['groups'])}")
    page, data = write_report(out, report, cases, options.columns[0])
    print(f"\nwrote {page} and {data}")


def _evaluate_set(
    model: Sam, variables: Any, one: ImageSet, options: EvaluationOptions, floors: bool
) -> tuple[EvaluationResult, list[Case]]:
    """The scores and cases of a set. Masks are dropped here: those of many sets would not fit into memory."""
    result = evaluate(model, variables, one, options, progress=True)
    cases = draw_cases(result, one, options.columns[0])
    result, options = replace(result, masks=None), replace(options, keep_masks=False)
    if floors and floor_columns(options):
        result = join([result, evaluate_floors(one, options, progress=True)])
    return result, cases


def list_paper_sets() -> None:
    """Prints the paper's sets and the layout that each is expected in."""
    for name, row in PAPER_SETS.items():
        print(f"{name}: {row.source}\n    split {row.split}; the paper used {row.images} images, {row.masks} masks")
        print(f"    expects {row.layout}")
        if row.notes:
            print(f"    {'' if row.certain else 'NOT CERTAIN: '}{row.notes}")
