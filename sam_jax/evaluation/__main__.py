"""Evaluates a model with the SAM paper's interactive protocol, and writes a report.

  python -m sam_jax.evaluation data/my_images --checkpoint checkpoints/sam_vit_b --out report/
  python -m sam_jax.evaluation --set ADE20K=data/ADE20K_2021_17_01 --set OVIS=data/ovis --max-masks 10000

DATA is SA-1B tars or a folder of .jpg + .json pairs, a COCO or LVIS .json, or a directory with images/ and labels/ (a
PNG of object numbers per image). --set reads one of the paper's 23 sets as it was published; --list-sets tells what is
expected where. Without --checkpoint the bundled model is evaluated.

Written to --out: report.html (charts, and the best, median and worst cases as images) and report.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn

from sam_jax.checkpoint import bundled_model_path, load_model
from sam_jax.config.model import INFERENCE_DTYPES
from sam_jax.data.records import DataError
from sam_jax.evaluation.floors import evaluate_floors, floor_columns
from sam_jax.evaluation.options import PAPER_CLICKS, EvaluationOptions
from sam_jax.evaluation.protocol import evaluate
from sam_jax.evaluation.report.cases import Case, draw_cases
from sam_jax.evaluation.report.pages import make_report, text_tables, write_report
from sam_jax.evaluation.results import EvaluationResult, join
from sam_jax.evaluation.sets.image_sets import ImageSet, open_image_set
from sam_jax.evaluation.sets.paper_sets import PAPER_SETS, open_paper_set
from sam_jax.models.sam import Sam
from sam_jax.runtime import use_compilation_cache

PROGRAM = "python -m sam_jax.evaluation"


class OneLineParser(argparse.ArgumentParser):
    """A parser whose complaints are one line, as all others here."""

    def error(self, message: str) -> NoReturn:
        """Exits with code 2."""
        self.exit(2, f"evaluation: {message} (see --help)\n")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = OneLineParser(prog=PROGRAM, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    clicks, memory = " ".join(map(str, PAPER_CLICKS)), "(default: %(default)s); takes memory, saves time"
    parser.add_argument("data", nargs="*", metavar="DATA", help="labelled images; local or gs://")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=PATH", help="one of the paper's sets, as published; repeat"
    )
    parser.add_argument("--list-sets", action="store_true", help="describe the paper's sets and stop")
    parser.add_argument("--images", metavar="DIR", help="where the images of COCO or LVIS files in DATA lie")
    parser.add_argument("--checkpoint", metavar="DIR", help="model directory (default: the bundled vit_tiny)")
    parser.add_argument("--dtype", choices=INFERENCE_DTYPES, help="compute in this type (default: float32)")
    parser.add_argument(
        "--crf",
        default=None,
        action=argparse.BooleanOptionalAction,
        help="refine masks at the image's edges (CRF), or not (default: the model's; on for vit_tiny)",
    )
    parser.add_argument("--out", default="report", metavar="DIR", help="where the report goes (default: report)")
    parser.add_argument(
        "--clicks",
        type=int,
        nargs="*",
        default=list(PAPER_CLICKS),
        metavar="N",
        help=f"score masks after so many clicks (default: {clicks})",
    )
    parser.add_argument("--no-boxes", action="store_true", help="leave box prompts out")
    parser.add_argument("--floors", action="store_true", help="also score what needs no learning")
    parser.add_argument("--limit", type=int, metavar="N", help="at most N random images of each set")
    parser.add_argument("--max-masks", type=int, metavar="N", help="random images of each set until N masks are there")
    parser.add_argument("--seed", type=int, default=0, help="of the random images and the bootstrap (default: 0)")
    parser.add_argument(
        "--images-per-batch",
        type=int,
        default=EvaluationOptions.images_per_batch,
        metavar="N",
        help=f"images that the encoder sees at once {memory}",
    )
    parser.add_argument(
        "--prompts-per-batch",
        type=int,
        default=EvaluationOptions.prompts_per_batch,
        metavar="N",
        help=f"objects that the decoder works on at once {memory}",
    )
    return parser


def open_sets(args: argparse.Namespace) -> list[ImageSet]:
    """The sets of the command line, with names unlike each other."""
    sets: list[ImageSet] = []
    for path in args.data:
        sets.append(open_image_set(path, image_dir=args.images if path.endswith(".json") else None))
    for text in args.set:
        name, sign, path = text.partition("=")
        if not (name and sign and path):
            raise DataError(f"--set {text} is not of the form NAME=PATH, such as ADE20K=data/ADE20K_2021_17_01")
        sets.append(open_paper_set(name, path))
    if not sets:
        raise DataError("nothing to evaluate: give DATA, or --set NAME=PATH (see --help and --list-sets)")
    names = [one.name for one in sets]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"two sets are called {twice}; rename one, or evaluate them apart")
    return sets


def evaluate_set(
    model: Sam, variables: object, one: ImageSet, options: EvaluationOptions, floors: bool
) -> tuple[EvaluationResult, list[Case]]:
    """A set's scores and its images. Masks are dropped here: those of many sets would fill the memory."""
    result = evaluate(model, variables, one, options, progress=True)
    cases = draw_cases(result, one, options.columns[0])
    result, options = replace(result, masks=None), replace(options, keep_masks=False)
    if floors and floor_columns(options):
        result = join([result, evaluate_floors(one, options, progress=True)])
    return result, cases


def run(args: argparse.Namespace) -> None:
    """Evaluates, prints and writes."""
    options = EvaluationOptions(
        clicks=tuple(args.clicks),
        boxes=not args.no_boxes,
        limit=args.limit,
        max_masks=args.max_masks,
        seed=args.seed,
        images_per_batch=args.images_per_batch,
        prompts_per_batch=args.prompts_per_batch,
        keep_masks=True,
    )
    use_compilation_cache()
    sets = open_sets(args)
    model, variables = load_model(args.checkpoint, args.dtype, args.crf)
    results, cases = [], {}
    for one in sets:
        result, cases[one.name] = evaluate_set(model, variables, one, options, args.floors)
        results.append(result)
    about = {
        "checkpoint": str(args.checkpoint or bundled_model_path().name),
        "options": {name: getattr(args, name) for name in ("limit", "max_masks", "seed", "dtype", "crf")},
    }
    report = make_report(results, options.clicks, about, options.seed)
    print(text_tables(report))
    page, data = write_report(args.out, report, cases, options.columns[0])
    print(f"\nwrote {page} and {data}")


def list_sets() -> None:
    """Prints the paper's sets and what is expected of each."""
    for name, row in PAPER_SETS.items():
        print(f"{name}: {row.source}\n    split {row.split}; the paper took {row.images} images, {row.masks} masks")
        print(f"    expects {row.layout}")
        if row.notes:
            print(f"    {'' if row.certain else 'NOT CERTAIN: '}{row.notes}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; bad input ends in one line on stderr and exit code 2."""
    args = make_parser().parse_args(argv)
    try:
        if args.list_sets:
            list_sets()
        else:
            run(args)
    except (ValueError, OSError) as error:
        print(f"evaluation: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
