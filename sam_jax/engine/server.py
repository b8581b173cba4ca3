"""Serves a store together with its present model, until it is told to stop."""

from __future__ import annotations

import os
from pathlib import Path

from sam_jax.config import ServingConfig
from sam_jax.engine.routes import EngineService, create_router
from sam_jax.engine.store import Store
from sam_jax.serving.server import serve


def serve_store(
    directory: str | Path,
    config: ServingConfig,
    stage: str | None = None,
    dtype: str | None = None,
    crf: bool | None = None,
    onnx: bool = True,
    text_model: str | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT. A model that is promoted meanwhile is used from the next start on.

    Args:
      stage: hand out tasks of this stage alone; None hands out all.
      dtype, crf, onnx, text_model: as `serving.server.serve` takes them.

    Raises:
      StoreError: the directory has no store that can be used.
    """
    with Store(directory) as store:
        present = store.present()
        path = store.model_path(present)
        engine = EngineService(store, present, stage)
        try:
            checkpoint = None if path is None else os.fspath(path)
            serve(config, checkpoint, dtype, crf, onnx, text_model, [create_router(engine)])
        finally:
            engine.close()
