"""How long a run goes on: so many steps, or so many minutes. Schedules, stages and data follow from it."""

from __future__ import annotations

import logging
import time
from typing import Any

import numpy as np
import optax

from sam_jax.config import TrainConfig
from sam_jax.training.optimizer import learning_rate_by_clock, learning_rate_schedule, make_optimizer

log = logging.getLogger(__name__)

MARKS = (0.5, 0.7, 0.85)  # shares of the minutes after which a model is written, should the machine be gone at the end
_RESERVE = (1.0, 0.02, 15.0)  # seconds at least, share of all, seconds at most: to write the model within the minutes

_now = time.monotonic


class StepBudget:
    """The steps of the config's stages: what each step does follows from its number."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config

    def __str__(self) -> str:
        return f"of {self.config.num_steps}"

    def optimizer(self) -> optax.GradientTransformation:
        """The optimizer with its schedule."""
        return make_optimizer(self.config.optim, self.config.sam, self.config.num_steps)

    def restore(self, state: Any) -> None:
        """Takes up where the optimizer's state stands."""

    def start(self) -> None:
        """The first step is compiled and done: its time is not training's."""

    def is_left(self, step: int, end: int) -> bool:
        """Whether a stage is to go on after `step` steps of the run; `end` is how many there are up to its end."""
        return step < end

    def batch_number(self, step: int, first: int) -> int:
        """Which batch of its stage comes next, where the stage's first step would be `first`."""
        return step - first

    def share(self) -> np.ndarray | None:
        """What `train_step` is told of the time; None where steps tell it."""
        return None

    def learning_rate(self, step: int) -> float:
        """The rate of the step with this number, from 0."""
        return float(learning_rate_schedule(self.config.optim, self.config.num_steps)(step))

    def passed_mark(self) -> float | None:
        """A mark that was passed since the last call."""
        return None


class TimeBudget(StepBudget):
    """The config's `minutes`, from here to the written model. Stages get shares of them by their steps.

    The share that is used is part of the optimizer's state: a continuation has what is left.
    """

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        assert config.minutes is not None
        self._used, self._began, self._started, self._end = 0.0, _now(), -1.0, 0.0
        self._seconds = 60 * config.minutes
        self._rate = learning_rate_by_clock(config.optim)
        self._marks = list(MARKS)

    def __str__(self) -> str:
        return f"at {self._share():.1%} of {self.config.minutes:g} minutes"

    def optimizer(self) -> optax.GradientTransformation:
        """As of steps, with a schedule that follows the share."""
        return make_optimizer(self.config.optim, self.config.sam, None)

    def restore(self, state: Any) -> None:
        """Takes up at the share that the last step was told."""
        self._used = float(state.opt_state[-1].share)
        self._marks = [mark for mark in MARKS if mark > self._used]

    def start(self) -> None:
        """What is left begins now, and ends when it would have ended with nothing to compile."""
        if self._started >= 0:
            return
        self._started = _now()
        least, share, most = _RESERVE
        reserve = min(max(least, share * self._seconds), most)
        end = self._began + (1 - self._used) * self._seconds - reserve
        if end <= self._started:
            log.warning("compiling took all that was left of %g minutes; give more", self.config.minutes)
        self._end = max(end, self._started + 1e-3)

    def _share(self) -> float:
        if self._started < 0:
            return self._used
        passed = (_now() - self._started) / (self._end - self._started)
        return min(1.0, self._used + (1 - self._used) * passed)

    def is_left(self, step: int, end: int) -> bool:
        """By the clock."""
        return self._share() < end / self.config.num_steps

    def batch_number(self, step: int, first: int) -> int:
        """The run's step: where its stage began is not known beforehand."""
        return step

    def share(self) -> np.ndarray | None:
        """() float32."""
        return np.asarray(self._share(), np.float32)

    def learning_rate(self, step: int) -> float:
        """The rate that a step with this number has now."""
        return float(self._rate(step, self._share()))

    def passed_mark(self) -> float | None:
        """The last of those that were passed."""
        passed = [mark for mark in self._marks if mark <= self._share()]
        self._marks = self._marks[len(passed) :]
        return passed[-1] if passed else None


def open_budget(config: TrainConfig) -> StepBudget:
    """By the clock where the config says minutes; begins now."""
    return StepBudget(config) if config.minutes is None else TimeBudget(config)
