"""Train or fine-tune a model: python train.py configs/bundled.py [--workdir DIR] [--optim.learning-rate 1e-4 ...]

The first argument is a Python file with `get_config() -> TrainConfig`; every field of that config is an option.
"""

from __future__ import annotations

import logging
import runpy
import sys
from pathlib import Path

import tyro

from sam_jax.config import TrainConfig
from sam_jax.training.loop import train


def load_config_file(path: str) -> TrainConfig:
    """Runs a config file and returns what its `get_config` gives."""
    if not Path(path).is_file():
        raise ValueError(f"config file {path} does not exist; try configs/bundled.py")
    get_config = runpy.run_path(path).get("get_config")
    config = get_config() if callable(get_config) else None
    if not isinstance(config, TrainConfig):
        raise ValueError(f"{path} has no get_config() that returns a TrainConfig")
    return config


def main() -> int:
    """Parses the command line and trains."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname).1s %(name)s: %(message)s")
    logging.getLogger("absl").setLevel(logging.WARNING)
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        return 0 if len(sys.argv) > 1 else 2
    try:
        config = tyro.cli(TrainConfig, default=load_config_file(sys.argv[1]), args=sys.argv[2:])
        print(f"model written to {train(config)}")
    except (ValueError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
