"""The store of the data engine: a directory with images, models and one SQLite file that says all the rest.

DIR/engine.sqlite      images, tasks, masks, model versions
DIR/images/            copies of the images, or links to them
DIR/models/            the models that were trained on its masks
"""

from __future__ import annotations

import dataclasses
import os
import sqlite3
import time
from pathlib import Path

from sam_jax.config.engine import EngineConfig
from sam_jax.engine.audit_table import AuditTable
from sam_jax.engine.database import FILE, IMAGES, MODELS
from sam_jax.engine.mask_table import MaskTable
from sam_jax.engine.model_table import ModelTable, add_first
from sam_jax.engine.schema import StoreError, migrate
from sam_jax.engine.statistics import StatisticsTable
from sam_jax.engine.task_table import TaskTable
from sam_jax.files import absolute

BUNDLED = "vit_tiny"


class Store(TaskTable, MaskTable, ModelTable, AuditTable, StatisticsTable):
    """An open store: see the classes that it joins for its methods. Safe for threads and for several processes.

    with Store(directory) as store:
        task = store.claim_next("ada")
    """

    @property
    def config(self) -> EngineConfig:
        """The settings that it was made with."""
        names = [field.name for field in dataclasses.fields(EngineConfig)]
        return EngineConfig(**{name: float(self.setting(name)) for name in names})


def init_store(directory: str | Path, config: EngineConfig | None = None, checkpoint: str | None = None) -> Store:
    """Makes a store, and opens it.

    Args:
      directory: new, or without a store.
      checkpoint: the model directory to begin with; None is the bundled model.

    Raises:
      StoreError: there is a store already.
    """
    root, config = Path(directory), config or EngineConfig()
    if (root / FILE).exists():
        raise StoreError(f"{directory} has a store already; choose another directory, or add images to it")
    for name in (IMAGES, MODELS):
        (root / name).mkdir(parents=True, exist_ok=True)
    unfinished = root / f".{FILE}.unfinished"
    unfinished.unlink(missing_ok=True)
    bundled = checkpoint is None or (checkpoint == BUNDLED and not Path(checkpoint).exists())
    path = None if checkpoint is None or bundled else absolute(checkpoint)
    name = path.rpartition("/")[-1] if path else BUNDLED
    connection = sqlite3.connect(unfinished, isolation_level=None)
    try:
        migrate(connection, str(unfinished))
        connection.row_factory = sqlite3.Row
        connection.execute("BEGIN IMMEDIATE")
        settings = [(key, repr(float(value))) for key, value in dataclasses.asdict(config).items()]
        connection.executemany("INSERT INTO settings VALUES (?, ?)", settings)
        add_first(connection, name, path, time.time())
        connection.commit()
    finally:
        connection.close()
    os.replace(unfinished, root / FILE)
    return Store(root)
