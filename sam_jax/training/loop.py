"""The host loop around `train_step`: data in, metrics and checkpoints out, and a way to go on after any stop."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from tqdm import tqdm

from sam_jax import sharding
from sam_jax.checkpoint import StateStore, load_model, save_model
from sam_jax.config import RecordDataConfig, StageConfig, TrainConfig, to_dict
from sam_jax.config.checks import NOT_NEGATIVE, check_fields, require
from sam_jax.data.pipeline import HeldOutBatches, make_batches, open_stream
from sam_jax.files import write_atomically
from sam_jax.models.sam import Sam
from sam_jax.training.embedding_cache import EmbeddingCache
from sam_jax.training.finetune import encoder_is_frozen
from sam_jax.training.interruption import Interrupted, Interruption
from sam_jax.training.metric_writer import HostLog, MetricWriter, to_floats
from sam_jax.training.optimizer import learning_rate_schedule, make_optimizer
from sam_jax.training.pictures import draw, predict_clicks
from sam_jax.training.placement import abstract_state, initial_state
from sam_jax.training.step import TrainState, evaluation_step, model_variables, train_step

log = logging.getLogger(__name__)

# What may differ between a run and its continuation.
_FREE_TO_CHANGE = {"workdir", "mesh", "accumulate", "keep"} | {
    f"{name}_every" for name in ("log", "eval", "picture", "checkpoint")
}


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite."""


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How to run an experiment, as opposed to what it is.

    Attributes:
      eval_only: evaluate the newest checkpoint (or `init_from`) on the held-out images and stop.
      profile_steps: (first, last) step to record a profile of, into `workdir/profile`.
    """

    eval_only: bool = False
    profile_steps: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_fields(self, profile_steps=NOT_NEGATIVE)
        if self.profile_steps is not None:
            first, last = self.profile_steps
            require(first < last, f"profile_steps must be a first step and a later last one, not {first} {last}")


def train(config: TrainConfig, options: RunOptions = RunOptions()) -> epath.Path:
    """Trains through all stages and returns the model directory that it wrote.

    A run that was stopped goes on from its last checkpoint in `workdir`. Order of precedence for the starting point:
      1. the newest complete checkpoint in `workdir/state`;
      2. `init_from`;
      3. fresh weights from `seed`.

    Raises:
      Interrupted: SIGTERM or Ctrl-C came; the state is saved.
      NonFiniteLossError: the loss became NaN or infinite; the last good checkpoint stays.
      ValueError: the config, the data or the run that is there already do not allow this.
    """
    workdir = epath.Path(config.workdir)
    if (workdir / "model").exists() and not options.eval_only:
        log.info("%s is finished: its model is in %s", workdir, workdir / "model")
        return workdir / "model"
    workdir.mkdir(parents=True, exist_ok=True)
    _check_same_run(config, workdir)
    with Interruption() as interruption, HostLog(workdir), StateStore(workdir / "state", config.keep) as store:
        return _Run(config, options, workdir, store, interruption).go()


class _Run:
    """One process's share of a run. Everything that changes lies in `state`."""

    def __init__(
        self,
        config: TrainConfig,
        options: RunOptions,
        workdir: epath.Path,
        store: StateStore,
        interruption: Interruption,
    ) -> None:
        self.config, self.options, self.workdir = config, options, workdir
        self.store, self.interruption = store, interruption
        self.mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
        for stage in config.stages:
            sharding.check_batch(self.mesh, stage.batch_size, config.accumulate)
        self.model = Sam(config.sam)
        self.optimizer = make_optimizer(config.optim, config.sam, config.num_steps)
        self.schedule = learning_rate_schedule(config.optim, config.num_steps)
        self.key = jax.random.key(config.seed)
        self.evaluation_step = jax.jit(partial(evaluation_step, self.model, config))
        self.predict_clicks = jax.jit(
            partial(predict_clicks, self.model, config), out_shardings=sharding.replicated(self.mesh)
        )
        self.pending: list[tuple[int, Any, np.ndarray]] = []  # step, metrics on the device, image ids

    def go(self) -> epath.Path:
        newest = self.store.newest_step()
        if newest is None:
            self.state = initial_state(self.config, self.model, self.optimizer, self.mesh)
        else:
            shapes = abstract_state(self.config, self.model, self.optimizer, self.mesh)
            self.state = self.store.restore(newest, shapes)
        self.step = newest or 0
        log.info("step %d of %d on %s", self.step, self.config.num_steps, dict(self.mesh.shape))
        log.info("host %d of %d: %s", jax.process_index(), jax.process_count(), jax.local_devices())
        with MetricWriter(self.workdir, self.step) as self.writer:
            if self.options.eval_only:
                self._open_held_out(self.config.stages[-1])
                self._evaluate()
                return self.workdir
            first = 0
            for index, stage in enumerate(self.config.stages):
                if self.step < first + stage.num_steps:
                    self._run_stage(stage, index, first)
                first += stage.num_steps
        return self._write_models()

    def _run_stage(self, stage: StageConfig, index: int, first: int) -> None:
        """Steps from where the run stands to the stage's end; `first` is the stage's first step."""
        config = for_stage(self.config, stage)
        # The state comes out placed as it went in: otherwise the second step would compile again.
        placed = jax.tree.map(lambda x: x.sharding, self.state), sharding.replicated(self.mesh)
        step_fn = jax.jit(
            partial(train_step, self.model, config, self.optimizer), donate_argnums=0, out_shardings=placed
        )
        end = first + stage.num_steps
        shard = jax.process_index(), jax.process_count()
        self._open_held_out(stage)
        batches = make_batches(config.data, stage, config.seed + index, self.step - first, shard, self.embeddings)
        clock = _Clock(self.step)
        for _ in self._progress(stage, first, end):
            with clock.waiting():
                batch = next(batches)
            self._profile()
            self.state, metrics = step_fn(self.state, self._placed(batch), self.key)
            self.step += 1
            self.pending.append((self.step, metrics, batch["image_id"]))
            if self._due(config.log_every) or self.step == end:
                self._log(clock, stage)
            self._save_and_show()
            if self.interruption.requested(self.step):
                self._stop()

    def _progress(self, stage: StageConfig, first: int, end: int) -> Iterator[int]:
        self.bar = tqdm(
            range(self.step, end),
            initial=self.step - first,
            total=stage.num_steps,
            desc=f"{stage.image_size} px",
            unit="step",
            disable=jax.process_index() != 0,
        )
        return iter(self.bar)

    def _due(self, every: int) -> bool:
        return bool(every) and self.step % every == 0

    def _log(self, clock: _Clock, stage: StageConfig) -> None:
        row = self._newest_metrics()
        row |= {"learning_rate": float(f"{float(self.schedule(self.step - 1)):.5g}")}
        row |= clock.lap(self.step, stage.batch_size)
        self.writer.write(self.step, row)
        self.bar.set_postfix(loss=row["loss"], iou=row["iou_1"], images_per_s=row["images_per_s"])

    def _newest_metrics(self) -> dict[str, float]:
        """Metrics of the last step, after a look at the losses of all steps since the last call."""
        row: dict[str, float] = {}
        for step, metrics, ids in self.pending:
            row = to_floats(metrics)
            if not math.isfinite(row["loss"]) or not math.isfinite(row["grad_norm"]):
                message = f"loss {row['loss']}, gradient norm {row['grad_norm']} at step {step}"
                log.error("%s; image ids of this host's batch: %s", message, ids.tolist())
                raise NonFiniteLossError(
                    f"{message}; the last good checkpoint is step {self.store.newest_step()} in {self.workdir}/state, "
                    f"the batch's image ids are in {self.workdir}/logs; try a lower learning rate or optim.clip_norm 1"
                )
        self.pending = []
        return row

    def _save_and_show(self) -> None:
        config = self.config
        miou = self._evaluate() if self._due(config.eval_every) else None
        if miou is not None or self._due(config.checkpoint_every):
            self._newest_metrics()  # never keep a broken state
            self.store.save(self.step, self.state, miou)
        if self._due(config.picture_every) and self.embeddings is None:
            batch = next(iter(self.held_out))
            clicks = self.predict_clicks(self.state, self._placed(batch), self.key)
            # Host 0 holds the first images of every batch.
            self.writer.picture(self.step, draw(batch, *map(np.asarray, clicks)))

    def _open_held_out(self, stage: StageConfig) -> None:
        """Held-out data of a stage; nothing is read before it is evaluated on."""
        config = self.config
        shard = jax.process_index(), jax.process_count()
        self.embeddings = _fill_embedding_cache(config, stage)
        self.held_out = HeldOutBatches(config.data, stage, config.seed, config.eval_images, shard, self.embeddings)

    def _placed(self, batch: dict[str, np.ndarray]) -> Any:
        """A host's batch on the devices; image ids stay behind."""
        return sharding.to_global(self.mesh, {name: x for name, x in batch.items() if name != "image_id"})

    def _evaluate(self) -> float:
        """Writes mean metrics over the held-out masks; returns the mean IoU after the last interaction."""
        sums: dict[str, float] = {}
        for batch in self.held_out:
            metrics = jax.device_get(self.evaluation_step(self.state, self._placed(batch), self.key))
            sums = {name: sums.get(name, 0.0) + float(value) for name, value in metrics.items()}
        count = max(1.0, sums.pop("count"))
        row = {name: float(f"{value / count:.5g}") for name, value in sums.items()}
        self.writer.write(self.step, row, group="eval")
        interactions = [row[f"iou_{i + 1}"] for i in range(self.config.interaction.num_steps)]
        log.info("step %d: held-out mIoU by interaction %s (%d masks)", self.step, interactions, count)
        return interactions[-1]

    def _profile(self) -> None:
        if self.options.profile_steps is not None:
            first, last = self.options.profile_steps
            if self.step == first:
                jax.profiler.start_trace(str(self.workdir / "profile"))
            elif self.step == last:
                jax.block_until_ready(self.state)
                jax.profiler.stop_trace()
                log.info("profile of steps %d to %d is in %s", first, last, self.workdir / "profile")

    def _stop(self) -> None:
        self._newest_metrics()
        self.store.save(self.step, self.state)
        raise Interrupted(f"stopped at step {self.step} of {self.config.num_steps}; run the same command to go on")

    def _write_models(self) -> epath.Path:
        """`model/` from the last state and, where evaluation has found a better one, `best/` from that."""
        self.store.save(self.step, self.state)
        best = self.store.best_step()
        if best is not None and best != self.step:
            self._write_model("best", self.store.restore(best, self.state))
        return self._write_model("model", self.state)

    def _write_model(self, name: str, state: TrainState) -> epath.Path:
        variables = jax.jit(partial(model_variables, self.config), out_shardings=sharding.replicated(self.mesh))(state)
        save_model(self.workdir / name, self.config.sam, variables, self.config.storage_dtype, overwrite=True)
        return self.workdir / name


class _Clock:
    """Images per second, and the share of time that the devices waited for data."""

    def __init__(self, step: int) -> None:
        self._step, self._started, self._waited = step, time.perf_counter(), 0.0

    def waiting(self) -> _Clock:
        return self

    def __enter__(self) -> None:
        self._entered = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._waited += time.perf_counter() - self._entered

    def lap(self, step: int, batch_size: int) -> dict[str, float]:
        elapsed = time.perf_counter() - self._started
        row = {
            "images_per_s": round((step - self._step) * batch_size / elapsed, 2),
            "data_wait": round(self._waited / elapsed, 3),
        }
        self._step, self._started, self._waited = step, time.perf_counter(), 0.0
        return row


def _fill_embedding_cache(config: TrainConfig, stage: StageConfig) -> str | None:
    """Computes the embeddings that are missing, where the config asks for a cache, and returns its directory."""
    directory = config.finetune.embedding_cache
    if directory is None:
        return None
    data = config.data
    if not encoder_is_frozen(config.finetune) or not isinstance(data, RecordDataConfig) or data.jitter is not None:
        raise ValueError(
            "finetune.embedding_cache needs an encoder that stays as it is: 'image_encoder/.*' in finetune.frozen, "
            "lora_rank 0, and photographs on disk without data.jitter"
        )
    if config.init_from is None:
        raise ValueError("finetune.embedding_cache needs init_from: embeddings of a fresh encoder are of no use")
    model, variables = load_model(config.init_from, dtype=config.sam.dtype)
    cache = EmbeddingCache(directory, stage.image_size, variables["params"]["image_encoder"])
    for held_out in (False, True):
        if held_out and not config.eval_every:
            continue
        stream = open_stream(data, stage, config.seed, held_out)
        cache.fill(model, variables, stream.picture, stream.image_ids, min(8, stage.batch_size))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("embedding cache")
    return str(cache.path)


def for_stage(config: TrainConfig, stage: StageConfig) -> TrainConfig:
    """The config as the steps of `stage` see it."""
    if stage.num_points is None:
        return config
    interaction = dataclasses.replace(config.interaction, num_points=stage.num_points)
    return dataclasses.replace(config, interaction=interaction)


def _check_same_run(config: TrainConfig, workdir: epath.Path) -> None:
    """Writes `config.json`, or compares with the one that is there. Raises ValueError that shows the difference."""
    file = workdir / "config.json"
    mine = json.loads(json.dumps(to_dict(config)))
    if not file.exists():
        if jax.process_index() == 0:
            write_atomically(file, (json.dumps(mine, indent=2) + "\n").encode())
        return
    theirs = json.loads(file.read_text())
    differences = [
        f"{name}: {old!r} -> {new!r}"
        for name, old, new in _differences(theirs, mine)
        if name.split(".")[0] not in _FREE_TO_CHANGE
    ]
    if differences:
        raise ValueError(
            f"{workdir} holds a run with another config ({'; '.join(differences)}); choose another workdir, or restore "
            "the old values to go on"
        )


def _differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif old != new:
        yield name, old, new
