"""`sam-jax engine fill`, `auto`, `retrain` and `roll-back`: models at work on a store, and their training."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from sam_jax.cli import parsing
from sam_jax.cli.engine_store import Directory
from sam_jax.config.engine_models import AutomaticConfig, FillConfig, RetrainConfig

if TYPE_CHECKING:
    from sam_jax.engine.finding import Found, LoadedVersion
    from sam_jax.engine.store import Store

_Limit = Annotated[int | None, arg(help="go through so many images at most; None means all")]
_Points = Annotated[int, arg(help="points along each side of the grid over the image")]
_FILL, _AUTO, _ROUND = FillConfig(), AutomaticConfig(), RetrainConfig()
_SOME_FAILED = 1
_NOT_FINITE = 3


@dataclasses.dataclass(frozen=True)
class Fill:
    """Stage 2: propose confident masks in the images that wait for annotators.

    They accept or correct them and add the rest. The present model goes once through each image that is not held out;
    masks that people have made, and deleted, stay as they are. Run it again after images were added or a better model
    was trained, or to go on after it was stopped.

    Example:
        sam-jax engine fill cells
    """

    directory: Directory
    confidence: Annotated[
        float, arg(help="how sure a mask has to be: a share of the way from the model's thresholds to 1")
    ] = _FILL.confidence
    max_overlap: Annotated[
        float, arg(help="masks with a larger IoU with a mask that is there already are not proposed")
    ] = _FILL.max_overlap
    points_per_side: _Points = _FILL.amg.points_per_side or 32
    limit: _Limit = None
    dtype: parsing.Dtype = None

    def run(self) -> int:
        """Fills."""
        from sam_jax.engine.filling import fill
        from sam_jax.engine.store import Store

        _check_limit(self.limit)
        amg = dataclasses.replace(_FILL.amg, points_per_side=self.points_per_side)
        config = FillConfig(amg, self.confidence, self.max_overlap)
        with Store(self.directory) as store:
            return _report(fill(store, _load(store, self.dtype), config, self.limit), "proposed")


@dataclasses.dataclass(frozen=True)
class Auto:
    """Stage 3: accept the masks that the present model finds in images that nobody has labelled, as SA-1B was made.

    Everything mode with 32 x 32 points on the image, 16 x 16 on each of 2 x 2 crops and 8 x 8 on each of 4 x 4, at the
    model's own thresholds. The masks go into the store and, in SA-1B's format, into OUT. Run it again to go on after it
    was stopped.

    Examples:
        sam-jax engine auto cells
        sam-jax engine auto cells --out masks --crop-layers 0     four times as fast; fewer small objects
    """

    directory: Directory
    out: Annotated[
        Path | None, arg(metavar="OUT", help="directory for NAME.json of each image; None is DIR/automatic")
    ] = None
    everything: Annotated[bool, arg(help="images that people have labelled or are labelling, too")] = False
    again: Annotated[
        bool, arg(help="images that an earlier model went through, too: masks of this one take the place of its masks")
    ] = False
    max_overlap: Annotated[float, arg(help="masks with a larger IoU with a mask of a person are left out")] = (
        _AUTO.max_overlap
    )
    points_per_side: _Points = _AUTO.amg.points_per_side or 32
    crop_layers: Annotated[int, arg(help="layers of crops: 2 are 2 x 2 and 4 x 4, 0 is the whole image alone")] = (
        _AUTO.amg.crop_n_layers
    )
    limit: _Limit = None
    dtype: parsing.Dtype = None

    def run(self) -> int:
        """Annotates."""
        from sam_jax.engine.automatic import annotate
        from sam_jax.engine.store import Store

        _check_limit(self.limit)
        amg = dataclasses.replace(_AUTO.amg, points_per_side=self.points_per_side, crop_n_layers=self.crop_layers)
        config = AutomaticConfig(amg, self.max_overlap, self.everything, self.again)
        with Store(self.directory) as store:
            out = self.out or Path(self.directory) / "automatic"
            return _report(annotate(store, _load(store, self.dtype), out, config, self.limit), "accepted")


@dataclasses.dataclass(frozen=True)
class Retrain:
    """Train a new model version on what was accepted, and promote it if it is better on held-out images.

    It begins from the present model. With few images the mask decoder alone learns, on embeddings that are computed
    once; from --whole-model-images on, the whole model. Present and new model are compared on the held-out images: mean
    IoU of a box, of one click, and of the best of a click's three masks. Every version stays in DIR/models. Run the
    same command again to go on after it was stopped.

    Examples:
        sam-jax engine retrain cells
        sam-jax engine retrain cells --minutes 10

    Exit codes: 0 done, whether it was promoted or not; 2 wrong input or nothing to train on; 3 the loss became NaN; 75
    stopped from outside with its state saved: run it again.
    """

    directory: Directory
    steps: Annotated[int | None, arg(help="training steps; None takes --steps-per-image, from 40 to 2000")] = None
    steps_per_image: Annotated[float, arg(help="training steps for each image, without --steps and --minutes")] = (
        _ROUND.steps_per_image
    )
    minutes: Annotated[float | None, arg(help="train for so long instead, compilation included")] = None
    whole_model_images: Annotated[int, arg(help="from so many training images on, the whole model is trained")] = (
        _ROUND.whole_model_images
    )
    learning_rate: Annotated[float, arg(help="of the mask decoder alone")] = _ROUND.learning_rate
    whole_learning_rate: Annotated[float, arg(help="of the whole model")] = _ROUND.whole_learning_rate
    batch_size: Annotated[int, arg(help="images in each step")] = _ROUND.batch_size
    masks_per_image: Annotated[int, arg(help="masks of each image in a step, at most")] = _ROUND.masks_per_image
    margin: Annotated[float, arg(help="by how much the mean of the figures has to rise for a promotion")] = (
        _ROUND.margin
    )
    max_loss: Annotated[float, arg(help="by how much a single figure may fall then")] = _ROUND.max_loss
    held_out_masks: Annotated[int, arg(help="masks that the models are compared on, at most")] = _ROUND.held_out_masks
    automatic: Annotated[bool, arg(help="train on masks of stage 3, too")] = False
    again: Annotated[bool, arg(help="train, even if nothing has changed since the last training")] = False
    seed: Annotated[int, arg(help="of the data's order and of all draws")] = _ROUND.seed

    def run(self) -> int:
        """Trains and compares."""
        config = RetrainConfig(**{name: value for name, value in vars(self).items() if name != "directory"})
        from sam_jax.engine.retraining import retrain
        from sam_jax.engine.store import Store
        from sam_jax.runtime import use_compilation_cache
        from sam_jax.training import interruption, loop

        use_compilation_cache()
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname).1s %(name)s: %(message)s")
        logging.getLogger("absl").setLevel(logging.WARNING)
        with Store(self.directory) as store:
            try:
                outcome = retrain(store, config)
            except interruption.Interrupted as stop:
                parsing.complain("sam-jax engine retrain", stop)
                return interruption.EXIT_CODE
            except loop.NonFiniteLossError as error:
                parsing.complain("sam-jax engine retrain", error)
                return _NOT_FINITE
        print(outcome.comparison.table())
        print(f"model {outcome.version.name} is {outcome.version.state}: {outcome.reason}")
        return 0


@dataclasses.dataclass(frozen=True)
class RollBack:
    """Make an earlier model version the present one again; no version is deleted.

    Examples:
        sam-jax engine roll-back cells           to the version that the present one was trained from
        sam-jax engine roll-back cells --to 0    to the model that the store began with
    """

    directory: Directory
    to: Annotated[str | None, arg(metavar="N", help="number or name of the version; None is the parent")] = None

    def run(self) -> int:
        """Rolls back."""
        from sam_jax.engine.retraining import roll_back
        from sam_jax.engine.store import Store

        with Store(self.directory) as store:
            present, before = roll_back(store, self.to)
        print(f"model {present.name} is in use again, in the place of {before.name}")
        return 0


COMMANDS = {"fill": Fill, "auto": Auto, "retrain": Retrain, "roll-back": RollBack}


def _check_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise ValueError(f"--limit {limit} must be 1 or more")


def _load(store: Store, dtype: str | None) -> LoadedVersion:
    """The present model, with its weights."""
    from sam_jax.checkpoint import load_model
    from sam_jax.engine.finding import LoadedVersion
    from sam_jax.runtime import use_compilation_cache

    use_compilation_cache()
    version = store.present()
    return LoadedVersion(version, *load_model(store.model_path(version), dtype))


def _report(found: Found, verb: str) -> int:
    """Prints what a run came to; the exit code says whether images failed."""
    text = f"{verb} {found.masks} masks in {found.images} images"
    print(text + (f"; {found.left} were taken up by annotators meanwhile" if found.left else ""))
    for failure in found.failures:
        print(f"failed: {failure}")
    return _SOME_FAILED if found.failures else 0
