"""Whether a command may resume the run in its workdir: the data must be the same, and so must the config, except for
fields that do not change the training curve."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
from etils import epath

from sam_jax.config import TrainConfig, to_dict
from sam_jax.files import write_atomically

_CONFIG_FILE, _DATA_FILE = "config.json", "data.json"

# Fields that a resumed run may change: they change a step's result by no more than the order of sums does.
FREE_TO_CHANGE = frozenset(
    (
        "workdir",
        "mesh.data",
        "mesh.fsdp",
        "accumulate",
        "keep",
        "storage_dtype",
        "eval_images",
        "log_every",
        "eval_every",
        "overlay_every",
        "checkpoint_every",
        "data.num_workers",
        "data.buffer_gib",
        "data.prefetch",
        "data.max_bad_share",
        "sam.image_encoder.attention",
        "sam.image_encoder.token_order",
        "sam.image_encoder.remat",
        "sam.mask_decoder.kernels",
        "sam.crf",
        "sam.pred_iou_thresh",
        "sam.stability_score_thresh",
    )
)
# Such fields of earlier versions.
FORMER_NAMES = frozenset(("picture_every",))  # overlay_every
# Values of runs from before a field existed, where they are not its default.
BEFORE = {"data.scaled_decode": True}
# Where the data is stored: may change as long as the data's fingerprint does not.
PLACES_OF_DATA = frozenset(("data.path", "data.image_dir", "data.pool"))
# Where embeddings are kept: may change, since a cache checks what it holds, but not whether they are kept.
PLACES_OF_CACHES = frozenset(("finetune.embedding_cache", "text.cache", "text.towers"))


def check_same_run(config: TrainConfig, workdir: epath.Path, fingerprint: Callable[[], dict[str, Any]]) -> None:
    """Writes `config.json` and `data.json` into a new workdir, or compares with those of an existing run.

    A workdir without a checkpoint counts as new: nothing can be lost, and a command that failed or was stopped before
    its first checkpoint can be corrected. The data of a finished run is read only if its location has changed.

    Args:
      fingerprint: reads the fingerprint of the config's data, as `training.batches.fingerprint` does.

    Raises:
      ValueError: the workdir holds another run; the message shows what differs.
    """
    config_file, data_file = workdir / _CONFIG_FILE, workdir / _DATA_FILE
    finished = (workdir / "model").exists()
    if not config_file.exists() or not (finished or _has_checkpoint(workdir / "state")):
        _write(data_file, fingerprint())
        _write(config_file, to_dict(config))
        return
    theirs = json.loads(config_file.read_text())
    found = list(differences(theirs, config))
    moved = [text for name, text in found if name in PLACES_OF_DATA]
    changed = [text for name, text in found if name not in PLACES_OF_DATA]
    if not changed and (moved or not finished):
        changed = _other_data(data_file, fingerprint(), moved)
    if changed:
        state = "a finished run" if finished else "a run"
        raise ValueError(
            f"{workdir} holds {state} with another config ({'; '.join(changed)}); choose another workdir, or restore "
            "the old values to go on"
        )


def _has_checkpoint(directory: epath.Path) -> bool:
    return directory.exists() and any(path.name.isdigit() for path in directory.iterdir())


def differences(theirs: dict[str, Any], config: TrainConfig) -> Iterator[tuple[str, str]]:
    """(name, "name: old -> new") of each changed field that prevents resuming a run.

    Args:
      theirs: the config that the run was started with. A field that it lacks was added later and counts as its default
        of today, or as the value in `BEFORE`.
    """
    for name, old, new in _differences(theirs, json.loads(json.dumps(to_dict(config))), _defaults(config)):
        cache_moved = name in PLACES_OF_CACHES and old is not None and new is not None
        if name not in FREE_TO_CHANGE | FORMER_NAMES and not cache_moved:
            yield name, f"{name}: {old!r} -> {new!r}"


def _differences(old: Any, new: Any, default: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            known = default.get(key) if isinstance(default, dict) else None
            path = f"{name}.{key}" if name else key
            yield from _differences(old.get(key, BEFORE.get(path, known)), new.get(key), known, path)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        known = default if isinstance(default, list) and len(default) == len(new) else [None] * len(new)
        for i, parts in enumerate(zip(old, new, known, strict=True)):
            yield from _differences(*parts, f"{name}.{i}")
    elif old != new:
        yield name, old, new


def _defaults(value: Any) -> Any:
    """Defaults of a config's fields as JSON values, None without a default; nested configs by their present types."""
    if isinstance(value, tuple):
        return [_defaults(item) for item in value]
    if not dataclasses.is_dataclass(value):
        return None
    found = {}
    for field in dataclasses.fields(value):
        inner = getattr(value, field.name)
        if dataclasses.is_dataclass(inner) or (isinstance(inner, tuple) and any(map(dataclasses.is_dataclass, inner))):
            found[field.name] = _defaults(inner)
        elif field.default is not dataclasses.MISSING:
            found[field.name] = json.loads(json.dumps(field.default))
        else:
            found[field.name] = None
    return found


def _other_data(file: epath.Path, mine: dict[str, Any], moved: list[str]) -> list[str]:
    """What differs between the present data and the run's; empty if nothing does."""
    if not file.exists():  # a run of an earlier version
        if not moved:
            _write(file, mine)
        return moved
    theirs = json.loads(file.read_text())
    others = [f"data {name}: {theirs.get(name)!r} -> {mine[name]!r}" for name in mine if theirs.get(name) != mine[name]]
    return [*moved, *others] if others else []


def _write(file: epath.Path, content: dict[str, Any]) -> None:
    if jax.process_index() == 0:
        write_atomically(file, (json.dumps(content, indent=2) + "\n").encode())
