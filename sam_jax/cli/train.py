"""`sam-jax train`: loads an experiment, applies the options of the command line, and runs it."""

from __future__ import annotations

import dataclasses
import logging
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from sam_jax.cli import parsing
from sam_jax.config import TrainConfig

HELP = """Train a Segment Anything Model, or fine-tune one.

usage: {program} CONFIG [options]

CONFIG is the name of a published recipe,
    {recipes},
or a file with a `get_config()` that returns a TrainConfig: copy a recipe and change it. Every field can also be
changed on the command line, nested ones with dots:

    {program} sa1b_vit_b --data.path gs://BUCKET/sa1b --workdir gs://BUCKET/runs/vit_b
    {program} finetune_coco --data.path my_data/instances.json --optim.learning-rate 1e-4
    {program} sa1b_vit_h --dry-run --topology v5e:16x16        will it fit? Compiles for TPUs, without a TPU

`{program} CONFIG --help` lists all options. Run the same command again to continue a stopped run from its last
checkpoint.

Exit codes: 0 done, 2 wrong input, 3 the loss became NaN, 75 stopped from outside with its state saved: run it again."""
NOT_FINITE = 3


@dataclasses.dataclass(frozen=True)
class Command:
    """An experiment, and how to run it.

    Attributes:
      distributed: run on several hosts (a pod slice, or several slices): give the same command on each.
      coordinator: address of host 0 ("10.0.0.2:1234"); not needed on TPU VMs, Slurm and Kubernetes, which find it
        themselves.
      num_hosts: number of hosts; goes with `coordinator`.
      host: number of this host, from 0; goes with `coordinator`.
      eval_only: evaluate the newest checkpoint, or init_from, on the held-out images and stop.
      profile_steps: first and last step to profile, for TensorBoard's profiler.
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


def recipe_directory() -> Path:
    """The directory of the published recipes: in the package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def recipes() -> list[str]:
    """Names of the published recipes."""
    return sorted(path.stem for path in recipe_directory().glob("*.py"))


def load_config(name: str) -> TrainConfig:
    """The experiment of a published recipe, by name, or of a file's `get_config`.

    Raises:
      ValueError: there is no such recipe or file, or the file has no `get_config` that returns a TrainConfig.
    """
    path = Path(name)
    if not path.is_file() and name in recipes():
        path = recipe_directory() / f"{name}.py"
    if not path.is_file():
        raise ValueError(f"config file {name} does not exist, and is not the name of a recipe: {', '.join(recipes())}")
    get_config = runpy.run_path(str(path)).get("get_config")
    config = get_config() if callable(get_config) else None
    if not isinstance(config, TrainConfig):
        raise ValueError(f"{name} has no get_config() that returns a TrainConfig")
    return config


def run(command: Command, program: str) -> int:
    """Runs the experiment as the command line says; returns the exit code."""
    from sam_jax.runtime import connect_hosts, use_compilation_cache
    from sam_jax.training import dry_run, interruption, loop

    use_compilation_cache()
    if command.distributed:
        connect_hosts(command.coordinator, command.num_hosts, command.host)
    if command.dry_run:
        print(dry_run.describe(command.config, command.topology))
        return 0
    try:
        written = loop.train(command.config, loop.RunOptions(command.eval_only, command.profile_steps))
    except interruption.Interrupted as stop:
        parsing.complain(program, stop)
        return interruption.EXIT_CODE
    except loop.NonFiniteLossError as error:
        parsing.complain(program, error)
        return NOT_FINITE
    print(f"{'evaluation is in' if command.eval_only else 'model written to'} {written}")
    return 0


def main(argv: Sequence[str] | None = None, program: str = "sam-jax train") -> int:
    """Parses the command line and runs it; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname).1s %(name)s: %(message)s")
    logging.getLogger("absl").setLevel(logging.WARNING)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP.format(program=program, recipes=", ".join(recipes())))
        return 0 if arguments else parsing.WRONG_INPUT

    def work() -> int:
        default = Command(load_config(arguments[0]))
        options = (tyro.conf.AvoidSubcommands,)
        return run(tyro.cli(Command, default=default, prog=program, args=arguments[1:], config=options), program)

    return parsing.run(program, work)
