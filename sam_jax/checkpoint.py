"""Model directories on disk: `config.json` beside an Orbax tree of variables. Local and gs:// paths alike.

checkpoints/sam_vit_b/
  config.json     the SamConfig, without the fields that say how it runs (config/running.py)
  variables/      Orbax: {"params": ..., "constants": ...}
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy as preservation

from sam_jax.config import SamConfig, bare_network, for_inference, sam_config_from_dict, to_saved_dict
from sam_jax.files import absolute, write_atomically
from sam_jax.models.sam import Sam, init_variables

CONFIG_FILE = "config.json"
VARIABLES_DIR = "variables"
_SCORES_FILE = "scores.json"
_SMALLEST_SLICE = 2**20  # bytes
FORMAT = "sam_jax.model.v1"
BUNDLED = "vit_tiny"

Variables = dict[str, Any]


class CheckpointError(ValueError):
    """A model directory that cannot be read, or that does not fit its config."""


def load_model(
    path: epath.PathLike | None = None,
    dtype: str | None = None,
    crf: bool | None = None,
    kernels: str = "auto",
    shardings: Callable[[Variables], Any] | None = None,
) -> tuple[Sam, Variables]:
    """Loads a model and its variables, for `SamPredictor(*load_model())` or `model.apply(variables, ...)`.

    The arguments decide how the model runs, not the settings it was trained or saved with.

    Args:
      path: a directory written by `sam-jax convert` or by training, local or gs://; None and "vit_tiny" are the bundled
        model.
      dtype: compute dtype: "float32" (also None), the faster "bfloat16", or "int8"; see `config.for_inference`.
      crf: edge refinement (CRF); None means as in the config, see `SamConfig.crf`.
      kernels: "auto", "xla", "pallas" or "triton", for attention and the mask decoder; see
        `ImageEncoderConfig.attention`.
      shardings: gives a sharding for every leaf of a tree of shapes, such as `partial(sharding.tree_shardings, mesh)`;
        each device then reads only its own share. None: all on the first local device.

    Returns:
      The model, and {"params": ..., "constants": ...} of float32 arrays.

    Raises:
      CheckpointError: the directory does not exist, is incomplete, or does not fit its config.
      ValueError: dtype or kernels has another value.
    """
    root = model_path(path)
    config = for_inference(load_config(root), dtype or "float32", kernels)
    if crf is not None:
        config = dataclasses.replace(config, crf=crf)
    model = Sam(config)
    shapes = jax.eval_shape(partial(init_variables, model), jax.random.key(0))
    return model, load_variables(root, shapes, None if shardings is None else shardings(shapes))


def model_path(path: epath.PathLike | None) -> epath.Path:
    """A model's directory: `path`, or that of the bundled model for None and "vit_tiny"."""
    if path is None or (os.fspath(path) == BUNDLED and not epath.Path(path).exists()):
        return epath.Path(str(importlib.resources.files("sam_jax") / "weights" / BUNDLED))
    return epath.Path(path)


def save_model(
    path: epath.PathLike, config: SamConfig, variables: Variables, dtype: Any = None, overwrite: bool = False
) -> None:
    """Writes a model directory. The directory appears under its name only when it is complete.

    With several hosts, each must call this and hold all variables completely; host 0 writes, the others wait.

    Args:
      path: a directory that does not exist yet, local or gs://.
      config: the model's config, written beside the variables, without the fields that say how it runs
        (`config.running.RUNNING`): these are chosen when it is loaded.
      variables: {"params": ..., "constants": ...}; jax arrays are written piece by piece, numpy arrays copied whole.
      dtype: storage dtype of `params`; None keeps that of each leaf. Constants keep theirs, because rounding the
        positional encoding would shift every prompt. Loading always returns float32.
      overwrite: replace a directory that exists already.

    Raises:
      CheckpointError: the directory exists already.
    """
    content = {"format": FORMAT, "sam": to_saved_dict(config)}
    if jax.process_index() == 0:
        write_directory(path, content, variables, dtype, overwrite)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"model written to {path}")


def write_directory(
    path: epath.PathLike,
    content: dict[str, Any],
    variables: Variables,
    dtype: Any = None,
    overwrite: bool = False,
    files: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """As `save_model`, of any network: `content` is that of config.json, `files` are further ones by name."""
    target = epath.Path(path)
    if target.exists() and not overwrite:
        raise CheckpointError(f"{target} exists already; remove it or choose another directory")
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.parent / f".{target.name}.unfinished"
    if unfinished.exists():
        unfinished.rmtree()
    unfinished.mkdir(parents=True)
    if dtype is not None:
        variables = variables | {"params": jax.tree.map(lambda x: x.astype(dtype), variables["params"])}
    alone = ocp.options.MultiprocessingOptions(primary_host=0)
    if jax.process_count() > 1:  # the other hosts take no part
        variables = jax.tree.map(np.asarray, variables)
        alone = ocp.options.MultiprocessingOptions(
            primary_host=0, active_processes={0}, barrier_sync_key_prefix="model"
        )
    try:
        handler = ocp.PyTreeCheckpointHandler(save_concurrent_gb=1, multiprocessing_options=alone)
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            checkpointer.save(absolute(unfinished / VARIABLES_DIR), variables)
        for name, data in files.items():
            (unfinished / name).write_bytes(data)
        (unfinished / CONFIG_FILE).write_text(json.dumps(content, indent=2) + "\n")
        if target.exists():
            target.rmtree()
        unfinished.rename(target)
    except BaseException:
        unfinished.rmtree(missing_ok=True)
        raise


def load_config(path: epath.PathLike) -> SamConfig:
    """The SamConfig of a model directory. Fields that say how it runs have their defaults, even if an earlier version
    saved the values used in training. Raises CheckpointError that says what is missing or wrong."""
    root = model_path(path)
    file = root / CONFIG_FILE
    if not file.exists():
        found = "is a file, not a model directory" if root.is_file() else "has no config.json"
        raise CheckpointError(
            f"{root} {found if root.exists() else 'does not exist'}; expected a directory written by "
            "`sam-jax convert from-torch` or by training"
        )
    try:
        content = json.loads(file.read_text())
        if content.get("format") != FORMAT:
            raise ValueError(f"its format is {content.get('format')!r}, not {FORMAT!r}")
        return bare_network(sam_config_from_dict(content["sam"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file} is not a model config of this library: {error}") from error


def load_variables(path: epath.PathLike, expected: Variables, shardings: Any = None) -> Variables:
    """The variables of a model directory as float32 arrays.

    If the shardings span devices of several hosts, every host must call this.

    Args:
      path: a directory written by `save_model`.
      expected: a tree of shapes (`jax.eval_shape` of the model's init) that the stored tree must match.
      shardings: a tree of `jax.sharding.Sharding`, one per leaf; no device ever holds more than its share. None: all on
        the first local device.

    Raises:
      CheckpointError: the directory is incomplete or damaged, or leaves are missing, unknown or of another shape; all
        are named.
    """
    source = model_path(path) / VARIABLES_DIR
    if not source.exists():
        raise CheckpointError(f"{path} holds a config but no {VARIABLES_DIR}/; it is incomplete, write it again")
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        location = absolute(source)
        try:
            stored = checkpointer.metadata(location).item_metadata.tree
        except (FileNotFoundError, KeyError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{source} is not a readable Orbax checkpoint: {error}") from error
        _check_shapes(path, stored, expected)
        if shardings is None:
            alone = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            shardings = jax.tree.map(lambda _: alone, expected)
        args = jax.tree.map(lambda where: ocp.ArrayRestoreArgs(sharding=where, dtype=jnp.float32), shardings)
        try:
            return checkpointer.restore(location, item=expected, restore_args=args)
        except Exception as error:  # Orbax raises bare Exceptions for damaged data
            raise CheckpointError(f"{source} is damaged ({_first_line(error)}); write it again") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def _check_shapes(path: epath.PathLike, stored: Any, expected: Variables) -> None:
    have = {k: tuple(v.shape) for k, v in flatten_dict(stored, sep="/").items()}
    want = {k: tuple(v.shape) for k, v in flatten_dict(expected, sep="/").items()}
    problems = [f"missing {k} {want[k]}" for k in sorted(want.keys() - have.keys())]
    problems += [f"unknown {k} {have[k]}" for k in sorted(have.keys() - want.keys())]
    problems += [
        f"{k} is {have[k]}, its config says {want[k]}" for k in sorted(want.keys() & have.keys()) if want[k] != have[k]
    ]
    if problems:
        raise CheckpointError(f"{path} does not fit its config: " + "; ".join(problems))


class StateStore:
    """The checkpoints of a run: saved in the background; incomplete ones are ignored.

    Keeps the newest `keep` and the one with the highest score. Scores are in `scores.json` beside the checkpoints,
    because a checkpoint is saved before it is evaluated. A context manager; leaving it waits for the last save. With
    several hosts, every host must make every call.
    """

    def __init__(self, directory: epath.PathLike, keep: int = 2) -> None:
        policies = [preservation.LatestN(keep), _Preserved(self.best_step)]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation.AnyPreservationPolicy(policies), create=True
        )
        self._manager = ocp.CheckpointManager(absolute(directory), options=options, item_handlers=_state_handler())
        self._scores_file = epath.Path(absolute(directory)) / _SCORES_FILE
        self._scores = self._read_scores()

    def __enter__(self) -> StateStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def save(self, step: int, state: Any, miou: float | None = None) -> None:
        """Saves a pytree of arrays under its step, unless that is saved already; `miou`: see `record_score`."""
        if step not in self._manager.all_steps():
            self._manager.save(step, args=ocp.args.PyTreeSave(state))
        if miou is not None:
            self.record_score(step, miou)

    def record_score(self, step: int, miou: float) -> None:
        """Records the mean IoU of a saved step, by which the best checkpoint is chosen."""
        self._scores[step] = miou
        if jax.process_index() == 0:
            write_atomically(self._scores_file, json.dumps(self._scores).encode())

    def has_score(self, step: int) -> bool:
        """Whether a step has a score."""
        return step in self._scores

    def newest_step(self) -> int | None:
        """The step of the newest complete checkpoint; None if there is none."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step of the checkpoint with the highest score; None if none has one."""
        known = [step for step in self._manager.all_steps() if step in self._scores]
        return max(known, key=lambda step: self._scores[step]) if known else None

    def _read_scores(self) -> dict[int, float]:
        # Earlier versions stored scores inside the checkpoints.
        inside = {step: self._manager.metrics(step) for step in self._manager.all_steps()}
        scores = {step: metrics["miou"] for step, metrics in inside.items() if metrics}
        if self._scores_file.exists():
            scores |= {int(step): miou for step, miou in json.loads(self._scores_file.read_text()).items()}
        return scores

    def restore(self, step: int, shapes: Any) -> Any:
        """A checkpoint in the shapes and shardings of `shapes`: a tree of arrays, or of `jax.ShapeDtypeStruct` with
        shardings, which may differ from those it was saved with."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, shapes)
        how = ocp.checkpoint_utils.construct_restore_args(abstract)
        return self._manager.restore(step, args=ocp.args.PyTreeRestore(abstract, how))


def _state_handler() -> ocp.PyTreeCheckpointHandler:
    """Orbax's handler, but with small arrays written by one device.

    By default every replica writes a slice of every array, which compiles a program for each shape.
    """
    handlers = ocp.type_handlers
    registry = handlers.create_type_handler_registry(
        (int, handlers.ScalarHandler()),
        (float, handlers.ScalarHandler()),
        (np.ndarray, handlers.NumpyHandler()),
        (jax.Array, handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_SMALLEST_SLICE)),
    )
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)


class _Preserved:
    """An Orbax preservation policy that keeps one step."""

    def __init__(self, step: Callable[[], int | None]) -> None:
        self._step = step

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        step = self._step()
        return [checkpoint.step == step for checkpoint in checkpoints]
