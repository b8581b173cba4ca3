"""A round of training: from the present model to a candidate, which is promoted if it is better on held-out images.

DIR/models/0001        a model version, whatever became of it
DIR/models/.0002       the round that is going on: round.json, sets/, run/ (a workdir of training), verdict.json
DIR/embeddings/KEY     image embeddings of an encoder, kept from round to round

Every step leaves something under its final name only when it is complete, and is not done again where that is there. So
a round that was killed goes on with the same command, unless the present model or the settings have changed: then it
starts over. The store learns of a version when its directory is complete.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from sam_jax.checkpoint import load_config, load_model
from sam_jax.config import (
    FinetuneConfig,
    InteractionConfig,
    LossConfig,
    OptimConfig,
    RecordDataConfig,
    SamConfig,
    StageConfig,
    TrainConfig,
)
from sam_jax.config.engine_models import RetrainConfig
from sam_jax.engine.database import MODELS
from sam_jax.engine.judging import Comparison, compare_models, from_json
from sam_jax.engine.rows import CANDIDATE, ModelVersion
from sam_jax.engine.schema import StoreError
from sam_jax.engine.store import BUNDLED, Store
from sam_jax.engine.training_sets import HELD_OUT, TRAIN, Counts, check_counts, count_masks, write_sets
from sam_jax.files import write_atomically
from sam_jax.training.embedding_cache import fingerprint
from sam_jax.training.loop import train

log = logging.getLogger(__name__)

EMBEDDINGS = "embeddings"
_LOCK = ".retrain.lock"
_ROUND, _SETS, _RUN, _VERDICT = "round.json", "sets", "run", "verdict.json"
DECODER_ALONE = ("image_encoder/.*", "prompt_encoder/.*")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a round ended: the version it made, what it was compared by, and why it is promoted or not."""

    version: ModelVersion
    comparison: Comparison
    reason: str


def retrain(store: Store, config: RetrainConfig | None = None) -> Outcome:
    """Trains a candidate, compares it with the present model, and promotes it if it is better.

    Raises:
      StoreError: there is too little to train on or to be judged by, nothing new, or another process trains.
      Interrupted: stopped by SIGTERM or Ctrl-C; call it again to go on.
      NonFiniteLossError: the loss became NaN or infinite.
    """
    config = config or RetrainConfig()
    with _alone(store.directory / MODELS):
        begun = _Round.find(store, config)
        return (begun or _Round.begin(store, config)).go()


class _Round:
    """A round that has begun: its directory, and what `round.json` says about it."""

    def __init__(self, store: Store, config: RetrainConfig, directory: Path, about: dict[str, Any]) -> None:
        self.store, self.config, self.directory, self.about = store, config, directory, about
        self.name = directory.name.removeprefix(".")
        self.final = directory.with_name(self.name)
        self.present = store.model_version(about["parent"])
        self.counts = Counts(**about["counts"])

    @classmethod
    def find(cls, store: Store, config: RetrainConfig) -> _Round | None:
        """The round that an earlier call has begun, if its end would be the same; others are thrown away."""
        for directory in sorted((store.directory / MODELS).glob(".[0-9][0-9][0-9][0-9]")):
            file = directory / _ROUND
            if file.exists():
                about = json.loads(file.read_text())
                same = about["config"] == dataclasses.asdict(config) and about["parent"] == store.present().id
                begun = cls(store, RetrainConfig(**about["config"]), directory, about)
                if same or begun.final.exists():
                    log.info("going on with the round that was begun in %s", directory)
                    return begun
                log.info("%s was begun with another model or other settings: starting over", directory)
            shutil.rmtree(directory)
        return None

    @classmethod
    def begin(cls, store: Store, config: RetrainConfig) -> _Round:
        """A new round, once it is clear that there is something to train on."""
        counts = count_masks(store, config.automatic)
        check_counts(counts, store.config.hold_out)
        present = store.present()
        recipe(store.model_path(present), counts.images, config, Path("data"), Path("run"), None)  # can it be trained?
        tried = [one for one in store.model_versions() if present.id in (one.id, one.parent)]
        same = [one.name for one in tried if one.metrics.get("counts", {}).get("digest") == counts.digest]
        if same and not config.again:
            raise StoreError(
                f"nothing to train on has changed since version {same[-1]} was trained from it; accept more masks, or "
                "train once more with --again"
            )
        directory = store.directory / MODELS / f".{_free_name(store)}"
        directory.mkdir()
        about = {"parent": present.id, "config": dataclasses.asdict(config), "counts": dataclasses.asdict(counts)}
        write_atomically(directory / _ROUND, json.dumps(about, indent=2).encode())
        return cls(store, config, directory, about)

    def go(self) -> Outcome:
        """Does what is left of the round."""
        if not self.final.exists():
            sets, run = self.directory / _SETS, self.directory / _RUN
            if not sets.exists():
                write_sets(self.store, sets, self.config.automatic)
            began = time.monotonic()
            path = self.store.model_path(self.present)
            model = Path(train(recipe(path, self.counts.images, self.config, sets / TRAIN, run, self._cache(path))))
            spent = time.monotonic() - began
            comparison = compare_models(path, model, sets / HELD_OUT, self.config)
            verdict = {"comparison": dataclasses.asdict(comparison), "counts": self.about["counts"], "seconds": spent}
            write_atomically(self.directory / _VERDICT, json.dumps(verdict, indent=2).encode())
            os.rename(model, self.final)
        return self._decide()

    def _decide(self) -> Outcome:
        """Tells the store of the version, and promotes or rejects it; each only where that has not been done."""
        verdict = json.loads((self.directory / _VERDICT).read_text())
        comparison = from_json(verdict["comparison"])
        better, reason = comparison.is_better(self.config), comparison.reason(self.config)
        if self.store.present().name not in (self.present.name, self.name):
            better, reason = False, f"{reason}; but {self.present.name} is no longer the present model"
        known = {one.name: one for one in self.store.model_versions()}
        version = known.get(self.name)
        if version is None:
            path = f"{MODELS}/{self.name}"
            version = self.store.add_candidate(self.name, path, self.present.id, verdict | {"reason": reason})
        if version.state == CANDIDATE:
            version = self.store.promote(version.id) if better else self.store.reject(version.id)
        shutil.rmtree(self.directory)
        return Outcome(version, comparison, reason)

    def _cache(self, path: Path | None) -> Path | None:
        """Where the embeddings of the present model's encoder are kept; None if it is trained as well."""
        if self.counts.images >= self.config.whole_model_images:
            return None
        _, variables = load_model(path)
        return self.store.directory / EMBEDDINGS / fingerprint(variables["params"]["image_encoder"])


def recipe(
    present: Path | None, images: int, config: RetrainConfig, data: Path, workdir: Path, cache: Path | None
) -> TrainConfig:
    """The experiment of a round.

    Args:
      present: the model to begin from; None is the bundled one. images: to train on.
      data: the set to train on. cache: of embeddings; None trains the whole model.
    """
    sam: SamConfig = load_config(present)
    steps, alone = config.num_steps(images), cache is not None
    devices = jax.device_count()
    batch_size = -(-config.batch_size // devices) * devices  # each has as many images
    rate = config.learning_rate if alone else config.whole_learning_rate
    return TrainConfig(
        sam=sam,
        stages=(StageConfig(sam.image_encoder.image_size, batch_size, config.masks_per_image, num_steps=steps),),
        data=RecordDataConfig(path=str(data), hold_out=0.0),
        # Boxes of people are nearly tight; with the noise of the paper a small model loses its trust in them.
        interaction=InteractionConfig(num_points=1, num_mask_only_steps=0, box_noise=0.04, box_noise_max=8.0),
        loss=LossConfig(focal_alpha=0.6, supervise_all_iou=True, supervise_all_outputs=True),
        optim=OptimConfig(
            learning_rate=rate, weight_decay=0.01, warmup_steps=max(1, steps // 10), cosine=True, clip_norm=1.0
        ),
        finetune=FinetuneConfig(DECODER_ALONE, embedding_cache=str(cache)) if alone else FinetuneConfig(),
        init_from=BUNDLED if present is None else str(present),
        workdir=str(workdir),
        minutes=config.minutes,
        seed=config.seed,
        checkpoint_every=50,
    )


def roll_back(store: Store, to: str | None = None) -> tuple[ModelVersion, ModelVersion]:
    """Makes an earlier version the present one again.

    Args:
      to: its name, or its number: 0 is the first. None is the one that the present version was trained from.

    Returns:
      The present version, and the one before.

    Raises:
      StoreError: there is no such version, or its directory is gone.
    """
    before, number = store.present(), None
    if to is not None:
        names = {version.name: version.id for version in store.model_versions()}
        first = store.model_versions()[0]
        wanted = first.name if to.isdecimal() and int(to) == 0 else to.zfill(4) if to.isdecimal() else to
        number = names.get(to, names.get(wanted))
        if number is None:
            raise StoreError(f"there is no model version {to!r}; there are {', '.join(names)}")
    elif before.parent is not None:
        number = before.parent
    if number is not None:
        path = store.model_path(store.model_version(number))
        if path is not None and not path.is_dir():
            raise StoreError(f"the directory of that version, {path}, is gone; roll back to another")
    return store.roll_back(number), before


def _free_name(store: Store) -> str:
    """The next number that no version and no directory has."""
    names = {version.name for version in store.model_versions()}
    names |= {path.name for path in (store.directory / MODELS).iterdir()}
    return next(name for name in map("{:04d}".format, range(1, 10_000)) if name not in names)


@contextlib.contextmanager
def _alone(models: Path) -> Iterator[None]:
    """Lets one process at a time train. The lock goes with the process, however that ends."""
    with (models / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"another process is training in {models}; wait until it has finished") from None
        yield
