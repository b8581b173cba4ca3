"""The host loop around `train_step`: data in, metrics and checkpoints out, resumable after any interruption."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
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
from sam_jax.config import RecordDataConfig, StageConfig, TrainConfig
from sam_jax.config.checks import NOT_NEGATIVE, check_fields, require
from sam_jax.data.record_stream import RecordStream
from sam_jax.models.sam import Sam
from sam_jax.training.batches import Batch, HeldOutBatches, fingerprint, make_batches, open_source
from sam_jax.training.budget import open_budget
from sam_jax.training.embedding_cache import EmbeddingCache, check_cache_config, encoder_settings
from sam_jax.training.interruption import Interrupted, Interruption
from sam_jax.training.metric_writer import HostLog, MetricWriter, to_floats
from sam_jax.training.overlays import draw, predict_clicks
from sam_jax.training.placement import abstract_state, initial_state
from sam_jax.training.programs import StepPrograms
from sam_jax.training.same_run import check_same_run
from sam_jax.training.step import TrainState, evaluation_step, model_variables
from sam_jax.training.text_prompts import with_text_prompts
from sam_jax.training.timing import Profile, Throughput

log = logging.getLogger(__name__)


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite."""


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How to run an experiment, as opposed to what it is.

    Attributes:
      eval_only: evaluate the newest checkpoint (or `init_from`) on the held-out images and stop.
      profile_steps: (first, last) step of a profile to record into `workdir/profile`; a resumed run records those that
        are still to come.
    """

    eval_only: bool = False
    profile_steps: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_fields(self, profile_steps=NOT_NEGATIVE)
        if self.profile_steps is not None:
            first, last = self.profile_steps
            require(first < last, f"profile_steps must be a first step and a later last one, not {first} {last}")


def train(config: TrainConfig, options: RunOptions = RunOptions()) -> epath.Path:
    """Trains through all stages and returns the model directory that it wrote (with `eval_only`, the workdir).

    An interrupted run resumes from its last checkpoint in `workdir`. Order of precedence for the starting point:
      1. the newest complete checkpoint in `workdir/state`;
      2. `init_from`;
      3. fresh weights from `seed`.

    Raises:
      Interrupted: stopped by SIGTERM or Ctrl-C; the state is saved.
      NonFiniteLossError: the loss became NaN or infinite; the last good checkpoint stays.
      ValueError: config and data do not fit, or `workdir` holds another run.
    """
    check_cache_config(config)
    if config.minutes is not None and jax.process_count() > 1:
        raise ValueError(f"minutes {config.minutes} is for one host: {jax.process_count()} would not stop as one")
    if config.minutes is None and options.profile_steps is not None and options.profile_steps[1] > config.num_steps:
        first, last = options.profile_steps
        raise ValueError(f"profile_steps {first} {last} end after the run's last step, {config.num_steps}")
    workdir = epath.Path(config.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    check_same_run(config, workdir, partial(fingerprint, config.data))
    if (workdir / "model").exists() and not options.eval_only:
        log.info("%s is finished: its model is in %s", workdir, workdir / "model")
        return workdir / "model"
    with Interruption() as interruption, HostLog(workdir), StateStore(workdir / "state", config.keep) as store:
        return _Run(config, options, workdir, store, interruption).go()


class _Run:
    """One process's share of a run. Everything that training changes is in `state`."""

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
        self.source = with_text_prompts(config, open_source(config.data), interruption.requested)
        self.mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
        for stage in config.stages:
            sharding.check_batch(self.mesh, stage.batch_size, config.accumulate)
        self.model = Sam(config.sam)
        self.accelerated = self.mesh.devices.flat[0].platform != "cpu"
        self.budget = open_budget(config)
        self.optimizer = self.budget.optimizer()
        self.key = jax.random.key(config.seed)
        self.evaluation_step = jax.jit(partial(evaluation_step, self.model, config))
        self.predict_clicks = jax.jit(
            partial(predict_clicks, self.model, config), out_shardings=sharding.replicated(self.mesh)
        )
        self.pending: list[tuple[int, Any, np.ndarray]] = []  # step, metrics on the device, image ids
        self.profile = Profile(workdir, options.profile_steps)

    def go(self) -> epath.Path:
        newest = self.store.newest_step()
        if newest is None:
            self.state = initial_state(self.config, self.model, self.optimizer, self.mesh)
        else:
            shapes = abstract_state(self.config, self.model, self.optimizer, self.mesh)
            self.state = self.store.restore(newest, shapes)
            self.budget.restore(self.state)
        self.step = newest or 0
        log.info("step %d %s on %s", self.step, self.budget, dict(self.mesh.shape))
        log.info("host %d of %d: %s", jax.process_index(), jax.process_count(), jax.local_devices())
        with MetricWriter(self.workdir, self.step) as self.writer, self.profile:
            if self.options.eval_only:
                self._open_data(self.config.stages[-1])
                self._evaluate()
                return self.workdir
            share = self.budget.share() is not None
            placed = self.config, self.model, self.optimizer, self.mesh, self.state, self.key, share
            with StepPrograms(*placed) as self.programs:
                self._run_stages()
        return self._write_models()

    def _run_stages(self) -> None:
        first = 0
        stages = self.config.stages
        for index, (stage, following) in enumerate(zip(stages, (*stages[1:], None), strict=True)):
            end = first + stage.num_steps
            if self.budget.is_left(self.step, end) or (self.step == end and self._lacks_evaluation()):
                self._run_stage(stage, index, first, following)
            first = end
        log.info("trained for %d steps, %s", self.step, self.budget)

    def _run_stage(self, stage: StageConfig, index: int, first: int, following: StageConfig | None) -> None:
        """Runs the stage's remaining steps; `first` is the number of steps before the stage."""
        shard = jax.process_index(), jax.process_count()
        self._open_data(stage)
        if self._lacks_evaluation():  # the run was stopped between a checkpoint and its evaluation
            self.store.record_score(self.step, self._evaluate())
        number = self.budget.batch_number(self.step, first)
        given = number, shard, self.embeddings, self.source, self.accelerated
        batches = make_batches(self.config.data, stage, self.config.seed + index, *given)
        with contextlib.ExitStack() as stack:
            stack.callback(getattr(batches, "close", lambda: None))  # of workers; not every stream has one
            self._take_steps(stage, first + stage.num_steps, batches, number, following)

    def _take_steps(
        self, stage: StageConfig, end: int, batches: Iterator[Batch], number: int, following: StageConfig | None
    ) -> None:
        step_fn = self.programs.of(stage)
        clock, began = Throughput(self.step), self.step
        for _ in self._progress(stage, end, number, following):
            with clock.waiting():
                batch = next(batches)
            self.profile.before_step(self.step)
            share = self.budget.share()
            told = () if share is None else (share,)
            self.state, metrics = step_fn(self.state, self._placed(batch), self.key, *told)
            self.step += 1
            self.profile.after_step(self.step, self.state)
            self.pending.append((self.step, metrics, batch["image_id"]))
            if self.step == began + 1:
                jax.block_until_ready(self.state)
                self.budget.start()
                self.programs.prepare(following)
            if self._due(self.config.log_every) or not self.budget.is_left(self.step, end):
                self._log(clock, stage)
            self._save_and_show()
            if self.interruption.requested(self.step):
                self._stop()
        self._newest_metrics()

    def _progress(self, stage: StageConfig, end: int, number: int, following: StageConfig | None) -> Iterator[None]:
        """Once for each step of a stage, with a bar. By the clock it goes on while the next step is being compiled."""
        by_steps = self.config.minutes is None

        def left() -> Iterator[None]:
            while self.budget.is_left(self.step, end) or (
                not by_steps
                and following is not None
                and not self.programs.is_ready(following)
                and self.budget.is_left(self.step, self.config.num_steps)
            ):
                yield None

        self.bar = tqdm(
            left(),
            initial=number if by_steps else 0,
            total=stage.num_steps if by_steps else None,
            desc=f"{stage.image_size} px",
            unit="step",
            disable=jax.process_index() != 0,
        )
        return iter(self.bar)

    def _due(self, every: int) -> bool:
        return bool(every) and self.step % every == 0

    def _log(self, clock: Throughput, stage: StageConfig) -> None:
        row = self._newest_metrics()
        row |= {"learning_rate": float(f"{self.budget.learning_rate(self.step - 1):.5g}")}
        row |= clock.lap(self.step, stage.batch_size)
        self.writer.write(self.step, row)
        self.bar.set_postfix(loss=row["loss"], iou=row["iou_1"], images_per_s=row["images_per_s"])

    def _newest_metrics(self) -> dict[str, float]:
        """Metrics of the last step, after checking the losses of all steps since the last call."""
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
        evaluate = self._due(config.eval_every)
        if evaluate or self._due(config.checkpoint_every):
            self._newest_metrics()  # never keep a broken state
            self.store.save(self.step, self.state)
        if evaluate:
            self.store.record_score(self.step, self._evaluate())
        if self._due(config.overlay_every):
            batch = next(iter(self.shown))
            clicks = self.predict_clicks(self.state, self._placed(batch), self.key)
            # Host 0 holds the first images of every batch.
            self.writer.image(self.step, draw(batch, *map(np.asarray, clicks)))
        if mark := self.budget.passed_mark():
            self._newest_metrics()
            self._write_model(f"snapshot_{100 * mark:.0f}", self.state)

    def _lacks_evaluation(self) -> bool:
        return self.step > 0 and self._due(self.config.eval_every) and not self.store.has_score(self.step)

    def _open_data(self, stage: StageConfig) -> None:
        """Opens a stage's embedding cache and held-out data, before its first step."""
        config = self.config
        shard = jax.process_index(), jax.process_count()
        cache = self._open_cache(stage)
        self.embeddings = None if cache is None else str(cache.path)
        held_out = partial(HeldOutBatches, config.data, stage, config.seed, config.eval_images, shard)
        if config.eval_every or self.options.eval_only:
            self.held_out = held_out(self.embeddings, self.source)
        if config.overlay_every and not self.options.eval_only:
            self.shown = held_out(None, self.source)
        if cache is not None:
            self._fill(cache, stage)

    def _open_cache(self, stage: StageConfig) -> EmbeddingCache | None:
        """The cache of a stage's embeddings, or None if the config names none."""
        directory = self.config.finetune.embedding_cache
        if directory is None:
            return None
        assert self.config.init_from is not None
        self.encoder = load_model(self.config.init_from, dtype=self.config.sam.dtype)
        model, variables = self.encoder
        settings = encoder_settings(model.config) | {"images": self._images(stage, False).image_settings()}
        return EmbeddingCache(directory, stage.image_size, variables["params"]["image_encoder"], settings)

    def _fill(self, cache: EmbeddingCache, stage: StageConfig) -> None:
        """Computes missing embeddings; can be interrupted as training can."""
        wanted = [] if self.options.eval_only else [False]
        if self.config.eval_every or self.options.eval_only:
            wanted.append(True)
        for held_out in wanted:
            images = self._images(stage, held_out)
            if not cache.fill(*self.encoder, images, min(8, stage.batch_size), self.interruption.requested):
                self._stop()
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("embedding cache")
        del self.encoder

    def _images(self, stage: StageConfig, held_out: bool) -> RecordStream:
        assert isinstance(self.config.data, RecordDataConfig)
        assert self.source is not None
        return RecordStream(self.source, self.config.data, stage, self.config.seed, held_out)

    def _placed(self, batch: dict[str, np.ndarray]) -> Any:
        """A host's batch on the devices, without image ids."""
        return sharding.to_global(self.mesh, {name: x for name, x in batch.items() if name != "image_id"})

    def _evaluate(self) -> float:
        """Writes metrics averaged over the held-out masks; returns the mean IoU after the last interaction."""
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

    def _stop(self) -> None:
        self._newest_metrics()
        self.store.save(self.step, self.state)
        raise Interrupted(f"stopped at step {self.step} {self.budget}; run the same command to go on")

    def _write_models(self) -> epath.Path:
        """Writes `model/` from the last state and, if an earlier one had a better evaluation, `best/` from that."""
        self.store.save(self.step, self.state)
        best = self.store.best_step()
        if best is not None and best != self.step:
            self._write_model("best", self.store.restore(best, self.state))
        return self._write_model("model", self.state)

    def _write_model(self, name: str, state: TrainState) -> epath.Path:
        variables = jax.jit(partial(model_variables, self.config), out_shardings=sharding.replicated(self.mesh))(state)
        save_model(self.workdir / name, self.config.sam, variables, self.config.storage_dtype, overwrite=True)
        return self.workdir / name
