"""The commands of `sam-jax engine` that fill, read and check a store."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from sam_jax.cli import parsing
from sam_jax.config.engine import EngineConfig

Directory = Annotated[Positional[str], arg(metavar="DIR", help="the store's directory")]
_Format = Annotated[Literal["sa1b", "coco", "label-studio"], arg(help="how the masks are written down")]
_Stage = Annotated[
    Literal["assisted-manual", "semi-automatic", "automatic"] | None,
    arg(help="masks of this stage alone; None is all"),
]
_DEFAULT = EngineConfig()
_PROBLEMS = 1
_MOST_LINES = 20


@dataclasses.dataclass(frozen=True)
class Init:
    """Make a store: DIR/engine.sqlite, DIR/images and DIR/models. The directory has to lie on a local disk.

    Example:
        sam-jax engine init my_store --hold-out 0.2
    """

    directory: Directory
    checkpoint: Annotated[
        str | None, arg(metavar="MODEL", help="model directory to begin with; None is the bundled vit_tiny")
    ] = None
    hold_out: Annotated[float, arg(help="share of images that are for evaluation, never for training")] = (
        _DEFAULT.hold_out
    )
    lease_seconds: Annotated[float, arg(help="an annotator has an image for so long, unless the page renews it")] = (
        _DEFAULT.lease_seconds
    )
    hint_seconds: Annotated[float, arg(help="on one mask, until the page says that a rough one will do")] = (
        _DEFAULT.hint_seconds
    )

    def run(self) -> int:
        """Makes it."""
        from sam_jax.engine.store import init_store

        if self.checkpoint is not None:
            from sam_jax.checkpoint import load_config

            load_config(self.checkpoint)
        config = EngineConfig(self.hold_out, self.lease_seconds, self.hint_seconds)
        with init_store(self.directory, config, self.checkpoint) as store:
            print(f"{self.directory} is made; its model is {store.present().name}. Add images: sam-jax engine add")
        return 0


@dataclasses.dataclass(frozen=True)
class Add:
    """Add images to a store; each gets a task to label it. What is there already, or cannot be read, is left out.

    Exit codes: 0 all are there, 1 some cannot be used, 2 wrong input.

    Example:
        sam-jax engine add my_store images/ more/*.jpg @list.txt
    """

    directory: Directory
    images: Annotated[
        Positional[tuple[str, ...]], arg(metavar="IMAGE", help="files, directories, quoted patterns, @LIST of them")
    ]
    link: Annotated[bool, arg(help="link to the files rather than copy them; they have to stay where they are")] = False

    def run(self) -> int:
        """Adds them."""
        from sam_jax.engine.adding import add_images
        from sam_jax.engine.store import Store

        with Store(self.directory) as store:
            added = add_images(store, self.images, self.link)
            print(f"{added.new} added, {added.known} were there; {store.count_images()} images in all")
        return _report(added.problems)


@dataclasses.dataclass(frozen=True)
class Export:
    """Write the accepted masks of a store.

    sa1b: a directory with a JSON file for each image, in the layout of SA-1B. coco: one file of COCO instances.
    label-studio: one file of tasks, masks as brush strokes. Names of masks are kept; those without are "object".

    Example:
        sam-jax engine export my_store masks.json --format coco
    """

    directory: Directory
    out: Annotated[Positional[str], arg(metavar="OUT", help="a directory for sa1b, else a file")]
    format: _Format
    stage: _Stage = None
    held_out: Annotated[
        Literal["yes", "no"] | None, arg(help="images for evaluation alone, or those for training alone; None is all")
    ] = None
    image_prefix: Annotated[str, arg(help="label-studio: stands before file names, so that it finds the images")] = (
        "/data/local-files/?d="
    )

    def run(self) -> int:
        """Writes."""
        from sam_jax.engine.exports import export_store
        from sam_jax.engine.store import Store

        held_out = None if self.held_out is None else self.held_out == "yes"
        with Store(self.directory) as store:
            images, masks = export_store(
                store, self.out, self.format, stage=self.stage, held_out=held_out, image_prefix=self.image_prefix
            )
        print(f"{masks} masks of {images} images in {self.out}")
        return 0


@dataclasses.dataclass(frozen=True)
class Import:
    """Take masks into a store that were made elsewhere, for images that it has: they are found by their file names.

    Masks become accepted ones; those that are there already are not added again. Of Label Studio, brushes come as they
    are to the pixel, polygons and rectangles as the pixels whose centres they contain; other shapes are left out.
    Exit codes: 0 all was taken, 1 some was left out, 2 wrong input.

    Example:
        sam-jax engine import my_store instances.json --format coco
    """

    directory: Directory
    source: Annotated[Positional[str], arg(metavar="SOURCE", help="a file; for sa1b also a directory of files")]
    format: _Format

    def run(self) -> int:
        """Reads."""
        from sam_jax.engine.imports import import_masks
        from sam_jax.engine.store import Store

        with Store(self.directory) as store:
            done = import_masks(store, self.source, self.format)
        print(f"{done.masks} new masks in {done.images} images")
        return _report(done.problems)


@dataclasses.dataclass(frozen=True)
class Status:
    """Say where a store stands: tasks, masks, and what was done with each model, as a table."""

    directory: Directory

    def run(self) -> int:
        """Prints."""
        from sam_jax.engine.report import status_text
        from sam_jax.engine.store import Store

        with Store(self.directory) as store:
            print(status_text(store.statistics(), store.present(), store.round_statistics()))
        return 0


@dataclasses.dataclass(frozen=True)
class Audit:
    """Measure how good the masks are, as section 5 of the SAM paper does.

    --sample opens tasks for images with automatic masks: the annotators correct copies of them. --repeat opens tasks
    for finished images: other annotators label them from nothing. Without either, what is done so far is reported: how
    many automatic masks have an IoU above 0.90 and 0.75 with their corrections, and how well two annotators agree.

    Example:
        sam-jax engine audit my_store --sample 50
        sam-jax engine audit my_store
    """

    directory: Directory
    sample: Annotated[int | None, arg(help="images to draw whose automatic masks are corrected")] = None
    repeat: Annotated[int | None, arg(help="images to draw that are labelled once more")] = None
    seed: Annotated[int, arg(help="random seed of the images drawn and of the bootstrap")] = 0

    def run(self) -> int:
        """Opens tasks or reports."""
        from sam_jax.engine.audit import read_agreement, read_audit
        from sam_jax.engine.report import audit_text
        from sam_jax.engine.rows import AUDIT, REPEAT
        from sam_jax.engine.store import Store

        wanted = {AUDIT: self.sample, REPEAT: self.repeat}
        with Store(self.directory) as store:
            for stage, count in wanted.items():
                if count is not None:
                    tasks = store.open_checks(stage, count, self.seed)
                    print(f"{len(tasks)} {stage} tasks are open: sam-jax engine serve {self.directory}")
            if set(wanted.values()) == {None}:
                print(audit_text(read_audit(store, self.seed), read_agreement(store, self.seed)))
        return 0


def _report(problems: Sequence[str]) -> int:
    """Prints what was left out; the exit code."""
    for line in problems[:_MOST_LINES]:
        parsing.complain("left out", line)
    if len(problems) > _MOST_LINES:
        parsing.complain("left out", f"and {len(problems) - _MOST_LINES} more")
    return _PROBLEMS if problems else 0
