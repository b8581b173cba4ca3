"""`sam-jax data`: prepares, checks and describes training data."""

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
    arg(metavar="PATH", help="directory of tars or of jpg + json pairs, a tar, or a quoted glob; local or gs://"),
]
_IndexDir = Annotated[
    str | None,
    arg(metavar="DIR", help="where to write indices that cannot be written beside the tars; None: the user's cache"),
]
_Folders = Annotated[tuple[str, ...], arg(metavar="DIR[=LICENCE]")]
_BAD_RECORDS = 1


@dataclasses.dataclass(frozen=True)
class Index:
    """Index the position of every image in its tar, and write it to sa_000000.tar.index.npz beside the tar.

    Tars are read in place: nothing is unpacked. Training builds missing indices itself; doing it first saves waiting
    then, and finds truncated tars.
    """

    path: _Path
    index_dir: _IndexDir = None

    def run(self) -> int:
        """Builds missing indices."""
        from sam_jax.data.sa1b import commands

        return commands.index(self.path, self.index_dir)


@dataclasses.dataclass(frozen=True)
class Check:
    """Read every record and list problems, one line per record; exit code 1 if there are any.

    Checks that the image decodes, the JSON parses, the run lengths of every mask fill the image, and its area and bbox
    are those of the mask.
    """

    path: _Path
    index_dir: _IndexDir = None
    threads: Annotated[int, arg(help="number of threads that read and decode")] = os.cpu_count() or 1

    def run(self) -> int:
        """Prints the problems."""
        from sam_jax.data.sa1b import commands

        return commands.check(self.path, self.index_dir, self.threads)


@dataclasses.dataclass(frozen=True)
class Stats:
    """Compute the SAM paper's statistics (section 5): masks per image, relative mask size, concavity, mask centres.

    Prints a table, and writes stats.json and stats.png.
    """

    path: _Path
    index_dir: _IndexDir = None
    out: Annotated[str, arg(metavar="DIR", help="directory for stats.json and stats.png")] = "."
    limit: Annotated[int, arg(help="number of images to measure, evenly spread over the data set; 0 means all")] = 2000

    def run(self) -> int:
        """Measures."""
        from sam_jax.data.sa1b import commands

        return commands.stats(self.path, self.index_dir, self.out, self.limit)


@dataclasses.dataclass(frozen=True)
class Tfds:
    """Write SA-1B's released tars as tensorflow-datasets' `segment_anything`, without TensorFlow.

    An interrupted run continues where it stopped.
    """

    tars: Annotated[
        Positional[str], arg(metavar="TARS", help="a directory of tars, a tar, or a quoted glob; local or gs://")
    ]
    out: Annotated[Positional[str], arg(metavar="OUT", help="written as OUT/segment_anything/1.0.0; local or gs://")]
    shards: Annotated[int | None, arg(help="number of files to write; None means one per tar")] = None
    limit: Annotated[int | None, arg(help="only the first images, this many")] = None
    beam: Annotated[
        str | None, arg(metavar="OPTIONS", help='run on Apache Beam, with its options: --beam="--runner=..."')
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
    """Write image_ids.npy into a data set that tensorflow-datasets' own builder prepared, which does not write it."""

    data: Annotated[Positional[str], arg(metavar="DATA", help="directory of the prepared data set")]

    def run(self) -> int:
        """Reads all ids."""
        from sam_jax.data.tfds.reading import TfdsSa1b

        print(f"{len(TfdsSa1b(self.data))} images")
        return 0


@dataclasses.dataclass(frozen=True)
class Pool:
    """Build a pool of cut-outs and photographs for composites, from public packages and your own folders."""

    out: Annotated[Positional[str], arg(metavar="OUT", help="directory to write the pool to")]
    packages: Annotated[
        str | None,
        arg(metavar="DIR", help="directory of .deb and .tgz files; None fetches them (apt-get, npm; about 550 MB)"),
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
    """Add to a pool the objects that GrabCut finds in its photographs; needs pip install opencv-python-headless.

    With --checkpoint a model finds them: confident, stable masks of everything mode that their own boxes give again
    and whose outline is an edge of the image.
    """

    pool: Annotated[Positional[str], arg(metavar="POOL", help="the pool's directory")]
    checkpoint: Annotated[
        str | None, arg(metavar="DIR", help='a model directory, or "vit_tiny", the bundled model; None is GrabCut')
    ] = None
    crf: parsing.Crf = False
    no_crf: parsing.NoCrf = False

    def run(self) -> int:
        """Labels."""
        from sam_jax.composites.pool import label_pool

        refinement = parsing.edge_refinement(self.crf, self.no_crf)
        if self.checkpoint is None:
            if refinement is not None:
                raise ValueError("--crf and --no-crf are about a model's masks; give the model with --checkpoint DIR")
            count = label_pool(self.pool)
        else:
            from sam_jax.checkpoint import load_model
            from sam_jax.inference.self_labels import RegionFinder

            finder = RegionFinder(*load_model(self.checkpoint, crf=refinement))
            count = label_pool(self.pool, lambda _, image: finder.find(image), threads=1)
        print(f"{count} photographs with regions in {self.pool}")
        return 0


@dataclasses.dataclass(frozen=True)
class PoolRender:
    """Add to a pool images of 3-D models of furniture, with exact masks of their parts; needs "sam_jax[render]"."""

    pool: Annotated[Positional[str], arg(metavar="POOL", help="the pool's directory")]
    packages: Annotated[
        str | None, arg(metavar="DIR", help="directory of the .deb file; None fetches it (apt-get, 120 MB)")
    ] = None

    def run(self) -> int:
        """Renders."""
        from sam_jax.composites.pool_models import render_pool

        print(f"{render_pool(self.pool, self.packages)} rendered models in {self.pool}")
        return 0


@dataclasses.dataclass(frozen=True)
class PackPool:
    """Write a pool as one small tar, to carry to the machine that trains; `--data.pool OUT.tar` reads it.

    Images become WebP, with a little loss, and photographs at most 512 px on the shorter side.
    """

    pool: Annotated[Positional[str], arg(metavar="POOL", help="the pool's directory")]
    out: Annotated[Positional[str], arg(metavar="OUT.tar", help="the tar to write")]
    val: Annotated[bool, arg(help="with what is held out, for evaluation during training; a tenth more")] = False

    def run(self) -> int:
        """Packs."""
        from sam_jax.composites.pool_packing import pack_pool

        sizes = pack_pool(self.pool, self.out, self.val)
        print("\n".join(f"{kind:16} {size / 1e6:6.1f} MB" for kind, size in sizes.items()))
        return 0


COMMANDS = {
    "index": Index,
    "check": Check,
    "stats": Stats,
    "tfds": Tfds,
    "tfds-index": TfdsIndex,
    "pool": Pool,
    "pool-label": PoolLabel,
    "pool-render": PoolRender,
    "pack-pool": PackPool,
}
HELP = """Prepare, check and describe training data: SA-1B, or your own images in its layout.

    {program} index data/sa1b                index the position of every image in its tar
    {program} check data/sa1b                read every record and list problems
    {program} stats data/sa1b --out out      the paper's statistics
    {program} tfds data/sa1b OUT             convert to tensorflow-datasets' format
    {program} tfds-index OUT                 add image ids to a data set of their own builder
    {program} pool data/pool                 gather cut-outs and photographs for composites
    {program} pool-label data/pool           find objects in the photographs
    {program} pool-render data/pool          draw 3-D models, whose parts are known
    {program} pack-pool data/pool OUT.tar    a pool as one small file

`{program} COMMAND --help`, for instance `{program} index --help`, explains each."""


def main(argv: Sequence[str] | None = None, program: str = "sam-jax data") -> int:
    """Runs one of the commands."""
    return parsing.run_chosen(COMMANDS, program, HELP, argv, _run)


def _run(command: Any) -> int:
    try:
        done: int = command.run()
    except (ImportError, RuntimeError) as error:  # OpenCV is missing, or a package cannot be fetched
        raise ValueError(str(error)) from error
    return done
