"""Whether a command goes on with the run that its workdir holds: the same config, but for what cannot change the curve,
on the same data."""

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

# What may differ between a run and its continuation: it changes no step's result by more than the order of sums does.
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
# Fields that runs of earlier versions have, of such a kind.
FORMER_NAMES = frozenset(("picture_every",))  # overlay_every
# What runs had before there was such a field, where that is not its default.
BEFORE = {"data.scaled_decode": True}
# Where the data lies, as opposed to what it is: may change as long as the data's fingerprint does not.
PLACES_OF_DATA = frozenset(("data.path", "data.image_dir", "data.pool"))
# Where embeddings are kept, as opposed to whether: they are known by content.
PLACES_OF_CACHES = frozenset(("finetune.embedding_cache",))


def check_same_run(config: TrainConfig, workdir: epath.Path, fingerprint: Callable[[], dict[str, Any]]) -> None:
    """Writes `config.json` and `data.json` into a new workdir, or compares with those that are there.

    A workdir without a checkpoint is new: nothing in it can be lost, and a command that was refused or stopped before
    its first checkpoint may be corrected. A finished run on data that has not moved is not asked for its data again.

    Args:
      fingerprint: reads what tells the config's data from other data; as `data.pipeline.fingerprint`.

    Raises:
      ValueError: the workdir holds another run; shows what differs.
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
    """(name, "name: old -> new") of each field that keeps a run from going on.

    Args:
      theirs: the config that a run was started with. A field that it lacks is younger than the run: it then had what
        is the field's default now, or what `BEFORE` says.
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
    """The defaults of a config's fields, ready for JSON, of nested ones by their present types; None without one."""
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
    """What tells the data of now from the run's; nothing where they are the same."""
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
