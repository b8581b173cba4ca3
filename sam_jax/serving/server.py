"""Runs the server until it is told to stop; then it finishes what runs."""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence

import uvicorn
from fastapi import APIRouter
from threadpoolctl import threadpool_limits

from sam_jax.checkpoint import load_model, model_path
from sam_jax.config import ServingConfig
from sam_jax.serving.app import create_app
from sam_jax.serving.model_files import ModelFiles
from sam_jax.serving.service import SegmentationService
from sam_jax.text.loading import load_towers

_LOG = logging.getLogger(__name__)


def serve(
    config: ServingConfig,
    checkpoint: str | None = None,
    dtype: str | None = None,
    crf: bool | None = None,
    onnx: bool = True,
    text_model: str | None = None,
    routers: Sequence[APIRouter] = (),
) -> None:
    """Serves a model until SIGTERM or SIGINT; requests that have begun are answered.

    Args:
      checkpoint, dtype, crf: as `load_model` takes them.
      onnx: offer the model as ONNX files, where the extra is installed.
      text_model: towers as `load_towers` takes them, for phrases; None serves none.
      routers: as `create_app` takes them.
    """
    # By force: what reads checkpoints has set up the log for warnings alone.
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True)
    logging.getLogger("absl").setLevel(logging.WARNING)
    # Requests run side by side; BLAS's threads, which spin while they wait, would take their cores.
    threadpool_limits(1, "blas")
    model, variables = load_model(checkpoint, dtype, crf)
    name = model_path(checkpoint).name
    towers = None if text_model is None else load_towers(text_model, model.config.dtype)
    service = SegmentationService(model, variables, name, config, towers)
    _LOG.info("compiling the programs of %s; the next start finds them on disk", name)
    service.warm_up()
    files = ModelFiles(checkpoint, model.config.crf) if onnx else None
    listener = uvicorn.Config(
        create_app(service, files, routers=routers),
        host=config.host,
        port=config.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=30,
        h11_max_incomplete_event_size=64 * 1024,
    )
    # uvicorn stops at the first SIGTERM, waits for what runs, and sends itself the signal again: done then.
    signal.signal(signal.SIGTERM, lambda *_: None)
    uvicorn.Server(listener).run()
