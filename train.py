"""Train a Segment Anything Model.

    python train.py CONFIG.py [options]

CONFIG.py has a `get_config()` that returns a TrainConfig; look into configs/. Every field of it can be changed on the
command line, nested ones with dots: --optim.learning-rate 1e-4 --workdir gs://bucket/run. A run that was stopped goes
on from its last checkpoint when the same command is given again.

Exit codes: 0 done, 2 wrong input, 3 the loss became NaN, 75 stopped from outside with its state saved (run it again).
"""

import dataclasses
import logging
import runpy
import sys
from pathlib import Path
from typing import Annotated

import tyro

from sam_jax.config import TrainConfig
from sam_jax.runtime import connect_hosts, use_compilation_cache
from sam_jax.training import dry_run, interruption, loop


@dataclasses.dataclass(frozen=True)
class Command:
    """What to do with an experiment.

    Attributes:
      distributed: one of several hosts (a pod slice, or several slices): give the same command on each.
      coordinator: address of host 0 ("10.0.0.2:1234"); only for machines that cannot find out themselves, as TPU VMs,
        Slurm and Kubernetes can.
      num_hosts: how many hosts there are; goes with `coordinator`.
      host: which of them this is, from 0; goes with `coordinator`.
      eval_only: evaluate the newest checkpoint, or init_from, on the held-out images and stop.
      profile_steps: first and last step of the run to record a profile of, for TensorBoard's profiler.
      dry_run: compile for `topology` without a TPU, print memory and cost per chip, and stop.
      topology: chips to compile for, such as v5e:4x4 or v5p:2x2x1.
    """

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]
    distributed: bool = False
    coordinator: str | None = None
    num_hosts: int | None = None
    host: int | None = None
    eval_only: bool = False
    profile_steps: tuple[int, int] | None = None
    dry_run: bool = False
    topology: str = "v5e:4x4"


def load_config_file(path: str) -> TrainConfig:
    """Runs a config file and returns what its `get_config` gives."""
    if not Path(path).is_file():
        raise ValueError(f"config file {path} does not exist; try configs/bundled.py")
    get_config = runpy.run_path(path).get("get_config")
    config = get_config() if callable(get_config) else None
    if not isinstance(config, TrainConfig):
        raise ValueError(f"{path} has no get_config() that returns a TrainConfig")
    return config


def run(command: Command) -> None:
    """Does what the command line asks for."""
    use_compilation_cache()
    if command.distributed:
        connect_hosts(command.coordinator, command.num_hosts, command.host)
    if command.dry_run:
        print(dry_run.describe(command.config, command.topology))
    else:
        options = loop.RunOptions(command.eval_only, command.profile_steps)
        written = loop.train(command.config, options)
        print(f"{'evaluation is in' if command.eval_only else 'model written to'} {written}")


def main() -> int:
    """Parses the command line and runs it; the exit code says how it ended."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname).1s %(name)s: %(message)s")
    logging.getLogger("absl").setLevel(logging.WARNING)
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        return 0 if len(sys.argv) > 1 else 2
    try:
        default = Command(load_config_file(sys.argv[1]))
        run(tyro.cli(Command, default=default, args=sys.argv[2:], config=(tyro.conf.AvoidSubcommands,)))
    except interruption.Interrupted as stop:
        print(f"train.py: {stop}", file=sys.stderr)
        return interruption.EXIT_CODE
    except loop.NonFiniteLossError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 3
    except (ValueError, OSError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
