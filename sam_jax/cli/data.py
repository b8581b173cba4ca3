"""`sam-jax data`: training data prepared, checked and described."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Sequence
from typing import Annotated, Any

from tyro.conf import Positional, arg

from sam_jax.cli import parsing

_Path = Annotated[
    Positional[str],
    arg(metavar="PATH", help="directory of tars, one tar, a quoted glob, or directory of jpg + json pairs; or gs://"),
]
_IndexDir = Annotated[
    str | None,
    arg(metavar="DIR", help="where indices go if they cannot be written beside the tars; None: the user's cache"),
]
_Folders = Annotated[tuple[str, ...], arg(metavar="DIR[=LICENCE]")]
_BAD_RECORDS = 1


@dataclasses.dataclass(frozen=True)
class Index:
    """Find where every image lies in its tar, and keep that in sa_000000.tar.index.npz beside it.

    Tars are read in place: nothing is unpacked. Training does this by itself when it first meets a tar; doing it before
    saves the wait, and finds tars that are cut short.
    """

    path: _Path
    index_dir: _IndexDir = None

    def run(self) -> int:
        """Builds what indices are missing."""
        from sam_jax.data.sa1b import commands

        return commands.index(self.path, self.index_dir)


@dataclasses.dataclass(frozen=True)
class Check:
    """Read every record, and list what is wrong, one line a record; exit code 1 if anything is.

    The image decodes, the JSON parses, the runs of every mask fill the image, its area and bbox are those of the mask.
    """

    path: _Path
    index_dir: _IndexDir = None
    threads: Annotated[int, arg(help="that read and decode")] = os.cpu_count() or 1

    def run(self) -> int:
        """Prints what is wrong."""
        from sam_jax.data.sa1b import commands

        return commands.check(self.path, self.index_dir, self.threads)


@dataclasses.dataclass(frozen=True)
class Stats:
    """Masks per image, relative mask size, concavity and mask centres, as the SAM paper has them (section 5).

    Prints a table, and writes stats.json and stats.png.
    """

    path: _Path
    index_dir: _IndexDir = None
    out: Annotated[str, arg(metavar="DIR", help="where stats.json and stats.png go")] = "."
    limit: Annotated[int, arg(help="measure so many images spread evenly over the data set; 0 means all")] = 2000

    def run(self) -> int:
        """Measures."""
        from sam_jax.data.sa1b import commands

        return commands.stats(self.path, self.index_dir, self.out, self.limit)


@dataclasses.dataclass(frozen=True)
class Tfds:
    """Write SA-1B's released tars as tensorflow-datasets' `segment_anything`, without TensorFlow.

    Goes on where it stopped.
    """

    tars: Annotated[
        Positional[str], arg(metavar="TARS", help="a directory of tars, one tar, or a quoted glob; local or gs://")
    ]
    out: Annotated[Positional[str], arg(metavar="OUT", help="written as OUT/segment_anything/1.0.0; local or gs://")]
    shards: Annotated[int | None, arg(help="files to write; None is one per tar")] = None
    limit: Annotated[int | None, arg(help="only so many images, from the first")] = None
    beam: Annotated[
        str | None, arg(metavar="OPTIONS", help='have Apache Beam do it, with its own options: --beam="--runner=..."')
    ] = None

    def run(self) -> int:
        """Prepares."""
        from sam_jax.data.tfds.preparing import prepare_tars
        from sam_jax.data.tfds.reading import TfdsSa1b

        options = None if self.beam is None else shlex.split(self.beam)
        directory = prepare_tars(self.tars, self.out, self.shards, self.limit, options)
        print(f"{len(TfdsSa1b(directory))} images in {directory}")
        return 0


@dataclasses.dataclass(frozen=True)
class TfdsIndex:
    """Write image_ids.npy, which tensorflow-datasets' own builder does not, beside a prepared data set."""

    data: Annotated[Positional[str], arg(metavar="DATA", help="a prepared directory")]

    def run(self) -> int:
        """Reads all ids."""
        from sam_jax.data.tfds.reading import TfdsSa1b

        print(f"{len(TfdsSa1b(self.data))} images")
        return 0


@dataclasses.dataclass(frozen=True)
class Pool:
    """Gather a pool of cut-outs and photographs for composites, from public packages and your folders."""

    out: Annotated[Positional[str], arg(metavar="OUT", help="directory to write the pool to")]
    packages: Annotated[
        str | None,
        arg(metavar="DIR", help="holds the .deb and .tgz files; None fetches them (apt-get, npm; about 550 MB)"),
    ] = None
    photos: Annotated[_Folders, arg(help="folders of photographs, for backgrounds")] = ()
    labelled: Annotated[_Folders, arg(help="folders of SA-1B-style jpg + json pairs")] = ()

    def run(self) -> int:
        """Builds."""
        from sam_jax.composites.pool import build_pool

        counts = build_pool(self.out, self.packages, self.photos, self.labelled)
        print("\n".join(f"{kind:16} {count}" for kind, count in counts.items()))
        return 0


@dataclasses.dataclass(frozen=True)
class PoolLabel:
    """Add to a pool the objects that GrabCut finds in its photographs; needs pip install opencv-python-headless."""

    pool: Annotated[Positional[str], arg(metavar="POOL", help="the pool's directory")]

    def run(self) -> int:
        """Labels."""
        from sam_jax.composites.pool import label_pool

        print(f"{label_pool(self.pool)} photographs with regions in {self.pool}")
        return 0


COMMANDS = {
    "index": Index,
    "check": Check,
    "stats": Stats,
    "tfds": Tfds,
    "tfds-index": TfdsIndex,
    "pool": Pool,
    "pool-label": PoolLabel,
}
HELP = """Training data prepared, checked and described: SA-1B, or your own images laid out like it.

    {program} index data/sa1b                find where every image lies in its tar
    {program} check data/sa1b                read every record and list what is wrong
    {program} stats data/sa1b --out out      the paper's statistics
    {program} tfds data/sa1b OUT             write it as tensorflow-datasets does
    {program} tfds-index OUT                 image ids of what their own builder wrote
    {program} pool data/pool                 gather cut-outs and photographs for composites
    {program} pool-label data/pool           find objects in the photographs

`{program} index --help`, and so on, explains each."""


def main(argv: Sequence[str] | None = None, program: str = "sam-jax data") -> int:
    """Runs one of the commands."""
    chosen = parsing.choose(COMMANDS, program, HELP, argv)
    if isinstance(chosen, int):
        return chosen
    name = chosen[1]
    command: Any = parsing.parse(*chosen)

    def work() -> int:
        try:
            done: int = command.run()
        except (ImportError, RuntimeError) as error:  # OpenCV is missing, or a package cannot be fetched
            raise ValueError(str(error)) from error
        return done

    return parsing.run(name, work)
