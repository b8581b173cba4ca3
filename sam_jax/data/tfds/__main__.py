"""SA-1B as tensorflow-datasets keeps it (`segment_anything`, array_record): written and indexed without TensorFlow.

`python -m sam_jax.data.tfds prepare TARS OUT` writes it from the released tars.
"""

from __future__ import annotations

import argparse

from sam_jax.data.records import DataError
from sam_jax.data.tfds.layout import IDS_FILE, NAME, VERSION
from sam_jax.data.tfds.preparing import prepare_tars
from sam_jax.data.tfds.reading import TfdsSa1b


def main() -> None:
    """Command line: `prepare` writes a data set, `index` its image ids."""
    parser = argparse.ArgumentParser(prog="python -m sam_jax.data.tfds", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser(
        "prepare", help="write released tars as array_record shards; goes on where it stopped"
    )
    prepare.add_argument("tars", metavar="TARS", help="a directory of tars, one tar, or a quoted glob; local or gs://")
    prepare.add_argument("out", metavar="OUT", help=f"written as OUT/{NAME}/{VERSION}; local or gs://")
    prepare.add_argument("--shards", type=int, metavar="N", help="files to write (one per tar)")
    prepare.add_argument("--limit", type=int, metavar="N", help="only the first N images")
    prepare.add_argument(
        "--beam", action="store_true", help="with Apache Beam, which is handed all further options (--runner=...)"
    )
    index = commands.add_parser("index", help=f"write {IDS_FILE}, which the official builder does not, beside the data")
    index.add_argument("data", metavar="DATA", help="a prepared directory")
    args, beam_options = parser.parse_known_args()
    if beam_options and not getattr(args, "beam", False):
        parser.error(f"unrecognized arguments: {' '.join(beam_options)}")
    try:
        if args.command == "index":
            print(f"{len(TfdsSa1b(args.data))} images")
            return
        directory = prepare_tars(args.tars, args.out, args.shards, args.limit, beam_options if args.beam else None)
        print(f"{len(TfdsSa1b(directory))} images in {directory}")
    except DataError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
