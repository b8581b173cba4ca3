"""Prepares, verifies and describes SA-1B, or your own photographs laid out like it.

PATH is a directory of tars as released (sa_000000.tar, ...), one such tar, a quoted glob of them, or a directory of
name.jpg + name.json pairs; local or gs://. Tars are read in place: nothing is unpacked.

  python -m sam_jax.data.sa1b index data/sa1b
      finds where every image lies in its tar and keeps that in sa_000000.tar.index.npz beside it. Training does so
      by itself when it first meets a tar; doing it before saves the wait, and finds tars that are cut short.
  python -m sam_jax.data.sa1b check data/sa1b
      reads every record: the image decodes, the JSON parses, the runs of every mask fill the image, its area and
      bbox are those of the mask. Lists what is wrong, one line a record. Exit code 1 if anything is.
  python -m sam_jax.data.sa1b stats data/sa1b --out out/sa1b
      masks per image, relative mask size, concavity and mask centres, as the SAM paper has them (section 5):
      a table, and stats.json and stats.png in the directory of --out.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence

from etils import epath
from tqdm import tqdm

from sam_jax.data.records import DataError
from sam_jax.data.sa1b.chart import draw_chart
from sam_jax.data.sa1b.check import check_records
from sam_jax.data.sa1b.opening import open_sa1b
from sam_jax.data.sa1b.statistics import measure, summary, table
from sam_jax.data.sa1b.tars import Sa1bTars


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m sam_jax.data.sa1b",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="index | check | stats")

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        command.add_argument(
            "path", metavar="PATH", help="directory of tars, one tar, or directory of jpg + json pairs"
        )
        command.add_argument(
            "--index-dir",
            metavar="DIR",
            help="where indices go when they cannot be written beside the tars (default: the user's cache)",
        )
        return command

    add("index", run_index, "find where every image lies in its tar, and keep that beside the tar")
    check = add("check", run_check, "read every record and list the bad ones; exit code 1 if there are any")
    check.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="threads (default: %(default)s)")
    stats = add("stats", run_stats, "the paper's statistics: a table, stats.json and stats.png")
    stats.add_argument("--out", metavar="DIR", default=".", help="where stats.json and stats.png go (default: here)")
    stats.add_argument(
        "--limit",
        metavar="N",
        type=int,
        default=2000,
        help="measure N images spread evenly over the data set; 0 means all (default: %(default)s)",
    )
    return parser


def run_index(args: argparse.Namespace) -> int:
    """Builds what indices are missing."""
    source = Sa1bTars(
        args.path, args.index_dir, progress=lambda found, total: tqdm(found, "indexing", total, unit="tar")
    )
    print(f"{len(source)} pairs; {source.unpaired} files without a partner, {source.duplicates} repeated image ids")
    return 0


def run_check(args: argparse.Namespace) -> int:
    """Prints what is wrong, one line a record."""
    if args.threads < 1:
        raise DataError(f"--threads must be 1 or more, not {args.threads}")
    source = open_sa1b(args.path, args.index_dir)
    bad = 0
    for fault in tqdm(check_records(source, args.threads), "checking", len(source), unit="image"):
        if fault:
            bad += 1
            tqdm.write(fault)
    print(
        f"{len(source)} records, {bad} bad; {source.unpaired} files without a partner, {source.duplicates} repeated ids"
    )
    return int(bool(bad or source.unpaired or source.duplicates))


def run_stats(args: argparse.Namespace) -> int:
    """Prints a table and writes stats.json and stats.png."""
    if args.limit < 0:
        raise DataError(f"--limit must be 0 or more, not {args.limit}")
    source = open_sa1b(args.path, args.index_dir)
    figures = summary(measure(source, args.limit, lambda order: tqdm(order, "measuring", unit="image")))
    print(table(figures))
    out = epath.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "stats.json").write_text(json.dumps({"path": str(args.path), **figures}, indent=1) + "\n")
    with (out / "stats.png").open("wb") as file:
        draw_chart(figures, str(args.path)).save(file, "PNG")
    print(f"{out / 'stats.json'} and {out / 'stats.png'} written")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit code: 0, 1 for bad records, 2 for a path that is no data set."""
    args = make_parser().parse_args(argv)
    try:
        return args.run(args)
    except DataError as error:
        print(f"sa1b: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
