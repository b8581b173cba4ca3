"""The host loop around `train_step`: data in, metrics and checkpoints out."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from functools import partial
from typing import Any

import jax
from etils import epath
from tqdm import tqdm

from sam_jax.checkpoint import StateStore, load_model, save_model
from sam_jax.config import SamConfig, StageConfig, TrainConfig
from sam_jax.data.pipeline import make_batches
from sam_jax.models.sam import Sam, init_variables
from sam_jax.training.optimizer import make_optimizer
from sam_jax.training.step import TrainState, create_state, train_step

log = logging.getLogger(__name__)


def train(config: TrainConfig) -> epath.Path:
    """Trains through all stages and returns the model directory that it wrote.

    A run that was stopped goes on from its last checkpoint in `workdir`. Order of precedence for the starting point:
      1. the newest complete checkpoint in `workdir/state`;
      2. `init_from`;
      3. fresh weights from `seed`.
    """
    workdir = epath.Path(config.workdir)
    model_dir = workdir / "model"
    if model_dir.exists():
        log.info("%s is finished: its model is in %s", workdir, model_dir)
        return model_dir
    workdir.mkdir(parents=True, exist_ok=True)
    model = Sam(config.sam)
    optimizer = make_optimizer(config.optim, config.sam, config.num_steps)
    with StateStore(workdir / "state") as store:
        state = store.restore_newest(create_state(_initial_variables(config, model), optimizer))
        log.info("starting at step %d of %d on %s", state.step, config.num_steps, jax.devices())
        first = 0
        for index, stage in enumerate(config.stages):
            if int(state.step) < first + stage.num_steps:
                step_fn = jax.jit(partial(train_step, model, _for_stage(config, stage), optimizer), donate_argnums=0)
                state = _run_stage(config, stage, index, first, state, step_fn, store)
            first += stage.num_steps
        store.save(int(state.step), state)
    variables = {"params": state.params, "constants": state.constants}
    save_model(model_dir, config.sam, variables, config.storage_dtype)
    return model_dir


def _initial_variables(config: TrainConfig, model: Sam) -> dict[str, Any]:
    key = jax.random.key(config.seed)
    if config.init_from is None:
        return init_variables(model, key)
    stored, variables = load_model(config.init_from)
    if _shape_config(stored.config) != _shape_config(config.sam):
        raise ValueError(f"init_from {config.init_from} holds {stored.config}, but this run trains {config.sam}")
    return variables


def _shape_config(sam: SamConfig) -> SamConfig:
    """The config without what may differ between two trainings of the same weights."""
    encoder = dataclasses.replace(sam.image_encoder, drop_path_rate=0.0, remat=False)
    return dataclasses.replace(sam, image_encoder=encoder, dtype="float32")


def _for_stage(config: TrainConfig, stage: StageConfig) -> TrainConfig:
    if stage.num_points is None:
        return config
    interaction = dataclasses.replace(config.interaction, num_points=stage.num_points)
    return dataclasses.replace(config, interaction=interaction)


def _run_stage(
    config: TrainConfig,
    stage: StageConfig,
    index: int,
    first: int,
    state: TrainState,
    step_fn: Any,
    store: StateStore,
) -> TrainState:
    """Steps from where `state` stands to the stage's end; `first` is the stage's first step."""
    key = jax.random.key(config.seed)
    begin, end = int(state.step), first + stage.num_steps
    batches = make_batches(config.data, stage, config.seed + index, begin - first)
    started, waited, logged = time.perf_counter(), 0.0, begin
    bar = tqdm(
        range(begin, end), initial=begin - first, total=stage.num_steps, desc=f"{stage.image_size} px", unit="step"
    )
    for step in bar:
        before = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - before
        batch.pop("image_id")
        state, metrics = step_fn(state, batch, key)
        done = step + 1
        if done % config.log_every == 0 or done == end:
            row = {name: round(float(value), 5) for name, value in metrics.items()}  # waits for the device
            elapsed = time.perf_counter() - started
            row |= {
                "images_per_s": round((done - logged) * stage.batch_size / elapsed, 2),
                "data_wait": round(waited / elapsed, 3),
            }
            _append(epath.Path(config.workdir) / "log.jsonl", {"step": done, **row})
            bar.set_postfix(loss=row["loss"], iou=row["iou_first"])
            started, waited, logged = time.perf_counter(), 0.0, done
        if done % config.checkpoint_every == 0:
            store.save(done, state)
    return state


def _append(path: epath.Path, row: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
