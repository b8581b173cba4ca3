"""The compiled training steps of a run's stages; the next stage's is compiled while the present one trains."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from sam_jax import sharding
from sam_jax.config import StageConfig, TrainConfig, for_stage
from sam_jax.models.sam import Sam
from sam_jax.training.placement import abstract_batch, compiler_options
from sam_jax.training.step import TrainState, train_step

log = logging.getLogger(__name__)
Step = Callable[..., tuple[TrainState, dict[str, jax.Array]]]


class StepPrograms:
    """One program for stages of the same shapes. A context manager; leaving it waits for the compiler.

    Args:
      state: the run's state, or its shapes, placed.
      key: the run's key.
      share: whether steps are told the share of time that is used.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: Sam,
        optimizer: optax.GradientTransformation,
        mesh: Mesh,
        state: TrainState,
        key: jax.Array,
        share: bool,
    ) -> None:
        self._config, self._model, self._optimizer, self._mesh = config, model, optimizer, mesh
        self._state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        self._rest = (key, np.zeros((), np.float32)) if share else (key,)
        self._steps: dict[Any, Step] = {}
        self._coming: dict[Any, Future[Step]] = {}
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> StepPrograms:
        return self

    def __exit__(self, *_: object) -> None:
        if any(thread.is_alive() for thread in self._threads):
            log.info("waiting for the compiler, which is at the next stage's step")
        for thread in self._threads:
            thread.join()

    def of(self, stage: StageConfig) -> Step:
        """A stage's step; waits where it is being compiled, and is compiled by its first call where it is not."""
        key = self._key(stage)
        if key in self._coming:
            self._steps[key] = self._coming.pop(key).result()
        return self._steps.setdefault(key, self._jitted(stage))

    def prepare(self, stage: StageConfig | None) -> None:
        """Begins to compile a stage's step in a thread, unless it is there.

        Not on several hosts, which have to compile in one order, nor for embeddings of images from a cache or of texts,
        whose dtypes are those of the data.
        """
        given = self._config.finetune.embedding_cache is not None or bool(self._config.sam.text_embed_dim)
        if stage is None or jax.process_count() > 1 or given:
            return
        key = self._key(stage)
        if key in self._steps or key in self._coming:
            return
        self._coming[key] = Future()
        thread = threading.Thread(target=self._compile, args=(stage, self._coming[key]))
        self._threads.append(thread)
        thread.start()

    def is_ready(self, stage: StageConfig) -> bool:
        """Whether `of` would not wait."""
        coming = self._coming.get(self._key(stage))
        return coming is None or coming.done()

    def _key(self, stage: StageConfig) -> Any:
        shapes = stage.image_size, stage.batch_size, stage.masks_per_image, stage.mask_stride
        return for_stage(self._config, stage).interaction, *shapes

    def _jitted(self, stage: StageConfig) -> Any:
        # The output state has the input's shardings: otherwise the second step would compile again.
        placed = jax.tree.map(lambda x: x.sharding, self._state), sharding.replicated(self._mesh)
        return jax.jit(
            partial(train_step, self._model, for_stage(self._config, stage), self._optimizer),
            donate_argnums=0,
            out_shardings=placed,
            compiler_options=compiler_options(self._mesh, 1),
        )

    def _compile(self, stage: StageConfig, future: Future[Step]) -> None:
        began = time.monotonic()
        try:
            batch = abstract_batch(self._config, stage, sharding.batch_sharding(self._mesh))
            future.set_result(self._jitted(stage).lower(self._state, batch, *self._rest).compile())
            log.info("the step at %d px was compiled meanwhile, in %.0f s", stage.image_size, time.monotonic() - began)
        except BaseException as error:  # it is for whoever asks for the step
            future.set_exception(error)
